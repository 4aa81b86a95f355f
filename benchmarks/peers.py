"""The peers: other ways to serve the same prompts, one worker each, as their own documentation starts them.

Same fake provider, same question, tokens checked where the peer can. What they are configured with stands in
`peer_applications/`; uvloop and httptools where the command line is ours, and no telemetry.
"""

import json
from urllib.parse import quote_plus

from app.load import NONCE
from benchmarks.subjects import HERE, ON_PORT, QUESTION, UVICORN, Subject, Way, ways

FOLDER = HERE / "peer_applications"


def _chat(**fields: bool) -> Way:
    body = {"model": "fake", "messages": [{"role": "user", "content": QUESTION}], **fields}
    return Way("/v1/chat/completions", json.dumps(body))


def _form(stream: str) -> Way:
    message = NONCE.join(quote_plus(part) for part in QUESTION.split(NONCE))
    body = f"message={message}&stream={stream}"
    return Way("/agents/default/runs", body, "application/x-www-form-urlencoded", ("event: RunCompleted",))


LITELLM = Subject(
    "LiteLLM",
    "litellm",
    ("-r", str(FOLDER / "litellm.txt")),
    ("-m", "litellm.proxy.proxy_cli", "--config", "litellm.yaml", "--host", "127.0.0.1", *ON_PORT,
     "--num_workers", "{workers}"),
    {"uncached": _chat(), "cached": _chat(), "stream": _chat(stream=True)},
    folder=FOLDER,
    token="sk-bench",
    env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    versions=("litellm",),
)  # fmt: skip
AGNO = Subject(
    "Agno AgentOS",
    "agno",
    ("-r", str(FOLDER / "agno.txt")),
    (*UVICORN, *ON_PORT, "agno_app:app"),
    {"uncached": _form("false"), "stream": _form("true")},
    folder=FOLDER,
    env={"OS_SECURITY_KEY": "bench", "AGNO_TELEMETRY": "false"},
    versions=("agno", "fastapi", "openai"),
)
LANGGRAPH = Subject(
    "FastAPI + LangGraph",
    "langgraph",
    ("-r", str(FOLDER / "langgraph.txt")),
    (*UVICORN, *ON_PORT, "langgraph_app:app"),
    ways("/prompt"),
    folder=FOLDER,
    versions=("fastapi", "langgraph", "langchain-openai"),
)
PEERS = (LITELLM, AGNO, LANGGRAPH)
