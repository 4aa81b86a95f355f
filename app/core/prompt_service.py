"""The story of a prompt, top to bottom: agent, model, record, answer."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from time import monotonic, perf_counter
from typing import Any

from pydantic_ai import ModelSettings
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, SystemPromptPart, TextPart, ThinkingPart
from pydantic_core import to_jsonable_python

from app.core.agent_pool import AgentPool, PooledAgent
from app.core.agents import AgentDefinition, Agents, AnyAgent
from app.core.cache_key import CacheKey, cache_key
from app.core.cache_service import CacheService
from app.core.direct_run import DirectAgent, tier_of
from app.core.models import Models, provider_error, provider_of
from app.core.provider_guard import deadline_at
from app.core.run import Answer, Caller, Question, RunSettings, Usage, new_run_id
from app.core.run_log import RunLog
from app.errors import FieldFault, InvalidFields, MnemosineError, ProviderTimeout

_MAX_RUNNERS = 256


class PromptService:
    """Answers prompts. It knows every room of the core; no room knows it.

    Nothing is held while the model thinks: no database session, no shared connection. What a run was is written
    by the `RunLog` in groups, in short transactions of its own.
    """

    def __init__(
        self,
        agents: Agents,
        pool: AgentPool,
        models: Models,
        runs: RunLog,
        cache: CacheService,
        *,
        allowed_models: Iterable[str],
        model_timeout_s: float,
        on_model_call: Callable[..., None] | None = None,
    ) -> None:
        self._agents = agents
        self._pool = pool
        self._models = models
        self._runs = runs
        self._cache = cache
        self._endpoints: dict[str, str] = {}
        self._allowed_models = frozenset(allowed_models) | {agent.model for agent in agents}
        self._model_timeout_s = model_timeout_s
        self._on_model_call = on_model_call
        self._runners: dict[int, tuple[AnyAgent, DirectAgent | AnyAgent]] = {}

    async def answer(self, caller: Caller, question: Question) -> Answer:
        """The agent's answer to `question`.

        Raises `NotFound` for an unknown agent, `InvalidFields` for a model that is not allowed, a `ModelError`
        where the provider failed. However it ends, cancellation included, the run is recorded.
        """
        definition = self._agents.get(question.agent)
        model_name = self._model_for(definition, question.model)
        run_id = new_run_id()

        async def run() -> Answer:
            # Leased by the run, not by the caller: whoever shares the run may leave before it ends.
            with self._pool.lease(definition, model_name=model_name) as entry:
                return await self._run(run_id, entry, question)

        with self._runs.recording(
            run_id,
            user_id=caller.id,
            agent=definition.name,
            model=model_name,
            conversation_id=question.conversation_id,
        ) as record:
            answer = await self._cache.get_or_run(
                self._key(caller, definition, model_name, question),
                run,
                # What was said before in a conversation is not part of the key yet.
                mode=question.cache_mode if question.conversation_id is None else "off",
                ttl_s=question.cache_ttl_s,
            )
            if answer.cache in ("HIT", "COALESCED"):
                answer = replace(answer, id=run_id)
            record.answered(answer)
            return answer

    def _key(self, caller: Caller, definition: AgentDefinition, model_name: str, question: Question) -> CacheKey:
        endpoint = self._endpoints.get(model_name)
        if endpoint is None:
            endpoint = self._endpoints[model_name] = f"{model_name}@{self._models.get(model_name).base_url or ''}"
        return cache_key(
            scope=f"user:{caller.id}",
            agent=definition.name,
            revision=definition.revision,
            models=[endpoint],
            instructions=definition.instructions,
            prompt=question.message,
            settings=asdict(question.settings),
        )

    async def _run(self, run_id: str, entry: PooledAgent, question: Question) -> Answer:
        """Run the agent and count it, however it ends."""
        provider = provider_of(entry.model)
        started = perf_counter()
        counted: dict[str, Any] = {"outcome": "error"}
        try:
            answer = await self._ask(run_id, entry, question, provider)
            cost = answer.cost_usd
            counted = {
                "outcome": "ok",
                "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens,
                "cost_usd": None if cost is None else float(cost),
            }
        except asyncio.CancelledError:
            counted = {"outcome": "cancelled"}
            raise
        else:
            return answer
        finally:
            if self._on_model_call is not None:
                self._on_model_call(provider, entry.model_name, seconds=perf_counter() - started, **counted)

    async def _ask(self, run_id: str, entry: PooledAgent, question: Question, provider: str) -> Answer:
        started = perf_counter()
        deadline_at.set(monotonic() + self._model_timeout_s)
        try:
            async with asyncio.timeout(self._model_timeout_s):
                result = await self._runner(entry).run(
                    question.message, run_id=run_id, model_settings=_model_settings(question.settings)
                )
        except TimeoutError as error:
            raise ProviderTimeout(
                f"the model provider {provider} did not answer within {self._model_timeout_s:g} s"
            ) from error
        except MnemosineError:
            raise
        except Exception as error:
            known = provider_error(error, provider=provider)
            if known is None:
                raise
            raise known from error
        usage = result.usage
        return Answer(
            id=run_id,
            output=result.output if isinstance(result.output, str) else to_jsonable_python(result.output),
            agent=entry.definition.name,
            model=entry.model_name,
            usage=Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, requests=usage.requests),
            cost_usd=usage.cost,
            model_s=perf_counter() - started,
            conversation_id=question.conversation_id,
            storable=_storable(result.new_messages(), entry.definition),
        )

    def _runner(self, entry: PooledAgent) -> DirectAgent | AnyAgent:
        """What runs this agent: the direct tier where that equals the graph, else the graph."""
        kept = self._runners.get(id(entry.agent))
        if kept is None or kept[0] is not entry.agent:
            if len(self._runners) >= _MAX_RUNNERS:
                self._runners.clear()
            direct = tier_of(entry.agent).name == "direct"
            kept = (entry.agent, DirectAgent(entry.agent, entry.model) if direct else entry.agent)
            self._runners[id(entry.agent)] = kept
        return kept[1]

    def _model_for(self, definition: AgentDefinition, wanted: str | None) -> str:
        if wanted is None or wanted == definition.model:
            return definition.model
        if wanted not in self._allowed_models:
            raise InvalidFields(
                "the model is not one that this server may use",
                errors=[FieldFault("model", f"must be one of: {', '.join(sorted(self._allowed_models))}")],
            )
        return wanted


def _storable(messages: Iterable[ModelMessage], definition: AgentDefinition) -> bool:
    """Whether a run may be kept: instructions as defined, text alone, and the provider said that it was complete."""
    for message in messages:
        match message:
            case ModelRequest():
                # Instructions made for this one run are not in the key.
                if (message.instructions or None) != (definition.instructions or None):
                    return False
                if any(isinstance(part, SystemPromptPart) for part in message.parts):
                    return False
            case ModelResponse():
                # A tool may have written something; anything but text counts as a tool.
                if not all(isinstance(part, TextPart | ThinkingPart) for part in message.parts):
                    return False
                if message.finish_reason != "stop":
                    return False
    return True


def _model_settings(settings: RunSettings) -> ModelSettings:
    # The SDK's own retries are off: one failed request must not become three (failures in the field, row 58).
    chosen = ModelSettings(max_retries=0)
    if settings.temperature is not None:
        chosen["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        chosen["max_tokens"] = settings.max_tokens
    if settings.top_p is not None:
        chosen["top_p"] = settings.top_p
    if settings.seed is not None:
        chosen["seed"] = settings.seed
    if settings.stop is not None:
        chosen["stop_sequences"] = list(settings.stop)
    return chosen
