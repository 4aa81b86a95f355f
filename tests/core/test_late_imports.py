"""Types of OpenAI's SDK that are imported late are the same, and all of them can still be had.

Each case is a process of its own: what has been imported cannot be imported anew.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.core.late_imports import passed_on

LATE = "from app.core.late_imports import import_types_late; import_types_late()\n"
NAMES = """
import importlib, json, pkgutil, sys, types
import openai, openai.types
found = {}
for one in [openai.types.__name__, *(m.name for m in pkgutil.walk_packages(openai.types.__path__, "openai.types."))]:
    module = importlib.import_module(one)
    if hasattr(module, "__path__"):
        found[one] = {
            name: [type(value).__name__, getattr(value, "__module__", ""), getattr(value, "__qualname__", str(value))]
            for name, value in ((name, getattr(module, name)) for name in dir(module))
            if not name.startswith("__") and name != "annotations" and not isinstance(value, types.ModuleType)
        }
print(json.dumps(found))
"""
LOADED = """
import json, sys
import app.core.agent_stack
print(json.dumps(sum(name.startswith("openai.types.") for name in sys.modules)))
"""
PREPARED = """
import asyncio
from pathlib import Path
from app.config import load_settings
from app.installation import prepare
asyncio.run(prepare(load_settings(None, data_dir=Path({folder!r}), late_imports={late})))
"""
EVERYTHING = """
import importlib, json, pkgutil
import openai, pydantic_ai.models.openai
failed = {}
for module in pkgutil.walk_packages(openai.__path__, "openai.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = type(error).__name__
print(json.dumps(failed))
"""
ANSWERED = """
import asyncio, json
import httpx2
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "from chat"}}],
}
TEXT = {"type": "output_text", "text": "from responses", "annotations": []}
RESPONSES = {
    "id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "tools": [],
    "parallel_tool_calls": True, "tool_choice": "auto",
    "output": [{"id": "o", "type": "message", "role": "assistant", "status": "completed", "content": [TEXT]}],
}

def answer(request):
    return httpx2.Response(200, json=RESPONSES if request.url.path.endswith("/responses") else CHAT)

async def main():
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    provider = OpenAIProvider(openai_client=AsyncOpenAI(api_key="any", base_url="http://x/v1", http_client=client))
    models = OpenAIChatModel("m", provider=provider), OpenAIResponsesModel("m", provider=provider)
    said = [(await Agent(model).run("?")).output for model in models]
    print(json.dumps(said))

asyncio.run(main())
"""


def said_by(script: str) -> Any:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_name_means_the_same() -> None:
    at_once, late = said_by(NAMES), said_by(LATE + NAMES)
    assert sum(map(len, at_once.values())) > 500, "the control: there are names to compare"
    assert late == at_once


def test_what_nobody_uses_is_not_imported() -> None:
    at_once, late = said_by(LOADED), said_by(LATE + LOADED)
    assert at_once > 400
    assert late < at_once / 2


def test_the_setting_decides(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    late, at_once = (said_by(PREPARED.format(folder=folder, late=late) + LOADED) for late in (True, False))
    assert late < at_once / 2


def test_every_module_of_the_sdk_can_be_imported() -> None:
    assert said_by(LATE + EVERYTHING) == said_by(EVERYTHING)


def test_both_of_openais_apis_answer() -> None:
    assert said_by(LATE + ANSWERED) == ["from chat", "from responses"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    script = "import json, openai.types.chat as chat\nprint(json.dumps(hasattr(chat, 'Nothing')))"
    assert said_by(LATE + script) is False


def test_a_star_gives_every_name() -> None:
    script = "import json\nfrom openai.types.chat import *\nprint(json.dumps(ChatCompletion.__module__))"
    assert said_by(LATE + script) == "openai.types.chat.chat_completion"


def test_only_a_source_that_passes_on_names_is_taken_for_one() -> None:
    head = "from __future__ import annotations\n"
    assert passed_on(f"{head}from .a import B as B, c as d\n") == {"B": ("a", "B"), "d": ("a", "c")}
    for more in ("import os", "from os import path", "from . import a", "from .a import *", "x = 1", "'text'"):
        assert passed_on(f"{head}from .a import B\n{more}\n") is None
