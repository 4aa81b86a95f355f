"""An agent and a real MCP server: entered once, left at the end, and called anew after it went away."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from app.core.agent_pool import AgentPool
from app.core.agents import AgentDefinition
from app.core.models import Models
from app.errors import Unavailable

SERVER = Path(__file__).parent / "stock_server.py"


def ask_the_stock(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool, then say what it returned."""
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    said = [str(part.content) for part in last.parts if isinstance(part, ToolReturnPart)]
    if said:
        return ModelResponse(parts=[TextPart(said[0])])
    return ModelResponse(parts=[ToolCallPart("in_stock", {"article": "lamps"})])


class Stock:
    """An agent whose one tool is on a server, in a pool whose clock is turned by hand."""

    def __init__(self, toolset: MCPToolset[object], starts: Path) -> None:
        self.now = 0.0
        self.starts = starts
        self.pool = AgentPool(Models(), capacity=2, wait_s=60.0, clock=lambda: self.now)
        self.definition = definition_of(toolset)

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in self.starts.read_text().split()]

    async def ask(self) -> str:
        async with self.pool.lease(self.definition) as entry:
            return (await entry.agent.run("how many lamps?")).output


def definition_of(toolset: MCPToolset[object]) -> AgentDefinition:
    model = FunctionModel(ask_the_stock)
    agent = Agent(model, name="stock", toolsets=[toolset])
    return AgentDefinition(name="stock", model=model.model_id, prototype=agent, own_model=model)


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    path = tmp_path / "starts"
    path.touch()
    return path


@pytest.fixture
async def stock(starts: Path) -> AsyncIterator[Stock]:
    environment = {**os.environ, "STARTS": str(starts)}
    # FastMCP would keep the process for the next session.
    transport = StdioTransport(sys.executable, [str(SERVER)], env=environment, keep_alive=False)
    stock = Stock(MCPToolset(transport), starts)
    yield stock
    await stock.pool.aclose()


async def test_many_runs_share_one_session_and_the_end_of_the_pool_ends_the_server(stock: Stock) -> None:
    assert set(await asyncio.gather(*(stock.ask() for _ in range(20)))) == {"7 of lamps"}
    (pid,) = stock.pids
    assert psutil.pid_exists(pid)
    await stock.pool.aclose()
    assert not is_running(pid)


async def test_a_server_that_died_is_called_anew(stock: Stock) -> None:
    assert await stock.ask() == "7 of lamps"
    os.kill(stock.pids[-1], signal.SIGKILL)
    stock.now += 2
    assert await asyncio.gather(*(stock.ask() for _ in range(8))) == ["7 of lamps"] * 8
    assert len(stock.pids) == 2
    assert len(stock.pool) == 1


async def test_it_is_asked_once_a_second_at_most(stock: Stock) -> None:
    async with stock.pool.lease(stock.definition) as entry:
        servers = entry.tool_servers
    assert servers is not None
    os.kill(stock.pids[-1], signal.SIGKILL)
    assert await servers.are_there(), "within the second of the first question"
    stock.now += 1
    assert not await servers.are_there()


async def test_whoever_comes_while_a_run_holds_the_lost_session_waits_for_its_end(stock: Stock) -> None:
    async with stock.pool.lease(stock.definition):
        os.kill(stock.pids[-1], signal.SIGKILL)
        stock.now += 2
        waiting = asyncio.create_task(stock.ask())
        await asyncio.sleep(0.3)
        assert not waiting.done()
    assert await waiting == "7 of lamps"


async def test_a_run_that_holds_it_too_long_costs_the_others_a_503(stock: Stock) -> None:
    stock.pool = AgentPool(Models(), capacity=2, wait_s=0.2, clock=lambda: stock.now)
    async with stock.pool.lease(stock.definition):
        os.kill(stock.pids[-1], signal.SIGKILL)
        stock.now += 2
        with pytest.raises(Unavailable, match="runs still hold on to it"):
            await stock.ask()
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await stock.ask()
                break
            except Unavailable:
                await asyncio.sleep(0.1)
    assert answer == "7 of lamps"
    assert len(stock.pids) == 2


class HttpServer:
    """The same server on a port."""

    def __init__(self, starts: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._starts = starts
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(SERVER), str(self.port)),
            env={**os.environ, "STARTS": str(self._starts)},
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@pytest.fixture
async def http(starts: Path) -> AsyncIterator[HttpServer]:
    server = HttpServer(starts)
    yield server
    await server.kill()


async def test_a_server_behind_a_url_that_was_restarted_is_called_anew(http: HttpServer, starts: Path) -> None:
    await http.start()
    stock = Stock(MCPToolset(f"http://127.0.0.1:{http.port}/mcp"), starts)
    assert await stock.ask() == "7 of lamps"
    await http.kill()
    stock.now += 2
    with pytest.raises(Unavailable, match="tool server of the agent stock does not answer"):
        await stock.ask()
    await http.start()
    assert await stock.ask() == "7 of lamps"
    assert len(stock.pids) == 2
    await stock.pool.aclose()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
