"""FastAPI passing straight through to the provider, and plain FastAPI with shared Pydantic AI agents."""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from bare import ask
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_ai import Agent

app = FastAPI()
agents = {
    name: Agent(os.environ["DEFAULT_MODEL"], instructions="You are a helpful assistant.")
    for name in ("default", "weatherman")
}


@agents["weatherman"].tool_plain
def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


class Prompt(BaseModel):
    message: str
    agent: str = "default"
    stream: bool = False


class Reply(BaseModel):
    response: str


@app.get("/health")
def health() -> dict[str, str]:
    return {}


@app.post("/pass")
async def passed_on(prompt: Prompt) -> Reply:
    async with await ask(prompt.message) as response:
        reply = json.loads(await response.read())
    return Reply(response=reply["choices"][0]["message"]["content"])


@app.post("/agent", response_model=Reply)
async def run(prompt: Prompt) -> Any:
    if prompt.stream:
        return StreamingResponse(deltas(prompt), media_type="text/event-stream")
    return Reply(response=(await agents[prompt.agent].run(prompt.message)).output)


async def deltas(prompt: Prompt) -> AsyncIterator[str]:
    async with agents[prompt.agent].run_stream(prompt.message) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            yield f"event: delta\ndata: {json.dumps({'text': text})}\n\n"
    yield "event: done\ndata: {}\n\n"
