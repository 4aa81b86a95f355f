"""The backend as most people first write it: what `make bench` compares with.

Nothing here is slowed down on purpose; every line is what tutorials show. See README.md.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel
from pydantic_ai import Agent
from sqlalchemy import Float, String, Text, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response

SECRET_KEY = os.environ["SECRET_KEY"]
MODEL = os.environ.get("DEFAULT_MODEL", "openai-chat:gpt-5-mini")

engine = create_engine(
    f"sqlite:///{os.environ.get('DATA_DIR', '.')}/before.db",
    connect_args={"check_same_thread": False},
    pool_size=20,
    max_overflow=30,
)
SessionLocal = sessionmaker(engine)
hasher = PasswordHasher()
bearer = OAuth2PasswordBearer(tokenUrl="/api/v1/auth/token")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    username: Mapped[str] = mapped_column(String(64), primary_key=True)
    password_hash: Mapped[str] = mapped_column(String(200))


class Run(Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    username: Mapped[str] = mapped_column(String(64))
    prompt: Mapped[str] = mapped_column(Text)
    response: Mapped[str] = mapped_column(Text)
    seconds: Mapped[float] = mapped_column(Float)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    Base.metadata.create_all(engine)
    with SessionLocal() as db:
        name = os.environ.get("ADMIN_USERNAME", "admin")
        if db.get(User, name) is None:
            db.add(User(username=name, password_hash=hasher.hash(os.environ["ADMIN_PASSWORD"])))
            db.commit()
    yield


app = FastAPI(lifespan=lifespan)


class RequestId(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Request-ID"] = request.headers.get("X-Request-ID") or uuid4().hex
        return response


class Timing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        started = time.perf_counter()
        response = await call_next(request)
        response.headers["X-Process-Time"] = str(time.perf_counter() - started)
        return response


class SecurityHeaders(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


for middleware in (RequestId, Timing, SecurityHeaders):
    app.add_middleware(middleware)


def get_db() -> Iterator[Session]:
    with SessionLocal() as db:
        yield db


Db = Annotated[Session, Depends(get_db)]


def current_user(token: Annotated[str, Depends(bearer)], db: Db) -> User:
    try:
        claims = jwt.decode(token, SECRET_KEY, algorithms=["HS256"])
    except jwt.PyJWTError:
        raise HTTPException(401, "Could not validate credentials") from None
    user = db.get(User, claims["sub"])
    if user is None:
        raise HTTPException(401, "Could not validate credentials")
    return user


class Prompt(BaseModel):
    message: str
    stream: bool = False


class Reply(BaseModel):
    id: str
    response: str
    model: str


def create_agent() -> Agent:
    return Agent(MODEL, instructions="You are a helpful assistant.")


async def call_agent(state: MessagesState) -> dict[str, Any]:
    result = await create_agent().run(str(state["messages"][-1].content))
    return {"messages": [AIMessage(result.output)]}


def create_graph() -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("agent", call_agent)
    graph.add_edge(START, "agent")
    graph.add_edge("agent", END)
    return graph.compile()


def record(db: Session, user: User, prompt: str, response: str, started: float) -> str:
    run = Run(
        id=str(uuid4()),
        username=user.username,
        prompt=prompt,
        response=response,
        seconds=time.perf_counter() - started,
    )
    db.add(run)
    db.commit()
    return run.id


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/api/v1/auth/token")
def token(form: Annotated[OAuth2PasswordRequestForm, Depends()], db: Db) -> dict[str, str]:
    user = db.scalar(select(User).where(User.username == form.username))
    try:
        if user is None:
            raise HTTPException(401, "Incorrect username or password")
        hasher.verify(user.password_hash, form.password)
    except VerifyMismatchError:
        raise HTTPException(401, "Incorrect username or password") from None
    claims = {"sub": user.username, "exp": datetime.now(UTC) + timedelta(hours=1)}
    return {"access_token": jwt.encode(claims, SECRET_KEY, algorithm="HS256"), "token_type": "bearer"}


@app.post("/api/v1/agent/prompt", response_model=Reply)
async def prompt(body: Prompt, user: Annotated[User, Depends(current_user)], db: Db) -> Any:
    started = time.perf_counter()
    if body.stream:
        return StreamingResponse(stream(body, user, db, started), media_type="text/event-stream")
    state = await create_graph().ainvoke({"messages": [HumanMessage(body.message)]})
    response = str(state["messages"][-1].content)
    return Reply(id=record(db, user, body.message, response, started), response=response, model=MODEL)


async def stream(body: Prompt, user: User, db: Session, started: float) -> AsyncIterator[str]:
    async with create_agent().run_stream(body.message) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            yield f"event: delta\ndata: {Delta(text=text).model_dump_json()}\n\n"
        whole = await result.get_output()
    done = Reply(id=record(db, user, body.message, whole, started), response=whole, model=MODEL)
    yield f"event: done\ndata: {done.model_dump_json()}\n\n"


class Delta(BaseModel):
    text: str
