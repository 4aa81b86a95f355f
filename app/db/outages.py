"""Which failures of a database are outages, and which are mistakes of ours."""

from sqlalchemy import exc

from app.errors import DatabaseUnavailable

# Primary result codes of SQLite that say "not now" or "not on this disk"; the others (bad SQL, no such table) are
# our own mistakes and stay what they are. https://sqlite.org/rescode.html
_SQLITE_OUTAGES = {
    3,  # PERM
    5,  # BUSY
    6,  # LOCKED
    7,  # NOMEM
    8,  # READONLY
    9,  # INTERRUPT
    10,  # IOERR
    11,  # CORRUPT
    13,  # FULL
    14,  # CANTOPEN
    15,  # PROTOCOL
    26,  # NOTADB
}
# Classes of SQLSTATE: connection, no such database, bad login, transaction rolled back or cut, out of resources,
# lock not available, operator intervention (shutdown, statement timeout), system error, idle-in-transaction.
_POSTGRES_OUTAGES = ("08", "28", "3D", "40", "53", "55", "57", "58", "25P", "25006")


def outage_of(problem: BaseException) -> DatabaseUnavailable | None:
    """The outage that a failure of the database or its driver is, in words for the caller.

    `None` for a mistake of ours, such as wrong SQL or a broken constraint.
    """
    match problem:
        case exc.TimeoutError():
            return DatabaseUnavailable("all database connections are in use; try again in a moment")
        case exc.IntegrityError():
            return None
        case exc.DBAPIError() if problem.connection_invalidated:
            pass
        case exc.DBAPIError():
            code = getattr(problem.orig, "sqlite_errorcode", None)
            state = getattr(problem.orig, "sqlstate", None)
            if code is not None and code & 0xFF not in _SQLITE_OUTAGES:
                return None
            if state is not None and not state.startswith(_POSTGRES_OUTAGES):
                return None
            if code is None and state is None and not _driver_gave_up(problem):
                return None
            if code is not None and code & 0xFF == 13:
                return DatabaseUnavailable("the database has no space left; nothing was written", retry_after_s=5.0)
        case TimeoutError() | OSError():
            pass
        case _:
            return None
    return DatabaseUnavailable("the database does not answer; try again in a moment")


def _driver_gave_up(problem: exc.DBAPIError) -> bool:
    if isinstance(problem, exc.OperationalError):
        return True
    # asyncpg says InterfaceError of a closed connection and of an argument that it cannot encode; sqlite3 only of
    # the latter, and without a cause, since SQLAlchemy hands its errors through.
    cause = problem.orig.__cause__ if problem.orig is not None else None
    return isinstance(problem, exc.InterfaceError) and not isinstance(cause, ValueError | TypeError | None)
