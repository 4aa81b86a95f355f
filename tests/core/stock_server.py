"""A real MCP server with one tool, for the tests: over its standard streams, or on the port that it is given.

Each start adds its process id to the file that `STARTS` names.
"""

import os
import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("stock")


@server.tool()
def in_stock(article: str) -> str:
    """How many of `article` there are."""
    return f"7 of {article}"


if __name__ == "__main__":
    with Path(os.environ["STARTS"]).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
