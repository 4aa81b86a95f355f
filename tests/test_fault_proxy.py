"""The fault proxy does what each of its modes says, to a plain echo server and to a real Redis."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.fault_proxy import FaultProxy


class Echo:
    """A server that answers with what it was asked, and keeps everything it heard."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.heard += data
            writer.write(data)
        writer.close()


@pytest.fixture
async def echo() -> AsyncGenerator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    async with server:
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncGenerator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, question: bytes) -> bytes:
        """Return the answer, or what there is of it before the connection ends or nothing comes for a while."""
        self.writer.write(question)
        answer = b""
        while len(answer) < len(question):
            data = await asyncio.wait_for(self.reader.read(65536), timeout=0.3)
            if not data:
                return answer
            answer += data
        return answer


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncGenerator[Client]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def test_pass_forwards_both_ways_and_both_ends(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        assert await client.ask(b"hello") == b"hello"
        assert proxy.open_connections == proxy.accepted == 1
        client.writer.write_eof()
        assert await client.reader.read() == b""


async def test_latency_delays_each_answer(proxy: FaultProxy) -> None:
    proxy.mode = "latency:60"
    assert proxy.mode == "latency:60"
    async with connected(proxy) as client:
        began = time.monotonic()
        assert await client.ask(b"hello") == b"hello"
        assert time.monotonic() - began >= 0.06


async def test_what_hangs_goes_on_later(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        proxy.mode = "hang"
        with pytest.raises(TimeoutError):
            await client.ask(b"one ")
        proxy.mode = "pass"
        assert await client.reader.readexactly(4) == b"one "


async def test_a_connection_made_while_hanging_is_accepted(proxy: FaultProxy) -> None:
    proxy.mode = "hang"
    async with connected(proxy) as client:
        with pytest.raises(TimeoutError):
            await client.ask(b"hello")
        proxy.mode = "pass"
        assert await client.reader.readexactly(5) == b"hello"


@pytest.mark.parametrize("before", ["pass", "blackhole"])
async def test_a_blackhole_swallows_what_it_gets(proxy: FaultProxy, echo: Echo, before: str) -> None:
    proxy.mode = before
    async with connected(proxy) as client:
        proxy.mode = "blackhole"
        with pytest.raises(TimeoutError):
            await client.ask(b"hello")
        proxy.mode = "pass"
        assert echo.heard == b""


@pytest.mark.parametrize("before", ["pass", "hang"])
async def test_refuse_resets_what_is_open_and_lets_nobody_in(proxy: FaultProxy, before: str) -> None:
    async with connected(proxy) as client:
        await client.ask(b"hello")
        proxy.mode = before
        client.writer.write(b"are you there?")
        proxy.mode = "refuse"
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    proxy.mode = "pass"
    async with connected(proxy) as client:
        assert await client.ask(b"hello") == b"hello"


async def test_a_target_that_refuses_looks_like_a_reset() -> None:
    async with FaultProxy("127.0.0.1", 1) as proxy, connected(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await client.ask(b"hello")


async def test_cut_ends_in_the_middle_of_an_answer(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        assert await client.ask(b"hello") == b"hello"
        proxy.mode = "cut"
        assert await client.ask(b"hello you") == b"hell"
        assert await client.reader.read() == b""


@pytest.mark.parametrize("before", ["pass", "half-close"])
async def test_half_close_ends_the_answers_only(proxy: FaultProxy, echo: Echo, before: str) -> None:
    proxy.mode = before
    async with connected(proxy) as client:
        proxy.mode = "half-close"
        assert await client.ask(b"are you there?") == b""
        client.writer.write(b" no")
        async with asyncio.timeout(5):
            while echo.heard != b"are you there? no":
                await asyncio.sleep(0)


async def test_slice_forwards_single_bytes(proxy: FaultProxy) -> None:
    proxy.mode = "slice"
    async with connected(proxy) as client:
        client.writer.write(b"hello")
        first = await client.reader.read(65536)
        assert len(first) < 5
        assert first + await client.reader.readexactly(5 - len(first)) == b"hello"


async def test_garbage_has_the_length_of_the_answer(proxy: FaultProxy) -> None:
    proxy.mode = "garbage"
    async with connected(proxy) as client:
        answer = await client.ask(b"hello")
    assert len(answer) == 5
    assert answer != b"hello"


@pytest.mark.parametrize("mode", ["earthquake", "latency", "latency:", "pass:5"])
def test_an_unknown_mode_names_those_there_are(mode: str) -> None:
    with pytest.raises(ValueError, match="there are: pass, latency, hang"):
        FaultProxy("127.0.0.1", 1, mode=mode)


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("hang", RedisTimeoutError),
        ("blackhole", RedisTimeoutError),
        ("latency:500", RedisTimeoutError),
        ("refuse", RedisConnectionError),
        ("cut", RedisConnectionError),
        ("half-close", RedisConnectionError),
        ("garbage", RedisError),
    ],
)
async def test_redis_fails_in_every_mode_and_recovers(redis_url: str, mode: str, error: type[Exception]) -> None:
    target = urlsplit(redis_url)
    assert target.hostname
    assert target.port
    async with FaultProxy(target.hostname, target.port) as proxy:
        no_retry = Retry(NoBackoff(), 0)
        database = int(target.path[1:])
        async with Redis(host=proxy.host, port=proxy.port, db=database, socket_timeout=0.3, retry=no_retry) as client:
            await client.set("key", "value")
            proxy.mode = mode
            with pytest.raises(error):
                await client.get("key")
            proxy.mode = "pass"
            assert await client.get("key") == b"value"


async def test_redis_does_not_mind_slices(redis_url: str) -> None:
    target = urlsplit(redis_url)
    assert target.port
    async with (
        FaultProxy("127.0.0.1", target.port, mode="slice") as proxy,
        Redis(host=proxy.host, port=proxy.port, db=int(target.path[1:])) as client,
    ):
        await client.set("key", "v" * 5000)
        assert await client.get("key") == b"v" * 5000
