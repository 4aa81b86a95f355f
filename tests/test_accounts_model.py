"""The whole application against a plain model of it: accounts, credentials, prompts and conversations in any order."""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select

from app.db.models import api_keys, conversation_entries, conversations, kept_replies
from tests.application import Application, open_application
from tests.figures import Figures

T = TypeVar("T")

TALKS = "/api/v1/conversations"
KEYS = "/api/v1/auth/api-keys"
USERS = "/api/v1/users"
WHICH = st.integers(0, 10**6)
NAMES = ("ada", "bob", "eve")
MESSAGES = st.sampled_from(["Hello", "Why?", "Go on"])
_TRIES = 3
"""Wrong passwords for one name; after five in a minute also the right one is refused, which is not modelled."""


@dataclass(eq=False)
class Credential:
    """A token, or a key where it has an id."""

    text: str
    owner: "Person"
    key_id: str | None = None
    ended: bool = False


@dataclass(eq=False)
class Person:
    id: str
    name: str
    password: str
    role: str
    disabled: bool = False
    gone: bool = False

    @property
    def may_enter(self) -> bool:
        return not self.disabled and not self.gone


@dataclass(eq=False)
class Talk:
    id: str
    owner: Person
    title: str | None
    said: list[str] = field(default_factory=list[str])
    gone: bool = False


class World:
    """An application that lives longer than one example, on an event loop of its own."""

    def __init__(self, data_dir: Path, database_url: str) -> None:
        self._data_dir = data_dir
        self._database_url = database_url
        self._runner = asyncio.Runner()
        self.examples = count()
        self.peers = count()
        self.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def start(self) -> None:
        self._opening: AbstractAsyncContextManager[Application] = open_application(
            self._data_dir,
            database_url=self._database_url,
            rate_limit_per_minute=0,
            access_token_expire_minutes=1440,
        )
        self.application = self.run(self._opening.__aenter__())

    def stop(self) -> None:
        self.run(self._opening.__aexit__(None, None, None))

    def close(self) -> None:
        self.stop()
        self._runner.close()

    def send(self, method: str, path: str, *, credential: str | None = None, **sent: Any) -> httpx2.Response:
        """As the administrator, or with this credential."""
        client = self.application.client
        headers = {"Authorization": f"Bearer {credential}"} if credential is not None else {}
        return self.run(client.request(method, path, headers=headers | sent.pop("headers", {}), **sent))

    def sign_in(self, name: str, password: str) -> httpx2.Response:
        """From an address that nobody has come from before."""
        number = next(self.peers)
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"

        async def sign_in() -> httpx2.Response:
            transport = httpx2.ASGITransport(self.application.door, client=(address, 1))
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.post("/api/v1/auth/token", data={"username": name, "password": password})

        return self.run(sign_in())

    def rows_left(self) -> dict[str, int]:
        """What is stored for users."""

        async def rows() -> dict[str, int]:
            async with self.application.runtime.database.read() as session:
                return {
                    table.name: (await session.execute(select(func.count()).select_from(table))).scalar_one()
                    for table in (api_keys, conversations, conversation_entries, kept_replies)
                }

        return self.run(rows())


