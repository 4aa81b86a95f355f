"""What is ours in an agent's metadata, under `mnemosine`: cache, concurrency, fallbacks, effects of tools.

Descriptions are said to Pydantic, which would otherwise read this file at every start to find them (30 ms of CPU).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Effect = Literal["pure", "read", "write"]
"""What calling a tool does: nothing, it looks at the world, or it changes it. Undeclared counts as `write`."""

ModelName = Annotated[str, Field(pattern=r"^(offline|[a-z][a-z0-9+_\-/]*:\S+)$")]


class CacheOptions(BaseModel):
    """How answers of this agent are cached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: Annotated[bool, Field(description="False: never store an answer of this agent.")] = True
    scope: Annotated[
        Literal["user", "shared"], Field(description="Who shares an answer: each user alone, or everybody.")
    ] = "user"
    ttl: Annotated[
        Annotated[float, Field(gt=0, le=31_536_000)] | None,
        Field(description="Seconds that an answer lives; CACHE_TTL where it is absent."),
    ] = None


class AgentOptions(BaseModel):
    """The object under `metadata.mnemosine`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache: CacheOptions = CacheOptions()
    max_concurrency: Annotated[
        Annotated[int, Field(ge=1, le=100_000)] | None,
        Field(description="Runs of this agent at once, per worker; further ones wait their turn."),
    ] = None
    fallbacks: Annotated[
        tuple[ModelName, ...],
        Field(max_length=5, description="Models to ask, in this order, where the agent's own fails."),
    ] = ()
    effects: Annotated[
        dict[str, Effect], Field(description="Effects of tools that cannot say it themselves, by the tool's name.")
    ] = {}
