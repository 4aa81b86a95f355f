"""LangChain, the Vercel AI SDK and Open WebUI, where they are installed; each in an environment of its own.

`LANGCHAIN_PYTHON` is a Python that has `langchain-openai`, `AI_SDK` a folder where npm installed `ai` and
`@ai-sdk/openai`, `OPEN_WEBUI` the command `open-webui`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.process import free_port, running
from tests.wire.conftest import Wire

CLIENTS = Path(__file__).parent.parent / "clients"


def say(wire: Wire, *command: str) -> dict[str, Any]:
    told = {"BASE_URL": wire.base_url, "API_KEY": wire.key, "PATH": os.environ["PATH"]}
    told["AI_SDK"] = os.environ.get("AI_SDK", "")
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def judge(said: dict[str, Any], name: str) -> None:
    assert f"nonce:{name}-plain" in said["plain"]
    assert f"nonce:{name}-streamed" in said["streamed"]
    assert said["pieces"] > 1
    assert said["tokens"] > 0


def test_langchain_asks_plainly_and_streamed(wire: Wire) -> None:
    python = os.environ.get("LANGCHAIN_PYTHON")
    if python is None:
        pytest.skip("LANGCHAIN_PYTHON names no Python that has langchain-openai")
    judge(say(wire, python, str(CLIENTS / "langchain_chat.py")), "langchain")


def test_the_vercel_ai_sdk_asks_plainly_and_streamed(wire: Wire) -> None:
    node = shutil.which("node")
    if node is None or "AI_SDK" not in os.environ:
        pytest.skip("AI_SDK names no folder where npm installed ai and @ai-sdk/openai, or node is absent")
    said = say(wire, node, str(CLIENTS / "ai_sdk.mjs"))
    judge(said["chat"], "ai-chat")
    judge(said["responses"], "ai-responses")


def test_open_webui_chats_plainly_and_streamed(wire: Wire, tmp_path: Path) -> None:
    command = os.environ.get("OPEN_WEBUI")
    if command is None:
        pytest.skip("OPEN_WEBUI names no command open-webui")
    port = free_port()
    options = {
        "HOME": str(tmp_path),
        "OPENAI_API_BASE_URL": wire.base_url,
        "OPENAI_API_KEY": wire.key,
        "ENABLE_OLLAMA_API": "false",
        "OFFLINE_MODE": "true",
        # The alternative loads a model of its own.
        "RAG_EMBEDDING_ENGINE": "openai",
        "WEBUI_AUTH": "false",
        "WEBUI_SECRET_KEY": "of one test",
    }
    (tmp_path / "data").mkdir()
    with running([command, "serve", "--host", "127.0.0.1", "--port", str(port)], tmp_path, port=port, **options) as ui:
        ui.wait_for("/health")
        with httpx2.Client(base_url=ui.url, timeout=30) as client:
            signed_in = client.post("/api/v1/auths/signin", json={"email": "", "password": ""})
            client.headers["Authorization"] = f"Bearer {signed_in.json()['token']}"
            assert "default" in [model["id"] for model in client.get("/api/models").json()["data"]]

            def ask(message: str, *, stream: bool) -> httpx2.Response:
                talk = [{"role": "user", "content": message}]
                body = {"model": "default", "messages": talk, "stream": stream}
                return client.post("/api/chat/completions", json=body).raise_for_status()

            plain = ask("nonce:webui-plain", stream=False).json()
            assert "nonce:webui-plain" in plain["choices"][0]["message"]["content"]
            streamed = ask("nonce:webui-streamed", stream=True).text
            assert streamed.rstrip().endswith("data: [DONE]")
            chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
            said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
            assert "nonce:webui-streamed" in said
        ui.stop()
