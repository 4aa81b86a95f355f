"""What this machine can do at best: bare ASGI, with the checks of a cached hit, or passing on to the provider.

`/cached` does what any honest hit must do: knows the token again, hashes the body, looks it up, counts the caller
against a limit. `/pass` sends the message to the provider with aiohttp and returns its text.
"""

import hashlib
import json
import os
import time
from typing import Any

import aiohttp

TOKEN = f"Bearer {os.environ['BENCH_TOKEN']}".encode()
URL = os.environ["OPENAI_BASE_URL"] + "/chat/completions"

known = {hashlib.sha256(TOKEN).digest(): ("user", time.monotonic() + 3600)}
answers: dict[bytes, tuple[float, bytes]] = {}
counts: dict[str, tuple[float, int]] = {}
session: aiohttp.ClientSession | None = None


async def ask(message: str, *, streamed: bool = False) -> aiohttp.ClientResponse:
    global session
    if session is None:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    body = {"model": "fake", "messages": [{"role": "user", "content": message}], "stream": streamed}
    return await session.post(URL, data=json.dumps(body), headers={"content-type": "application/json"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = dict(scope["headers"])
    if scope["path"] == "/health":
        await answer(send, 200, b"{}")
        return
    now = time.monotonic()
    caller, until = known.get(hashlib.sha256(headers.get(b"authorization", b"")).digest(), ("", 0.0))
    if until < now:
        await answer(send, 401, b"{}")
        return
    if scope["path"] == "/cached":
        begun, count = counts.get(caller, (now, 0))
        counts[caller] = (now, 1) if now - begun > 60 else (begun, count + 1)
        key = hashlib.sha256(caller.encode() + body).digest()
        found = answers.get(key)
        if found is None or found[0] < now:
            text = json.loads(body)["message"]
            found = answers[key] = (now + 3600, json.dumps({"response": text}).encode())
        await answer(send, 200, found[1])
        return
    question = json.loads(body)
    async with await ask(question["message"], streamed=question.get("stream", False)) as response:
        if not question.get("stream"):
            reply = json.loads(await response.read())
            text = reply["choices"][0]["message"]["content"]
            await answer(send, 200, json.dumps({"response": text}).encode())
            return
        start = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        async for piece in response.content.iter_any():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
