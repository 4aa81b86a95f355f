"""A LangGraph graph behind FastAPI, compiled once, with one client for its model, as a careful author writes it."""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

app = FastAPI()
model = ChatOpenAI(model="fake", base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"])
instructions = SystemMessage("You are a helpful assistant.")


async def call_model(state: MessagesState) -> dict[str, Any]:
    return {"messages": [await model.ainvoke([instructions, *state["messages"]])]}


builder = StateGraph(MessagesState)
builder.add_node("model", call_model)
builder.add_edge(START, "model")
builder.add_edge("model", END)
graph = builder.compile()


class Prompt(BaseModel):
    message: str
    stream: bool = False


class Reply(BaseModel):
    response: str


@app.post("/prompt", response_model=Reply)
async def prompt(prompt: Prompt) -> Any:
    if prompt.stream:
        return StreamingResponse(deltas(prompt.message), media_type="text/event-stream")
    state = await graph.ainvoke({"messages": [HumanMessage(prompt.message)]})
    return Reply(response=str(state["messages"][-1].content))


async def deltas(message: str) -> AsyncIterator[str]:
    async for chunk, _ in graph.astream({"messages": [HumanMessage(message)]}, stream_mode="messages"):
        yield f"event: delta\ndata: {json.dumps({'text': chunk.content})}\n\n"
    yield "event: done\ndata: {}\n\n"
