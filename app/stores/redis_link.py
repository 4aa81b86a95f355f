"""Connections to one Redis: every call has its deadline, and a connection is used again only after a whole answer."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

try:
    from redis import asyncio as aioredis
    from redis.asyncio.connection import AbstractConnection, Connection, parse_url
    from redis.exceptions import NoScriptError, ResponseError
except ModuleNotFoundError as missing:
    from app.errors import BadConfiguration

    raise BadConfiguration(
        "REDIS_URL is set, but the Redis client is not installed; pip install 'mnemosine[redis]', or leave it unset"
    ) from missing

from app.errors import BadConfiguration, StoreUnavailable
from app.stores.breaker import Breaker
from app.stores.patience import patience

_log = logging.getLogger(__name__)

DEADLINE_S = 0.25
"""Of one call, its connecting included."""
_POOL_WAIT_S = 0.25
_SAY_AGAIN_S = 60.0
_REFUSALS = {
    "OOM": "its memory is full",
    "MISCONF": "its disk cannot be written",
    "READONLY": "it is a replica",
    "NOREPLICAS": "its replicas are away",
}
"""Words in what Redis answers to whatever would write, where it takes none of that."""

# What a URL may say of a pool or of deadlines does not hold here.
_OURS: dict[str, Any] = {
    # Each call has a deadline of its own. The driver's cost a task a call, and do not know of a busy process.
    "socket_timeout": None,
    "socket_connect_timeout": None,
    "retry": None,
    "retry_on_timeout": False,
    "retry_on_error": [],
    "health_check_interval": 0,
    "decode_responses": False,
    "protocol": 2,
    "driver_info": None,
}
_OF_POOLS = ("max_connections", "timeout", "connection_class")


class RedisLink:
    """At most `connections` to the Redis of `url`.

    A call that fails, is late or is cancelled drops its connection: what is still on its way must not become the
    next caller's answer. Five outages in a row open the breaker, and calls are refused at once until a probe
    (`probe`) went well. To wait in vain for a free connection, or to be told an error, is no outage.
    """

    def __init__(self, url: str, *, connections: int = 64, breaker: Breaker | None = None) -> None:
        """Touch no network yet. Raises `BadConfiguration` for a URL that cannot work."""
        self.calls = 0
        self.failures = 0
        self.refused = 0
        self.breaker = breaker or Breaker()
        self.refusal: str | None = None
        """Why Redis takes nothing that is written, since it said so; until `writes_again`."""
        self._make = _maker(url)
        self._free: list[AbstractConnection] = []
        self._places = asyncio.Semaphore(connections)
        self._said_at = -_SAY_AGAIN_S

    async def call(self, *command: bytes | str | int, check: Callable[[Any], bool] | None = None) -> Any:
        """The answer of Redis, which `check` must find to be the one that belongs to this command.

        Raises `StoreUnavailable`, or `NoScript` where the command is EVALSHA and Redis does not know the script.
        """
        self.calls += 1
        if self.breaker.is_open:
            self.refused += 1
            raise StoreUnavailable("Redis is away and is left alone until it answers again")
        await self._take_place()
        try:
            if self.breaker.is_open:
                # It went away while this call stood in line.
                self.refused += 1
                raise StoreUnavailable("Redis is away and is left alone until it answers again")
            answer = await self._ask(command, check)
        except NoScriptError as error:
            raise NoScript from error
        except StoreUnavailable:
            self.failures += 1
            raise
        finally:
            self._places.release()
        self.breaker.succeeded()
        return answer

    async def probe(self, *command: bytes | str | int, check: Callable[[Any], bool] | None = None) -> Any:
        """The same past the breaker and the bound on connections, for the one who looks after the breaker."""
        try:
            return await self._ask(command, check)
        except NoScriptError as error:
            raise NoScript from error

    def writes_again(self) -> None:
        """Say so where it had not been so."""
        if self.refusal is not None:
            self.refusal = None
            _log.warning("Redis takes what is written again")

    async def aclose(self) -> None:
        """Close what is open."""
        while self._free:
            await self._free.pop().disconnect()

    async def _take_place(self) -> None:
        if self._places.locked():
            try:
                async with patience(_POOL_WAIT_S):
                    await self._places.acquire()
            except TimeoutError:
                self.failures += 1
                raise StoreUnavailable("all connections to Redis are in use") from None
        else:
            await self._places.acquire()

    async def _ask(self, command: tuple[bytes | str | int, ...], check: Callable[[Any], bool] | None) -> Any:
        connection: AbstractConnection | None = None
        whole = False
        try:
            async with patience(DEADLINE_S):
                connection = await self._connection()
                await connection.send_command(*command)
                answer = cast("Any", await connection.read_response())  # what Redis sent, of any type
            if check is not None and not check(answer):
                raise StoreUnavailable("what came from Redis was not the answer to what was asked")
            whole = True
        except ResponseError as error:
            if isinstance(error, NoScriptError):
                whole = True
                raise
            raise StoreUnavailable(self._told(error)) from error
        except Exception as error:
            # Whatever: random bytes make the parser raise many things.
            if self.breaker.failed():
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                _log.warning("Redis (REDIS_URL) is away and is left alone until it answers again (%s)", reason)
            raise error if isinstance(error, StoreUnavailable) else StoreUnavailable("Redis does not answer") from error
        finally:
            if connection is not None:
                if whole:
                    self._free.append(connection)
                else:
                    await connection.disconnect(nowait=True)  # does not suspend
        return answer

    async def _connection(self) -> AbstractConnection:
        while self._free:
            connection = self._free.pop()
            # A byte that nobody asked for, or an end that came meanwhile, is not met by a caller.
            if connection.is_connected and not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        connection = self._make()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _told(self, error: ResponseError) -> str:
        """What an error is in our words; the log has those of Redis."""
        words = f"{error.status_code} {error}".split()
        code = next((word.lstrip("-") for word in words if word.lstrip("-") in _REFUSALS), None)
        if code is None:
            if monotonic() - self._said_at >= _SAY_AGAIN_S:
                self._said_at = monotonic()
                _log.warning("Redis answers with an error: %s (said once a minute)", error)
            return "Redis answered with an error"
        refusal = f"Redis takes nothing that is written: {_REFUSALS[code]}"
        if self.refusal is None:
            _log.warning("%s (%s)", refusal, error)
        self.refusal = refusal
        return refusal


class NoScript(Exception):
    """Redis was restarted and does not know the script any more."""


def _maker(url: str) -> Callable[[], AbstractConnection]:
    try:
        options: dict[str, Any] = dict(parse_url(url))
        kind: type[AbstractConnection] = options.get("connection_class", Connection)
        for name in _OF_POOLS:
            options.pop(name, None)
        options |= _OURS
        one = kind(**options)
    except (TypeError, ValueError, aioredis.RedisError) as error:
        raise BadConfiguration(
            f"REDIS_URL cannot be used: {error}; example: REDIS_URL=redis://localhost:6379/0"
        ) from error
    assert one.socket_connect_timeout is None
    assert one.retry.get_retries() == 0
    assert not one.health_check_interval
    return lambda: kind(**options)
