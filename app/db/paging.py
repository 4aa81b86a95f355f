"""Cursors for lists that are ordered by a time and an id."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime

from app.errors import FieldFault, InvalidFields


def encode_cursor(at: datetime, row_id: str) -> str:
    """Name the place after this row, in a form that clients hand back unread."""
    return urlsafe_b64encode(f"{at.isoformat()}|{row_id}".encode()).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Give the time and the id back. Raises `InvalidFields` for anything that `encode_cursor` did not make."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        time, _, row_id = urlsafe_b64decode(padded).decode().partition("|")
        at = datetime.fromisoformat(time)
    except ValueError:  # bad alphabet, padding, UTF-8 or time: all of them are ValueErrors
        at, row_id = None, ""
    if at is None or at.tzinfo is None or not row_id or "\0" in row_id:
        fault = FieldFault("cursor", "must be the next_cursor of an earlier page, or left out for the first page")
        raise InvalidFields("cursor is not one that this list gave out", errors=[fault])
    return at, row_id
