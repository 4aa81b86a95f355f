"""A running server as a command sees it: over HTTP, with its refusals as our errors."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.parse import quote

import click
import httpx2

from app.errors import MnemosineError, NotAuthenticated, Unavailable

_CONNECT_S = 5.0
_SILENCE_S = 120.0
"""A stream says something every 15 s; an answer in one piece may take as long as MODEL_TIMEOUT_SECONDS."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a streamed answer, as `docs/reference/events.md` lists them."""

    name: str
    data: dict[str, Any]


class Served:
    """The server at `url`, asked with one credential. Every failure is a `MnemosineError` fit for one line."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise click.BadParameter(f"{url!r} is no address; example: http://127.0.0.1:8000", param_hint="--url")
        self._http = httpx2.Client(base_url=self.url, timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S))
        if key is not None:
            self._authorize(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def sign_in(self, username: str, password: str) -> None:
        """Send what follows as this user. Raises `NotAuthenticated` where the server does not know them."""
        form = {"username": username, "password": password}
        self._authorize(self._json("POST", "/api/v1/auth/token", data=form)["access_token"])

    def agent(self, name: str) -> dict[str, Any]:
        """What the server tells about an agent."""
        return self._json("GET", f"/api/v1/agents/{quote(name, safe='')}")

    def begin_conversation(self) -> str:
        """The id of a new conversation."""
        return self._json("POST", "/api/v1/conversations", json={})["id"]

    @contextmanager
    def asking(self, prompt: Mapping[str, Any]) -> Generator[tuple[str, Iterator[Event]]]:
        """How the cache took part, and the events of the answer; leaving the block early ends the run."""
        with (
            self._translated(),
            self._http.stream("POST", "/api/v1/agent/prompt", json={**prompt, "stream": True}) as reply,
        ):
            if reply.is_error:
                reply.read()
                self._refuse(reply)
            yield reply.headers.get("x-cache", "-"), self._events(reply)

    def _events(self, reply: httpx2.Response) -> Iterator[Event]:
        for event in httpx2.EventSource(reply, max_event_size=None):
            data = cast("dict[str, Any]", event.json())
            if event.event == "error":
                raise MnemosineError(str(data["detail"]))
            yield Event(event.event, data)
            if event.event == "done":
                return
        raise Unavailable(f"the answer of {self.url} was cut off")

    def _json(self, method: str, path: str, **body: Any) -> Any:
        with self._translated():
            reply = self._http.request(method, path, **body)
        if reply.is_error:
            self._refuse(reply)
        return reply.json()

    def _authorize(self, credential: str) -> None:
        if not (credential.isascii() and credential.isprintable()):
            raise NotAuthenticated("the key has characters that no key has; copy it again")
        self._http.headers["Authorization"] = f"Bearer {credential}"

    def _refuse(self, reply: httpx2.Response) -> None:
        try:
            detail = str(reply.json()["detail"])
        except (ValueError, KeyError, TypeError):
            raise MnemosineError(
                f"{self.url} answered {reply.status_code}, and not as Mnemosine does; is something else running there?"
            ) from None
        raise (NotAuthenticated if reply.status_code == 401 else MnemosineError)(detail)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unavailable(
                f"nothing answers at {self.url}; start it with `mnemosine serve`, or name another address by --url"
            ) from error
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{self.url} said nothing for {_SILENCE_S:g} s") from error
        except httpx2.TransportError as error:
            raise Unavailable(f"the connection to {self.url} broke off") from error