class ApplicationAndModel(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.suffix = f".{next(world.examples)}"
        self.people: list[Person] = []
        self.credentials: list[Credential] = []
        self.talks: list[Talk] = []
        self.wrong: dict[str, int] = {}
        self.asked: set[tuple[str, tuple[str, ...], str]] = set()
        """Who asked what after which talk: these come from the cache."""
        self.keyed: dict[tuple[str, str | None, str], tuple[str, bytes]] = {}
        self.names = count()

    # What the model knows

    def one(self, which: int) -> Person:
        return self.people[which % len(self.people)]

    def credential(self, which: int) -> Credential:
        return self.credentials[which % len(self.credentials)]

    def talk(self, which: int) -> Talk:
        return self.talks[which % len(self.talks)]

    def end(self, person: Person, *, keys: bool) -> None:
        for credential in self.credentials:
            if credential.owner is person and (keys or credential.key_id is None):
                credential.ended = True

    def ask(self, credential: Credential, method: str, path: str, expected: int, **sent: Any) -> httpx2.Response:
        """Send it; what has ended is a 401, whatever is asked."""
        reply = self.world.send(method, path, credential=credential.text, **sent)
        assert reply.status_code == (401 if credential.ended else expected), reply.text
        return reply

    def sees(self, credential: Credential, talk: Talk) -> bool:
        return talk.owner is credential.owner and not talk.gone

    # Accounts

    @rule(name=st.sampled_from(NAMES), role=st.sampled_from(["user", "user", "admin"]))
    def create_a_user(self, name: str, role: str) -> None:
        name += self.suffix
        taken = any(person.name == name and not person.gone for person in self.people)
        password = f"password number {next(self.names)}"
        reply = self.world.send("POST", USERS, json={"username": name.upper(), "password": password, "role": role})
        assert reply.status_code == (409 if taken else 201), reply.text
        if not taken:
            self.people.append(Person(reply.json()["id"], name, password, role))

    @precondition(lambda self: self.people)
    @rule(which=WHICH, right=st.sampled_from([True, True, False]))
    def sign_in(self, which: int, right: bool) -> None:
        person = self.one(which)
        good = right and person.may_enter
        if not good:
            if self.wrong.get(person.name, 0) >= _TRIES:
                return
            self.wrong[person.name] = self.wrong.get(person.name, 0) + 1
        reply = self.world.sign_in(person.name, person.password if right else "a wrong password")
        assert reply.status_code == (200 if good else 401), reply.text
        if good:
            self.credentials.append(Credential(reply.json()["access_token"], person))

    @precondition(lambda self: self.people)
    @rule(which=WHICH, change=st.sampled_from(["password", "role", "disabled", "enabled", "username"]))
    def change_a_user(self, which: int, change: str) -> None:
        person = self.one(which)
        number = next(self.names)
        body: dict[str, Any] = {
            "password": {"password": f"password number {number}"},
            "role": {"role": ("user", "admin")[number % 2]},
            "disabled": {"disabled": True},
            "enabled": {"disabled": False},
            "username": {"username": f"name{number}{self.suffix}"},
        }[change]
        reply = self.world.send("PATCH", f"{USERS}/{person.id}", json=body)
        assert reply.status_code == (404 if person.gone else 200), reply.text
        if person.gone:
            return
        disables = change == "disabled" and not person.disabled
        if change == "password" or disables or (change == "role" and body["role"] != person.role):
            self.end(person, keys=True)
        if change in ("disabled", "enabled"):
            person.disabled = body["disabled"]
        if change == "password":
            person.password = body["password"]
        if change == "role":
            person.role = body["role"]
        if change == "username":
            person.name = body["username"]
        told = reply.json()
        assert (told["role"], told["disabled"]) == (person.role, person.disabled)
        assert told["username"].lower() == person.name

    @precondition(lambda self: self.people)
    @rule(which=WHICH)
    def delete_a_user(self, which: int) -> None:
        person = self.one(which)
        reply = self.world.send("DELETE", f"{USERS}/{person.id}")
        assert reply.status_code == (404 if person.gone else 204), reply.text
        person.gone = True
        self.end(person, keys=True)
        for talk in self.talks:
            talk.gone = talk.gone or talk.owner is person

    @precondition(lambda self: not any(one.role == "admin" and one.may_enter for one in self.people))
    @rule(body=st.sampled_from([{"role": "user"}, {"disabled": True}, None]))
    def the_last_administrator_stays(self, body: dict[str, Any] | None) -> None:
        path = f"{USERS}/{self.world.send('GET', '/api/v1/auth/me').json()['id']}"
        reply = self.world.send("PATCH", path, json=body) if body else self.world.send("DELETE", path)
        assert reply.status_code == 409, reply.text

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH, right=st.booleans())
    def change_the_own_password(self, which: int, right: bool) -> None:
        credential = self.credential(which)
        person, may = credential.owner, credential.key_id is None
        if may and not credential.ended and not right:
            if self.wrong.get(person.name, 0) >= _TRIES:
                return
            self.wrong[person.name] = self.wrong.get(person.name, 0) + 1
        new = f"password number {next(self.names)}"
        body = {"old_password": person.password if right else "a wrong password", "new_password": new}
        expected = 403 if not may else 204 if right else 401
        self.ask(credential, "POST", "/api/v1/auth/password", expected, json=body)
        if expected == 204 and not credential.ended:
            person.password = new
            self.end(person, keys=True)

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH)
    def sign_out(self, which: int) -> None:
        credential = self.credential(which)
        may = credential.key_id is None
        self.ask(credential, "POST", "/api/v1/auth/logout", 204 if may else 403)
        if may and not credential.ended:
            self.end(credential.owner, keys=False)

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH)
    def say_who_it_is(self, which: int) -> None:
        self.check_who(self.credential(which))

    def check_who(self, credential: Credential) -> None:
        reply = self.ask(credential, "GET", "/api/v1/auth/me", 200)
        if not credential.ended:
            told, person = reply.json(), credential.owner
            assert (told["id"], told["username"].lower(), told["role"]) == (person.id, person.name, person.role)

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH)
    def list_the_users(self, which: int) -> None:
        credential = self.credential(which)
        allowed = credential.owner.role == "admin"
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            params: dict[str, Any] = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            reply = self.ask(credential, "GET", USERS, 200 if allowed else 403, params=params)
            if credential.ended or not allowed:
                return
            found += [user["id"] for user in reply.json()["items"]]
            cursor = reply.json()["next_cursor"]
        assert found[1:] == [person.id for person in self.people if not person.gone], "all but the first administrator"

    # Keys

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH)
    def make_a_key(self, which: int) -> None:
        credential = self.credential(which)
        reply = self.ask(credential, "POST", KEYS, 201 if credential.key_id is None else 403, json={"name": "a key"})
        if reply.status_code == 201:
            self.credentials.append(Credential(reply.json()["key"], credential.owner, reply.json()["id"]))

    @precondition(lambda self: any(one.key_id for one in self.credentials))
    @rule(which=WHICH, whose=WHICH)
    def delete_a_key(self, which: int, whose: int) -> None:
        keys = [one for one in self.credentials if one.key_id is not None]
        key, credential = keys[which % len(keys)], self.credential(whose)
        there = key.owner is credential.owner and not key.ended
        expected = 403 if credential.key_id is not None else 204 if there else 404
        self.ask(credential, "DELETE", f"{KEYS}/{key.key_id}", expected)
        if expected == 204 and not credential.ended:
            key.ended = True

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH)
    def list_the_keys(self, which: int) -> None:
        credential = self.credential(which)
        reply = self.ask(credential, "GET", KEYS, 200)
        if not credential.ended:
            mine = [one for one in self.credentials if one.owner is credential.owner and one.key_id and not one.ended]
            assert [key["id"] for key in reply.json()] == [one.key_id for one in mine]

    # Prompts

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH, message=MESSAGES)
    def prompt(self, which: int, message: str) -> None:
        self.ask_the_agent(self.credential(which), message, None)

    @precondition(lambda self: self.credentials and self.talks)
    @rule(which=WHICH, talk=WHICH, message=MESSAGES)
    def go_on_with_a_talk(self, which: int, talk: int, message: str) -> None:
        self.ask_the_agent(self.credential(which), message, self.talk(talk))

    def ask_the_agent(self, credential: Credential, message: str, talk: Talk | None) -> None:
        there = talk is None or self.sees(credential, talk)
        body: dict[str, Any] = {"message": message} | ({} if talk is None else {"conversation_id": talk.id})
        reply = self.ask(credential, "POST", "/api/v1/agent/prompt", 200 if there else 404, json=body)
        if credential.ended or not there:
            return
        answer = reply.json()
        assert f"You said: {message!r}." in answer["response"]
        question = (credential.owner.id, tuple(talk.said if talk else ()), message)
        assert answer["cached"] == (question in self.asked)
        self.asked.add(question)
        if talk is not None:
            talk.said += [message, answer["response"]]

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH, key=st.sampled_from(["one", "two"]), message=MESSAGES)
    def prompt_with_a_key(self, which: int, key: str, message: str) -> None:
        credential = self.credential(which)
        place = (credential.owner.id, credential.key_id, key)
        kept = self.keyed.get(place)
        expected = 409 if kept is not None and kept[0] != message else 200
        body = {"message": message, "cache": {"mode": "off"}}
        headers = {"Idempotency-Key": key}
        reply = self.ask(credential, "POST", "/api/v1/agent/prompt", expected, json=body, headers=headers)
        if credential.ended or expected == 409:
            return
        assert ("idempotent-replayed" in reply.headers) == (kept is not None)
        assert kept is None or kept[1] == reply.content
        self.keyed[place] = (message, reply.content)

    # Conversations

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH, title=st.sampled_from([None, "Weather"]))
    def begin_a_talk(self, which: int, title: str | None) -> None:
        credential = self.credential(which)
        reply = self.ask(credential, "POST", TALKS, 201, json={"title": title})
        if not credential.ended:
            self.talks.append(Talk(reply.json()["id"], credential.owner, title))

    @precondition(lambda self: self.credentials and self.talks)
    @rule(which=WHICH, talk=WHICH)
    def show_a_talk(self, which: int, talk: int) -> None:
        credential, shown = self.credential(which), self.talk(talk)
        there = self.sees(credential, shown)
        reply = self.ask(credential, "GET", f"{TALKS}/{shown.id}", 200 if there else 404)
        if there and not credential.ended:
            self.compare(shown, reply.json())

    def compare(self, talk: Talk, told: dict[str, Any]) -> None:
        assert (told["title"], told["message_count"]) == (talk.title, len(talk.said))
        assert [message["text"] for message in told["messages"]] == talk.said

    @precondition(lambda self: self.credentials and self.talks)
    @rule(which=WHICH, talk=WHICH)
    def rename_a_talk(self, which: int, talk: int) -> None:
        credential, renamed = self.credential(which), self.talk(talk)
        there = self.sees(credential, renamed)
        title = f"title {next(self.names)}"
        self.ask(credential, "PATCH", f"{TALKS}/{renamed.id}", 200 if there else 404, json={"title": title})
        if there and not credential.ended:
            renamed.title = title

    @precondition(lambda self: self.credentials and self.talks)
    @rule(which=WHICH, talk=WHICH, at=WHICH)
    def fork_a_talk(self, which: int, talk: int, at: int) -> None:
        credential, source = self.credential(which), self.talk(talk)
        there = self.sees(credential, source)
        body: dict[str, Any] = {}
        length = len(source.said)
        if there and length and not credential.ended and at % 2:
            shown = self.ask(credential, "GET", f"{TALKS}/{source.id}", 200).json()
            length = at % length + 1
            body = {"up_to": shown["messages"][length - 1]["id"]}
        reply = self.ask(credential, "POST", f"{TALKS}/{source.id}/fork", 201 if there else 404, json=body)
        if there and not credential.ended:
            self.talks.append(Talk(reply.json()["id"], source.owner, source.title, source.said[:length]))

    @precondition(lambda self: self.credentials and self.talks)
    @rule(which=WHICH, talk=WHICH)
    def delete_a_talk(self, which: int, talk: int) -> None:
        credential, deleted = self.credential(which), self.talk(talk)
        there = self.sees(credential, deleted)
        self.ask(credential, "DELETE", f"{TALKS}/{deleted.id}", 204 if there else 404)
        if there and not credential.ended:
            deleted.gone = True

    @precondition(lambda self: self.credentials)
    @rule(which=WHICH)
    def list_the_talks(self, which: int) -> None:
        credential = self.credential(which)
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            params: dict[str, Any] = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            reply = self.ask(credential, "GET", TALKS, 200, params=params)
            if credential.ended:
                return
            found += [talk["id"] for talk in reply.json()["items"]]
            cursor = reply.json()["next_cursor"]
        assert sorted(found) == sorted(talk.id for talk in self.talks if self.sees(credential, talk))

    # Time

    @rule(really=st.sampled_from([False, False, False, False, True]))
    def restart(self, really: bool) -> None:
        if really:
            self.world.stop()
            self.world.start()

    def teardown(self) -> None:
        try:
            for credential in self.credentials:
                self.check_who(credential)
                for talk in self.talks:
                    if not credential.ended and self.sees(credential, talk):
                        self.compare(talk, self.ask(credential, "GET", f"{TALKS}/{talk.id}", 200).json())
        finally:
            # Whatever was found: the next example begins with nobody.
            for person in self.people:
                self.world.send("DELETE", f"{USERS}/{person.id}")
        assert set(self.world.rows_left().values()) == {0}, self.world.rows_left()
        assert len(self.world.send("GET", USERS).json()["items"]) == 1


@contextmanager
def living(tmp_path: Path, database_url: str) -> Generator[World]:
    world = World(tmp_path / "data", database_url)
    try:
        yield world
    finally:
        world.close()


def compared(world: World, *, examples: int, steps: int) -> None:
    class InThisWorld(ApplicationAndModel):
        def __init__(self) -> None:
            super().__init__(world)

    run_state_machine_as_test(
        InThisWorld,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            # To make a divergence smaller would take longer than to read it.
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_the_application_does_what_the_model_says(tmp_path: Path, database_url: str) -> None:
    with living(tmp_path, database_url) as world:
        compared(world, examples=5, steps=30)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_application_does_what_the_model_says_at_length(
    tmp_path: Path, database_url: str, figures: Figures
) -> None:
    examples = 200 if database_url.startswith("sqlite") else 50
    with living(tmp_path, database_url) as world:
        compared(world, examples=examples, steps=50)
    kind = database_url.partition("+")[0]
    figures.note(f"accounts and their model, {kind}", "no divergence", f"none in {examples} examples of 50 steps")
