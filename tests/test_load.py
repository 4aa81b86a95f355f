import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import count

import pytest

from app.load import NONCE, Load, quantile, quantiles, run_load
from benchmarks.fake_provider import FakeProvider, Fault


def load_on(fake: FakeProvider, **options: object) -> Load:
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"nonce:{NONCE} and a question"}],
            "stream": bool(options.get("streamed")),
        }
    )
    return Load(url=f"{fake.base_url}/chat/completions", bodies=[body], **options)  # pyright: ignore[reportArgumentType]


def nonces_seen(fake: FakeProvider) -> list[str]:
    return [call.body["messages"][0]["content"].split()[0] for call in fake.requests]


@asynccontextmanager
async def raw_server(answer: Callable[[int], bytes], *, close: bool = False) -> AsyncGenerator[str]:
    """A server that answers its nth request with `answer(n)`, whatever was asked; yields its URL."""
    numbers = count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
                body = answer(next(numbers))
                ending = b"connection: close\r\n" if close else b""
                writer.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (ending, len(body), body))
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_a_count_of_requests_is_sent_exactly_and_every_prompt_is_its_own():
    async with FakeProvider() as fake:
        report = await run_load(load_on(fake, connections=7, requests=100))
    assert (report.answered, report.completed, report.latency_ms.count) == (100, 100, 100)
    assert report.errors == {}
    assert len(set(nonces_seen(fake))) == 100


async def test_equal_prompts_are_all_the_same():
    async with FakeProvider() as fake:
        report = await run_load(load_on(fake, connections=3, requests=20, equal=True))
    assert report.answered == 20
    assert len(set(nonces_seen(fake))) == 1


async def test_two_loads_do_not_share_their_equal_prompt():
    async with FakeProvider() as fake:
        await run_load(load_on(fake, requests=1, equal=True))
        await run_load(load_on(fake, requests=1, equal=True))
    assert len(set(nonces_seen(fake))) == 2


async def test_bodies_are_sent_in_turn():
    async with FakeProvider() as fake:
        bodies = [json.dumps({"messages": [{"role": "user", "content": f"{name} nonce:{NONCE}"}]}) for name in "abc"]
        await run_load(Load(url=f"{fake.base_url}/chat/completions", bodies=bodies, requests=6))
    assert [call.body["messages"][0]["content"][0] for call in fake.requests] == list("abcabc")


async def test_headers_and_length_reach_the_server():
    async with FakeProvider() as fake:
        report = await run_load(load_on(fake, requests=1, headers={"authorization": "Bearer ü".encode().decode()}))
    assert report.answered == 1
    assert fake.requests[0].headers["content-type"] == "application/json"
    assert fake.requests[0].headers["authorization"].startswith("Bearer ")


async def test_no_more_requests_are_under_way_than_there_are_connections():
    async with FakeProvider() as fake:
        fake.hold()
        running = asyncio.create_task(run_load(load_on(fake, connections=5, requests=50)))
        await fake.until(lambda: fake.in_flight == 5)
        fake.release()
        report = await running
    assert report.answered == 50


async def test_a_duration_ends_by_itself_and_counts_only_its_window():
    async with FakeProvider() as fake:
        report = await run_load(load_on(fake, connections=2, seconds=0.2, warmup_s=0.1))
    assert report.seconds == pytest.approx(0.2)
    assert 0 < report.answered < report.completed
    assert report.per_second == pytest.approx(report.answered / 0.2)
    assert fake.disconnects == 0


async def test_what_is_under_way_at_the_end_may_finish_and_does_not_raise_the_rate():
    async with FakeProvider(latency_s=0.3) as fake:
        report = await run_load(load_on(fake, connections=4, seconds=0.1))
    assert (report.answered, report.completed, report.latency_ms.count) == (0, 4, 4)
    assert report.errors == {}


async def test_what_does_not_finish_is_reported():
    async with FakeProvider(fault="hang") as fake:
        report = await run_load(load_on(fake, connections=4, seconds=0.05, drain_s=0.05))
        await fake.until(lambda: fake.in_flight == 0)
    assert report.errors == {"unfinished": 4}


async def test_a_stream_gives_a_time_to_first_token_before_its_end():
    async with FakeProvider(chunks=5, chunk_gap_s=0.02) as fake:
        report = await run_load(load_on(fake, requests=3, streamed=True))
    assert report.answered == report.first_token_ms.count == 3
    assert report.first_token_ms.max < report.latency_ms.p50


