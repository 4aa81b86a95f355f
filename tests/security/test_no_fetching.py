"""No field of a request makes the server open an address: a listener that every field names hears nothing."""

import asyncio
import socket
from pathlib import Path
from typing import Any

from tests.application import open_application

PROMPT, CHAT, RESPONSES = "/api/v1/agent/prompt", "/v1/chat/completions", "/v1/responses"


def picture(kind: str, url: str) -> dict[str, Any]:
    if kind == CHAT:
        content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        return {"model": "default", "messages": [{"role": "user", "content": content}]}
    content = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url}]
    return {"model": "default", "input": [{"role": "user", "content": content}]}


async def test_no_address_in_a_request_is_opened(tmp_path: Path) -> None:
    heard = 0

    def hear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += 1
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    urls = [
        *(f"http://127.0.0.1:{port}/a.png", f"http://2130706433:{port}/a.png", f"http://[::ffff:127.0.0.1]:{port}/"),
        *(f"http://localhost:{port}/", f"ftp://127.0.0.1:{port}/", f"//127.0.0.1:{port}/", "file:///etc/passwd"),
    ]
    async with server, open_application(tmp_path) as application:
        for url in urls:
            tried: list[tuple[str, dict[str, Any]]] = [
                (PROMPT, {"message": f"Read {url}"}),
                (PROMPT, {"message": "a", "model": url}),
                (PROMPT, {"message": "a", "agent": url}),
                (PROMPT, {"message": "a", "base_url": url, "api_base": url}),
                (CHAT, {"model": url, "messages": [{"role": "user", "content": "a"}], "base_url": url}),
                (CHAT, picture(CHAT, url)),
                (RESPONSES, picture(RESPONSES, url)),
            ]
            for path, body in tried:
                reply = await application.client.post(path, json=body)
                assert reply.status_code < 500, f"{path} {body}"
                assert "root:" not in reply.text
        assert heard == 0
        # The control: the listener hears whoever comes.
        with socket.create_connection(("127.0.0.1", port)):
            while not heard:
                await asyncio.sleep(0.01)
