"""Secrets that can be told apart, sent down every path: none comes out of a log, an answer, a number or the disk."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.process import ServerProcess, providing, serving

PROVIDER_KEY = "sk-canary-provider-0f1e2d3c4b5a"
SIGNING_KEY = "canary-signing-key-0123456789abcdef-0123456789"
PASSWORD = "canary password of the administrator"
WRONG = "canary-wrong-password"
PROMPT = "canary-prompt-8d7c"
FORGED = "mn_canary000000_canarysecretcanarysecret"
FAULTS = ("500", "401", "429", "bad-json", "error-in-200", "reset")

SECRETS = (PROVIDER_KEY, SIGNING_KEY, PASSWORD, WRONG, FORGED)


def told(server: ServerProcess) -> Iterator[tuple[str, str]]:
    """Every answer to requests that carry secrets, headers included, and where it came from."""
    with httpx2.Client(base_url=server.url, headers=server.headers, timeout=60) as client:
        key = client.post("/api/v1/auth/api-keys", json={"name": "canary"}).json()["key"]

        def answered(reply: httpx2.Response) -> tuple[str, str]:
            return f"{reply.request.method} {reply.request.url.path}", f"{reply.headers!r}{reply.text}"

        for fault in FAULTS:
            prompt = {"message": f"fault:{fault} {PROMPT}", "cache": {"mode": "off"}}
            yield answered(client.post("/api/v1/agent/prompt", json=prompt))
            yield answered(client.post("/api/v1/agent/prompt", json={**prompt, "stream": True}))
            messages = [{"role": "user", "content": prompt["message"]}]
            yield answered(client.post("/v1/chat/completions", json={"model": "default", "messages": messages}))
        yield answered(client.post("/api/v1/auth/token", data={"username": "admin", "password": WRONG}))
        yield answered(
            client.post("/api/v1/users", json={"username": "a b", "password": WRONG, "api_key": PROVIDER_KEY})
        )
        yield answered(client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {FORGED}"}))
        yield answered(client.get("/nope", params={"access_token": FORGED, "password": WRONG}))
        yield answered(client.post("/api/v1/auth/password", json={"old_password": WRONG, "new_password": WRONG + "2"}))
        for path in (
            *("metrics", "agent-pool", "cache", "health-detailed", "history", "requests"),
            *("../../../metrics", "../../../readyz", "../../../openapi.json"),
            *("../agents", "../agents/default", "../auth/me", "../auth/api-keys", "../users"),
        ):
            where, text = answered(client.get(f"/api/v1/performance/{path}"))
            assert key not in text
            assert PROMPT not in text, where
            yield where, text
        secret = key.rpartition("_")[2]
        assert not [file for file in files_of(server) if secret.encode() in file.read_bytes()]
        assert secret not in server.output()


def files_of(server: ServerProcess) -> list[Path]:
    data = Path(server.printed.name).parent / "data"
    return [file for file in data.rglob("*") if file.is_file()]


@pytest.mark.parametrize("log_format", ["json", pytest.param("text", marks=pytest.mark.soak)])
def test_no_secret_comes_out_anywhere(tmp_path: Path, log_format: str) -> None:
    with (
        providing() as provider,
        serving(
            tmp_path,
            ADMIN_PASSWORD=PASSWORD,
            SECRET_KEY=SIGNING_KEY,
            OPENAI_API_KEY=PROVIDER_KEY,
            OPENAI_BASE_URL=provider.base_url,
            DEFAULT_MODEL="openai-chat:gpt-4o-mini",
            LOG_LEVEL="debug",
            LOG_FORMAT=log_format,
        ) as server,
    ):
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        token = server.headers["Authorization"].removeprefix("Bearer ")
        answers = list(told(server))
        assert provider.stats()["calls"] >= 5, "the faults were met, until the breaker opened"
        for where, text in answers:
            assert not [secret for secret in (*SECRETS, token) if secret in text], where
        assert server.stop() == 0
        log = server.output()
        # The control: the log speaks of these requests.
        assert log.count("/api/v1/agent/prompt") >= len(FAULTS)
        assert not [secret for secret in (*SECRETS, token, PROMPT) if secret in log]
        if log_format == "json":
            assert json.loads(next(line for line in log.splitlines() if line.startswith("{")))
        kept = [file for file in files_of(server) if any(secret.encode() in file.read_bytes() for secret in SECRETS)]
        assert kept == []


def test_what_is_on_the_disk_is_its_owners_alone(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        server.wait_for("/readyz")
        server.sign_in()
        assert server.prompt("Hello").status_code == 200
        data = tmp_path / "data"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "secret.key").stat().st_mode) == 0o600
        assert len((data / "secret.key").read_bytes()) >= 32
        password = server.first_password()
        assert len(password) >= 20
        assert not [file for file in files_of(server) if password.encode() in file.read_bytes()]
        for guess in ("admin", "password", "mnemosine", "changeme"):
            reply = httpx2.post(f"{server.url}/api/v1/auth/token", data={"username": "admin", "password": guess})
            assert reply.status_code == 401
        assert len(re.findall(re.escape(password), server.output())) == 1