@pytest.mark.parametrize(
    ("fault", "streamed", "error"),
    [
        ("503", False, "status 503"),
        ("429", True, "status 429"),
        ("cut", False, "disconnected"),
        ("reset", False, "disconnected"),
        ("stream-cut", True, "disconnected"),
        ("error-in-200", False, "wrong answer"),
        ("empty", True, "wrong answer"),
        ("stream-no-finish", True, "wrong answer"),
    ],
)
async def test_a_failed_answer_is_an_error_of_its_kind_and_the_load_goes_on(fault: Fault, streamed: bool, error: str):
    async with FakeProvider() as fake:
        fake.fault_sequence = [None, fault, None]
        report = await run_load(load_on(fake, requests=5, streamed=streamed))
    assert report.errors == {error: 1}
    assert report.answered == 4
    assert report.examples[0].startswith(error)


async def test_the_answer_to_another_prompt_is_a_wrong_answer():
    async with raw_server(lambda _: b'{"response": "This answer belongs to nonce:0123456789abcdef"}') as url:
        report = await run_load(Load(url=url, bodies=[f"nonce:{NONCE}"], requests=3))
        relaxed = await run_load(Load(url=url, bodies=[f"nonce:{NONCE}"], requests=3, check="answer"))
    assert report.errors == {"wrong answer": 3}
    assert relaxed.answered == 3


async def test_a_connection_that_the_server_closes_is_replaced():
    async with raw_server(lambda _: b"{}", close=True) as url:
        report = await run_load(Load(url=url, bodies=["{}"], connections=2, requests=10, check="answer"))
    assert (report.answered, report.errors) == (10, {})


async def test_a_server_that_is_not_there_is_one_clear_error():
    with pytest.raises(ConnectionError, match=r"cannot connect to http://127\.0\.0\.1:1/"):
        await run_load(Load(url="http://127.0.0.1:1/", bodies=["{}"], requests=1))


async def test_a_server_that_leaves_in_the_middle_ends_the_load():
    fake = FakeProvider()
    await fake.start()
    fake.fault = "hang"
    running = asyncio.create_task(run_load(load_on(fake, connections=2, requests=6)))
    await fake.until(lambda: fake.in_flight == 2)
    await fake.aclose()
    report = await running
    assert report.answered == 0
    assert report.errors == {"disconnected": 2, "cannot connect": 4}


async def test_as_a_process_it_reads_and_writes_json():
    async with FakeProvider() as fake:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate(json.dumps(asdict(load_on(fake, requests=10))).encode())
    assert process.returncode == 0
    assert json.loads(out)["answered"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `requests` or `seconds`"),
        ({"requests": 1, "seconds": 1.0}, "either `requests` or `seconds`"),
        ({"requests": 1, "connections": 0}, "connections must be >= 1, got 0"),
        ({"requests": 1, "bodies": []}, "at least one body"),
    ],
)
def test_an_impossible_load_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Load(**{"url": "http://127.0.0.1/", "bodies": ["{}"], **options})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("q", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_quantile_is_a_value_that_was_measured(q: float, value: int):
    assert quantile(range(1, 101), q) == value


def test_quantiles_are_in_milliseconds_and_do_not_need_order():
    summary = quantiles([0.003, 0.001, 0.002])
    assert (summary.count, summary.p50, summary.p99, summary.max) == (3, 2.0, 3.0, 3.0)
    assert summary.mean == pytest.approx(2.0)


def test_quantiles_of_nothing_are_zero():
    assert quantiles([]).count == quantiles([]).p99 == 0


async def test_a_load_of_seconds_is_bounded_in_its_requests_too():
    async with FakeProvider() as fake:
        report = await run_load(load_on(fake, connections=4, seconds=60.0, at_most=25))
        assert fake.calls == 25
    assert (report.answered, report.errors) == (25, {})
    assert report.seconds < 60
    assert report.per_second == pytest.approx(25 / report.seconds)


async def test_a_stream_is_complete_where_it_ends_as_it_should():
    async with FakeProvider() as fake:
        report = await run_load(load_on(fake, requests=3, streamed=True, stream_ends=["event: over"]))
        assert report.errors == {"wrong answer": 3}
        report = await run_load(load_on(fake, requests=3, streamed=True, stream_ends=["[DONE]"]))
        assert report.errors == {}
