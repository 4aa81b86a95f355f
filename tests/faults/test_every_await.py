"""A plain prompt, a stream and a cached hit: cancelled and made to fail at every single await, they leave nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from sqlalchemy import text

from app.api.front_door import _Reply  # pyright: ignore[reportPrivateUsage]
from app.core.budgets import owner_of
from app.core.conversations import Conversations
from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application
from tests.faults.every_await import DISTURBANCES, Disturbance, Script, disturbing, under
from tests.figures import Figures

Kind = Literal["prompt", "stream", "hit"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PATH = "/api/v1/agent/prompt"
PATIENCE_S = SETTLE_S = 20.0


@pytest.fixture
def fake(fake: FakeProvider) -> FakeProvider:
    fake.chunks = 3
    fake.chunk_gap_s = 0.0001
    return fake


@pytest.fixture
async def application(fake: FakeProvider, tmp_path: Path) -> AsyncIterator[Application]:
    # As one of several workers, so that the cache shares a tier and leases with others.
    settings = {"workers": 2, "default_model": "openai-chat:gpt-4o-mini", "rate_limit_per_minute": 0}
    async with open_application(tmp_path / "data", tokens_per_minute=10_000_000, **settings) as opened:
        yield opened


class Caller:
    """A user with a budget and a conversation, who asks through ASGI as uvicorn would."""

    def __init__(self, application: Application, fake: FakeProvider) -> None:
        self.application = application
        self.runtime = application.runtime
        self.fake = fake
        self.conversation = ""
        self._headers: list[tuple[bytes, bytes]] = []
        self._names: set[bytes] = set()

    async def begin(self) -> None:
        """Sign in, begin a conversation, and watch which leases are taken."""
        me = (await self.application.client.get("/api/v1/auth/me")).json()
        self._owner = owner_of(user_id=me["id"])
        budget = {"period": "month", "unit": "usd", "amount": "1000000"}
        reply = await self.application.client.put(f"/api/v1/users/{me['id']}/budget", json=budget)
        assert reply.status_code == 200, reply.text
        self.conversation = (await self.application.client.post("/api/v1/conversations", json={})).json()["id"]
        self._headers = [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"authorization", self.application.client.headers["authorization"].encode()),
        ]
        claim = self.runtime.store.claim

        async def watched(key: bytes, owner: str, *, ttl_s: float) -> bool:
            self._names.add(key)
            return await claim(key, owner, ttl_s=ttl_s)

        self.runtime.store.claim = watched

    async def ask(self, message: str, **fields: Any) -> tuple[int, bytes]:
        """Status and body; 0 where the connection would have been cut."""
        body = json.dumps({"message": message, **fields}).encode()
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if parts:
                await asyncio.sleep(0)
                return parts.pop()
            return await asyncio.Event().wait()

        async def send(reply: Any) -> None:
            await asyncio.sleep(0)
            sent.append(reply)

        scope: Any = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": PATH, "raw_path": PATH.encode(),
            "root_path": "", "query_string": b"", "scheme": "http", "client": ("127.0.0.1", 1),
            "headers": [*self._headers, (b"content-length", b"%d" % len(body))],
        }  # fmt: skip
        await self.application.door(scope, receive, send)
        if not sent or sent[-1].get("more_body"):
            return 0, b""
        return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])

    def ask_as(self, kind: Kind, nonce: str) -> Any:
        """One request of this kind."""
        match kind:
            case "prompt":
                return self.ask(f"nonce:{nonce}", conversation_id=self.conversation)
            case "stream":
                return self.ask(f"nonce:{nonce}", conversation_id=self.conversation, stream=True)
            case "hit":
                return self.ask("nonce:hit")

    def held(self) -> dict[str, int]:
        """What a request holds while it goes on, by name."""
        pool = self.runtime.parts["agent_pool"]()
        conversations: Any = self.runtime.conversations
        return {
            "requests in flight": self.application.door.metrics.in_flight,
            "slots of the worker": self.application.door.admission.slots.in_use,
            "agents in use": pool["in_use"],
            "slots": sum(slot["in_use"] for slot in pool["slots"]),
            "waiting for runs": self.runtime.cache.waiting,
            "streams": len(self.runtime.streams),
            "connections": self.runtime.database.pool_status().checked_out,
            "conversations": len(conversations._held) + len(conversations._lines),
            "calls of the provider": self.fake.in_flight,
        }

    async def settled(self, baseline: set[asyncio.Task[Any]]) -> dict[str, Any]:
        """What is still held when nothing changes any more; empty where it should be."""
        deadline = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            left: dict[str, Any] = {name: number for name, number in self.held().items() if number}
            tasks = [task.get_name() for task in asyncio.all_tasks() - baseline if not task.done()]
            if tasks:
                left["tasks"] = tasks
            if not left or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.001)
        return left | await self._left_in_stores()

    async def _left_in_stores(self) -> dict[str, Any]:
        await self.runtime.runs.flush()
        left: dict[str, Any] = {}
        (budget,) = await self.runtime.budgets.states([self._owner])
        if budget.reserved:
            left["reserved"] = budget.reserved
        for name in sorted(self._names):
            if not await self.runtime.store.claim(name, "somebody else", ttl_s=5):
                left["lease"] = name
            await self.runtime.store.release(name, "somebody else")
        self._names.clear()
        async with self.runtime.database.read() as session:
            for what, query in (
                ("runs", "SELECT count(*) FROM runs WHERE status = 'running'"),
                ("turns", "SELECT count(*) FROM conversations WHERE busy_holder IS NOT NULL"),
            ):
                if number := (await session.execute(text(query))).scalar_one():
                    left[what] = number
        return left


async def disturb_every_await(application: Application, fake: FakeProvider, kind: Kind, how: Disturbance) -> int:
    """Gives how many awaits there were."""
    caller = Caller(application, fake)
    await caller.begin()
    for message in ("first", "second"):  # so that what is made once is there, and the hit is one
        assert (await caller.ask_as(kind, message))[0] == 200
    if kind == "hit":
        assert b'"cached":true' in (await caller.ask_as(kind, ""))[1]
    await asyncio.sleep(0.05)
    baseline = asyncio.all_tasks()
    places: list[str] = []
    with disturbing():
        for nth in range(1, 2000):
            script = Script(nth, how)
            task = under(script, caller.ask_as(kind, f"{how}-{nth}"))
            await asyncio.wait([task], timeout=PATIENCE_S)
            assert task.done(), f"it hangs after the {nth}th await was {how}: {script.place}"
            left = await caller.settled(baseline)
            assert not left, f"{left} after the {nth}th await was {how}: {script.place}"
            async with asyncio.timeout(PATIENCE_S):
                status, _ = await caller.ask_as(kind, f"{how}-{nth}-next")
            assert status == 200, f"{status} after the {nth}th await was {how}: {script.place}"
            if not script.place:
                assert task.result()[0] == 200
                break
            places.append(script.place)
    print(f"\n{kind}, {how}: {len(places)} awaits")
    return len(places)


@pytest.mark.parametrize("how", [*DISTURBANCES[:-1], pytest.param(DISTURBANCES[-1], marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_behind(
    application: Application, fake: FakeProvider, kind: Kind, how: Disturbance, figures: Figures
) -> None:
    awaits = await disturb_every_await(application, fake, kind, how)
    figures.note(f"every await of a {kind} {how}", "nothing left", f"nothing after each of {awaits}")
    assert awaits >= {"prompt": 40, "stream": 40, "hit": 3}[kind]


@pytest.mark.parametrize("how", DISTURBANCES)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_left_behind_is_found(
    application: Application, fake: FakeProvider, kind: Kind, how: Disturbance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a slot that is given back where all went well, and not in a `finally`."""
    monkeypatch.setattr("tests.faults.test_every_await.SETTLE_S", 0.5)
    slots = application.door.admission.slots
    owner, name = (_Reply, "send_whole") if kind == "hit" else (Conversations, "_claim")
    original: Any = getattr(owner, name)

    async def careless(*given: Any) -> Any:
        slots.in_use += 1
        result = await original(*given)
        slots.in_use -= 1
        return result

    monkeypatch.setattr(owner, name, careless)
    with pytest.raises(AssertionError, match="slots of the worker"):
        await disturb_every_await(application, fake, kind, how)


async def test_a_turn_that_is_not_given_back_is_found(
    application: Application, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in the database."""

    async def forget(*_: Any) -> None:
        return None

    monkeypatch.setattr(application.runtime.conversations, "_release", forget)
    with pytest.raises(AssertionError, match="turns"):
        await disturb_every_await(application, fake, "prompt", "cancelled")
