"""`app.py` after the steps of docs/migrating.md that can be taken alone: `STEP=2 uvicorn steps:app`, up to 4.

Each step contains those before it. `python -m benchmarks.migration` measures them.
"""

import os
from typing import Annotated

import jwt
from fastapi import Depends, HTTPException

import app as before

STEP = int(os.environ["STEP"])


def current_user(token: Annotated[str, Depends(before.bearer)]) -> before.User:
    """The same look-up in a session of its own, which ends before the model is asked."""
    try:
        claims = jwt.decode(token, before.SECRET_KEY, algorithms=["HS256"])
    except jwt.PyJWTError:
        raise HTTPException(401, "Could not validate credentials") from None
    with before.SessionLocal() as db:
        user = db.get(before.User, claims["sub"])
    if user is None:
        raise HTTPException(401, "Could not validate credentials")
    return user


if STEP >= 2:  # the agent and the graph are made once
    agent, graph = before.create_agent(), before.create_graph()
    before.create_agent = lambda: agent
    before.create_graph = lambda: graph
if STEP >= 3:  # no session while the model thinks: that of the handler takes a connection when it records
    before.app.dependency_overrides[before.current_user] = current_user
if STEP >= 4:  # no middlewares
    before.app.user_middleware.clear()
app = before.app
