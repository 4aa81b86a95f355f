"""What we are compared with: FastAPI around `agent.run` and `run_stream`, one agent object, the SDK's model.

    uvicorn --factory benchmarks.plain_application:create_app

`talker` and `weatherman` are the same agents without a model, for `mnemosine serve`.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_ai import Agent

MODEL = "openai-chat:gpt-4o-mini"


def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def make_agents(model: str | None) -> dict[str, Agent[None, str]]:
    return {
        "talker": Agent(model, name="talker", instructions="Be short."),
        "weatherman": Agent(model, name="weatherman", instructions="Be short.", tools=[weather]),
    }


talker, weatherman = make_agents(None).values()


class Prompt(BaseModel):
    message: str
    agent: str = "talker"


def create_app() -> FastAPI:
    app, agents = FastAPI(), make_agents(MODEL)

    @app.post("/prompt")
    async def prompt(question: Prompt) -> dict[str, Any]:
        result = await agents[question.agent].run(question.message)
        return {"response": result.output}

    @app.post("/stream")
    async def stream(question: Prompt) -> StreamingResponse:
        async def deltas() -> AsyncIterator[str]:
            async with agents[question.agent].run_stream(question.message) as result:
                async for text in result.stream_text(delta=True, debounce_by=None):
                    yield f"event: delta\ndata: {json.dumps({'text': text})}\n\n"
            yield "event: done\ndata: {}\n\n"

        return StreamingResponse(deltas(), media_type="text/event-stream")

    @app.get("/livez")
    async def livez() -> str:
        return "yes"

    return app
