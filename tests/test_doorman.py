"""While the server is being loaded: health is answered, and whoever else comes is kept and served."""

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest

from app.server import Doorman, bind
from tests.process import free_port, running

PASSWORD = "a passphrase for tests"


def ask(port: int, request: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(request)
    return client


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def answer(client: socket.socket) -> tuple[str, bytes]:
    """The status line and the body; the connection is closed."""
    with client, client.makefile("rb") as reader:
        status = reader.readline().decode().strip()
        length = 0
        while (line := reader.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return status, reader.read(length)


def test_health_is_answered_and_everybody_else_is_kept_untouched() -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    doorman = Doorman(listener)
    doorman.start()
    other = ask(port, get("/docs"))
    silent = socket.create_connection(("127.0.0.1", port))
    assert answer(ask(port, get("/livez"))) == ("HTTP/1.1 200 OK", b'{"status":"alive"}')
    status, body = answer(ask(port, get("/readyz")))
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert json.loads(body)["status"] == "starting"
    # A head in two pieces is left to the server, whole.
    slow = ask(port, b"GET /livez HTTP/1.1\r\n")
    assert answer(ask(port, get("/livez")))[0] == "HTTP/1.1 200 OK"
    kept = doorman.leave()
    seen = {one.getpeername(): one for one in kept}
    assert set(seen) == {other.getsockname(), silent.getsockname(), slow.getsockname()}
    assert seen[other.getsockname()].recv(1000) == get("/docs")
    assert seen[slow.getsockname()].recv(1000) == b"GET /livez HTTP/1.1\r\n"
    for one in (*kept, other, silent, slow, listener):
        one.close()


def test_who_hangs_up_is_forgotten() -> None:
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    doorman = Doorman(listener)
    doorman.start()
    for _ in range(20):
        socket.create_connection(("127.0.0.1", port)).close()
    for _ in range(3):
        assert answer(ask(port, get("/livez")))[0] == "HTTP/1.1 200 OK"
    assert doorman.leave() == []
    listener.close()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_lives_at_once_and_loses_nobody_who_came_early(tmp_path: Path, workers: str) -> None:
    port = free_port()
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "numbers").mkdir(mode=0o700)  # as any server leaves it behind
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), "--workers", workers]
    with running(command, tmp_path, port=port, ADMIN_PASSWORD=PASSWORD, DEFAULT_MODEL="offline") as server:
        async with asyncio.timeout(60):
            while True:
                try:
                    early = socket.create_connection(("127.0.0.1", port))
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
        form = f"username=admin&password={PASSWORD.replace(' ', '+')}".encode()
        early.settimeout(60)
        head = (
            "POST /api/v1/auth/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        )
        early.sendall(f"{head}Content-Length: {len(form)}\r\n\r\n".encode() + form)
        status, body = await asyncio.to_thread(answer, ask(port, get("/livez")))
        assert (status, json.loads(body)) == ("HTTP/1.1 200 OK", {"status": "alive"})
        assert "listens on" not in server.output(), "the control: it has not been loaded yet"
        status, body = await asyncio.to_thread(answer, early)
        assert status == "HTTP/1.1 200 OK", server.output()
        assert json.loads(body)["access_token"]
        await asyncio.to_thread(server.wait_for, "/readyz")
        # Whose connection was kept has left nothing open in the parent or in another worker.
        assert server.stop() == 0
