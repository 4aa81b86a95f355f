"""The story of a prompt, top to bottom: agent, model, record, answer."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from time import monotonic, perf_counter
from typing import Any, cast

from pydantic_ai import ModelSettings
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, SystemPromptPart, TextPart, ThinkingPart
from pydantic_core import to_jsonable_python

from app.core.agent_pool import AgentPool, PooledAgent
from app.core.agents import AgentDefinition, Agents
from app.core.cache_key import CacheKey, cache_key
from app.core.cache_service import CacheService
from app.core.models import Models, provider_error, provider_of
from app.core.provider_guard import deadline_at
from app.core.run import Answer, Caller, Output, Question, RunSettings, Usage, new_run_id
from app.core.run_log import RunLog
from app.errors import FieldFault, InvalidFields, MnemosineError, ProviderTimeout


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
        self._allowed_models = frozenset(allowed_models)
        self._model_timeout_s = model_timeout_s
        self._on_model_call = on_model_call

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
            async with self._pool.lease(definition, model_name=model_name) as entry:
                return await self._run(run_id, entry, caller, question)

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
                mode="off" if question.conversation_id is not None or _never_kept(definition) else question.cache_mode,
                ttl_s=question.cache_ttl_s or definition.options.cache.ttl,
            )
            if answer.cache in ("HIT", "COALESCED"):
                answer = replace(answer, id=run_id)
            record.answered(answer)
            return answer

    def _key(self, caller: Caller, definition: AgentDefinition, model_name: str, question: Question) -> CacheKey:
        chain = (model_name, *definition.fallbacks) if model_name == definition.model else (model_name,)
        shared = definition.options.cache.scope == "shared" and definition.deps is None
        return cache_key(
            # What is made with a caller's own dependencies is that caller's.
            scope="shared" if shared else f"user:{caller.id}",
            agent=definition.name,
            revision=definition.revision,
            models=[self._endpoint(definition, name) for name in chain],
            instructions=definition.instructions,
            prompt=question.message or "",
            settings=asdict(question.settings),
        )

    def _endpoint(self, definition: AgentDefinition, name: str) -> str:
        if definition.own_model is not None and name == definition.model:
            return f"{name}@{definition.own_model.base_url or ''}"
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            endpoint = self._endpoints[name] = f"{name}@{self._models.get(name).base_url or ''}"
        return endpoint

    async def _run(self, run_id: str, entry: PooledAgent, caller: Caller, question: Question) -> Answer:
        """Run the agent and count it, however it ends."""
        provider = provider_of(entry.model)
        started = perf_counter()
        counted: dict[str, Any] = {"outcome": "error"}
        try:
            answer = await self._ask(run_id, entry, caller, question, provider)
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

    async def _ask(self, run_id: str, entry: PooledAgent, caller: Caller, question: Question, provider: str) -> Answer:
        started = perf_counter()
        message = question.message or ""
        deadline_at.set(monotonic() + self._model_timeout_s)
        try:
            async with asyncio.timeout(self._model_timeout_s), entry.definition.open_deps(caller) as deps:
                settings = _model_settings(question.settings)
                if entry.direct is not None:
                    result = await entry.direct.run(message, run_id=run_id, model_settings=settings)
                else:
                    result = await entry.agent.run(
                        message,
                        run_id=run_id,
                        # A Python agent is one object for every run, so the model comes with the run.
                        model=None if entry.agent.model is entry.model else entry.model,
                        deps=deps,
                        model_settings=settings,
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
            output=_output(result.output),
            agent=entry.definition.name,
            model=entry.model_name,
            usage=Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, requests=usage.requests),
            cost_usd=usage.cost,
            model_s=perf_counter() - started,
            conversation_id=question.conversation_id,
            storable=_storable(result.new_messages(), entry.definition),
        )

    def _model_for(self, definition: AgentDefinition, wanted: str | None) -> str:
        if wanted is None or wanted == definition.model:
            return definition.model
        allowed = self._allowed_models | {agent.model for agent in self._agents}
        if wanted not in allowed:
            raise InvalidFields(
                "the model is not one that this server may use",
                errors=[FieldFault("model", f"must be one of: {', '.join(sorted(allowed))}")],
            )
        return wanted


def _never_kept(definition: AgentDefinition) -> bool:
    """Whether no answer of this agent is kept or shared: it says so, or asking it twice may have to act twice."""
    writes = definition.open_tools or any(tool.effect == "write" for tool in definition.tools)
    return writes or not definition.options.cache.enabled


def _storable(messages: Iterable[ModelMessage], definition: AgentDefinition) -> bool:
    """Whether a run may be kept: instructions as defined, text alone, and the provider said that it was complete."""
    if definition.fallbacks:
        # A fallback's answer must not stand under the name of the model that failed.
        return False
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


def _output(output: object) -> Output:
    if isinstance(output, str):
        return output
    plain = to_jsonable_python(output)
    return cast("Output", plain) if isinstance(plain, dict) else {"result": plain}


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
