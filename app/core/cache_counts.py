"""What the cache of a worker did so far, and what that saved."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from app.core.run import Answer


@dataclass(slots=True)
class Saved:
    """What hits and joined flights did not spend."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    seconds: float = 0.0

    def add(self, answer: Answer, times: int = 1) -> None:
        """Count an answer that was not asked for again, so many times."""
        self.requests += answer.usage.requests * times
        self.input_tokens += answer.usage.input_tokens * times
        self.output_tokens += answer.usage.output_tokens * times
        self.cost_usd += (answer.cost_usd or 0) * times
        self.seconds += answer.model_s * times


@dataclass(slots=True)
class Repeated:
    """An answer that goes out again and again."""

    agent: str
    answer: Answer
    times: int = 0
    """Since it was counted last."""


@dataclass(slots=True)
class CacheCounts:
    """What happened so far in this worker; every number only grows."""

    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    stores: int = 0
    cleanups: int = 0
    removed: int = 0
    last_cleanup_at: datetime | None = None
    last_cleanup_ms: float | None = None
    saved: dict[str, Saved] = field(default_factory=dict[str, Saved])
    """By agent."""

    def hit(self, agent: str, answer: Answer, times: int = 1) -> None:
        """Count an answer from memory, that went out so many times."""
        self.hits += times
        self._save(agent, answer, times)

    def share(self, agent: str, answer: Answer) -> None:
        """Count an answer of a run that somebody else began."""
        self.coalesced += 1
        self._save(agent, answer)

    def clean_up(self, removed: int, *, seconds: float) -> None:
        """Count a clean-up that has just ended."""
        self.cleanups += 1
        self.removed += removed
        self.last_cleanup_at = datetime.now(UTC)
        self.last_cleanup_ms = seconds * 1000

    def numbers(self) -> dict[str, Any]:
        """The same in the contract's words."""
        asked = self.hits + self.coalesced + self.misses
        by_agent = list(self.saved.values())
        return {
            "hits": self.hits,
            "misses": self.misses,
            "coalesced": self.coalesced,
            "hit_ratio": (self.hits + self.coalesced) / asked if asked else 0.0,
            "stores": self.stores,
            "cleanup": {
                "runs": self.cleanups,
                "removed": self.removed,
                "last_run_at": self.last_cleanup_at,
                "last_duration_ms": self.last_cleanup_ms,
            },
            "saved": {
                "requests": sum(saved.requests for saved in by_agent),
                "input_tokens": sum(saved.input_tokens for saved in by_agent),
                "output_tokens": sum(saved.output_tokens for saved in by_agent),
                "cost_usd": float(sum(saved.cost_usd for saved in by_agent)),
                "seconds": sum(saved.seconds for saved in by_agent),
            },
            "saved_by_agent": {
                agent: asdict(saved) | {"cost_usd": float(saved.cost_usd)} for agent, saved in self.saved.items()
            },
        }

    def _save(self, agent: str, answer: Answer, times: int = 1) -> None:
        saved = self.saved.get(agent)
        if saved is None:
            saved = self.saved[agent] = Saved()
        saved.add(answer, times)
