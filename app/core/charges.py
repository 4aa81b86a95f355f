"""What a run may cost: estimated and reserved before it begins, put right when it has ended, however it did."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

from pydantic_ai import ModelResponse, RequestUsage, RunUsage
from pydantic_ai.messages import ModelMessage, ModelRequest, TextPart, UserPromptPart
from pydantic_ai.models import Model

from app.core.agents import AgentDefinition
from app.core.budgets import Budgets, spend_of
from app.core.flights import Tell
from app.core.rate_limiter import RateLimiter
from app.core.run import Caller, Question, RunEvent, TextDelta, Usage
from app.errors import LimitExceeded, ProviderTimeout

BYTES_PER_TOKEN = 3
"""English has four to five characters a token; what is not English has more bytes a character. Rather too many."""
REQUEST_TOKENS = 20
"""What a provider adds to a request: the marks around messages."""
OUTPUT_TOKENS = 1024
"""What an answer may need where neither the prompt nor the agent says `max_tokens`."""
IMAGE_TOKENS = 1000


@dataclass(slots=True)
class Charge:
    """What a run has used so far. The run adds to `usage` with every model request that ends."""

    input_estimate: int = 0
    usage: RunUsage = field(default_factory=RunUsage)
    began: bool = False
    """Whether a model was asked at all."""
    _said_bytes: int = 0
    _final: tuple[Usage, Decimal | None] | None = None

    def listening(self, tell: Tell | None) -> Tell | None:
        """`tell`, with the text counted that passes through it."""
        if tell is None:
            return None

        def told(event: RunEvent) -> None:
            if isinstance(event, TextDelta):
                self._said_bytes += len(event.text.encode())
            tell(event)

        return told

    def ended(self, usage: Usage, cost_usd: Decimal | None) -> None:
        """The run gave an answer, which used this."""
        self._final = (usage, cost_usd)

    def total(self, model: "Model[Any]", *, cut: bool) -> tuple[int, Decimal | None]:
        """Tokens and dollars. Of a request that was `cut` the provider counts what it was sent and what it said."""
        if self._final is not None:
            usage, cost = self._final
            return usage.total_tokens, cost
        tokens = self.usage.input_tokens + self.usage.output_tokens
        cost = self.usage.cost
        if self.began and (cut or self._said_bytes):
            said = self._said_bytes // BYTES_PER_TOKEN
            tokens += self.input_estimate + said
            cost = (cost or Decimal(0)) + (price_of(model, self.input_estimate, said) or 0)
        return tokens, cost


class Charges:
    """The limit of model tokens and the budgets as one: what a run has to fit into, and is charged to."""

    def __init__(self, limiter: RateLimiter, budgets: Budgets) -> None:
        self._limiter = limiter
        self._budgets = budgets
        self._short: dict[str, float] = {}
        """By agent: how many times its estimate a run used of late, where that was more than once."""

    @asynccontextmanager
    async def open(
        self,
        caller: Caller,
        question: Question,
        definition: AgentDefinition,
        model: Callable[[], "Model[Any]"],
        run_id: str,
    ) -> AsyncGenerator[Charge]:
        """Reserve for the run of the block, and settle at its end to what the `Charge` says.

        Raises `LimitExceeded`, with this `run_id`, before the block begins.
        """
        if not caller.has_budget and not self._limiter.limits_tokens_of(caller):
            yield Charge()
            return
        asked = model()
        charge = Charge(input_estimate=input_tokens_of(question, definition))
        output = output_tokens_of(question, definition)
        expected = charge.input_estimate + output
        # Agents that call models again and again, or answer at length: the next estimate knows it.
        times = Decimal(self._short.get(definition.name, 1.0))
        price = price_of(asked, charge.input_estimate, output)
        estimate = spend_of(int(expected * times), None if price is None else price * times)
        try:
            tokens = await self._limiter.reserve_tokens(caller, estimate.tokens)
            try:
                hold = await self._budgets.reserve(caller, estimate)
            except BaseException:
                if tokens is not None:
                    await tokens.settle(0)
                raise
        except LimitExceeded as refusal:
            refusal.run_id = run_id
            raise
        cut = True
        try:
            yield charge
            cut = False
        except ProviderTimeout:
            raise
        except Exception:
            cut = False
            raise
        finally:
            used, cost = charge.total(asked, cut=cut)
            self._short[definition.name] = max(1.0, used / expected, self._short.get(definition.name, 1.0) * 0.98)
            self._budgets.settle(hold, spend_of(used, cost))
            if tokens is not None:
                await tokens.settle(used)


def input_tokens_of(question: Question, definition: AgentDefinition) -> int:
    """About how many tokens the model is sent, by the bytes of what is said."""
    size = len((question.message or "").encode())
    for instructions in (definition.instructions, question.instructions):
        size += len(instructions.encode()) if isinstance(instructions, str) else 0
    size += sum(_bytes_of(message) for message in question.history)
    size += sum(len(str(tool.parameters)) + len(tool.description or "") for tool in question.client_tools)
    size += sum(len(str(tool)) for tool in definition.tools)
    return size // BYTES_PER_TOKEN + REQUEST_TOKENS + IMAGE_TOKENS * len(question.images)


def output_tokens_of(question: Question, definition: AgentDefinition) -> int:
    """How many tokens the answer may have, where anybody said so."""
    own = definition.prototype.model_settings if definition.prototype is not None else None
    agents = cast("dict[str, Any]", own).get("max_tokens") if isinstance(own, dict) else None
    return question.settings.max_tokens or agents or OUTPUT_TOKENS


def price_of(model: "Model[Any]", input_tokens: int, output_tokens: int) -> Decimal | None:
    """Dollars, by Pydantic AI's price table; `None` where it does not know the model."""
    usage = RequestUsage(input_tokens=input_tokens, output_tokens=output_tokens)
    response = ModelResponse(
        parts=[],
        usage=usage,
        model_name=model.model_name,
        provider_name=model.system,
        provider_url=model.base_url,
    )
    try:
        return response.cost().total_price
    except (LookupError, ValueError):
        return None


def _bytes_of(message: ModelMessage) -> int:
    size = 0
    for part in message.parts:
        if isinstance(part, TextPart):
            size += len(part.content.encode())
        elif isinstance(message, ModelRequest) and isinstance(part, UserPromptPart) and isinstance(part.content, list):
            texts = [item for item in part.content if isinstance(item, str)]
            size += sum(len(text.encode()) for text in texts)
            size += (len(part.content) - len(texts)) * IMAGE_TOKENS * BYTES_PER_TOKEN
        else:
            content: object = getattr(part, "content", None) or getattr(part, "args", None) or ""
            size += len(str(content).encode())
    return size
