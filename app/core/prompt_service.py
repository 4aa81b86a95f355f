"""The story of a prompt, top to bottom: agent, cache, model, record, answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from time import monotonic, perf_counter
from typing import Any

from pydantic_ai.models import Model

from app import tracing
from app.core.agent_pool import AgentPool, PooledAgent
from app.core.agent_run import Outcome, run_agent
from app.core.agents import AgentDefinition, Agents
from app.core.cache_key import CacheKey
from app.core.cache_policy import is_storable, key_of, may_be_kept, may_be_shared_in_flight, ttl_of
from app.core.cache_service import Began, CacheService, Run
from app.core.charges import Charge, Charges
from app.core.conversation_messages import StoredHistory, messages_of
from app.core.conversations import Conversations
from app.core.flights import Tell
from app.core.models import Models, provider_error, provider_of
from app.core.provider_guard import attempts, deadline_at
from app.core.run import Answer, Attempt, CacheMode, Caller, Question, RunEvent, Started, TextDelta, new_run_id
from app.core.run_log import Recording, RunLog
from app.core.story import current
from app.core.story import tell as note_step
from app.core.telling import Telling
from app.errors import FieldFault, InvalidFields, LimitExceeded, MnemosineError, ProviderTimeout


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
        charges: Charges,
        conversations: Conversations,
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
        self._charges = charges
        self._conversations = conversations
        self._endpoints: dict[str, str] = {}
        self._allowed_models = frozenset(allowed_models)
        self._model_timeout_s = model_timeout_s
        self._on_model_call = on_model_call

    async def answer(self, caller: Caller, question: Question) -> Answer:
        """The agent's answer to `question`.

        Raises `NotFound` for an unknown agent or conversation, `Conflict` for a conversation that is busy,
        `InvalidFields` for a model that is not allowed, a `ModelError` where the provider failed. In a conversation
        the answer is stored when it is returned. However it ends, cancellation included, the run is recorded.
        """
        async with self._continuing(caller, question) as (question, keep):
            asked = self._asked(caller, question)
            with self._recording(caller, asked) as record:
                with tracing.span("mnemosine.cache", gen_ai__agent__name=asked.definition.name) as span:
                    answer = await self._get_or_run(asked)
                    span.set_attribute("mnemosine.cache.state", answer.cache)
                answer = asked.ours(answer)
                record.answered(answer)
                await keep(answer)
                asked.tell_end(answer)
                return answer

    async def _get_or_run(self, asked: "_Asked") -> Answer:
        while True:
            try:
                return await self._cache.get_or_run(asked.key, asked.run, **asked.cache_options)
            except LimitExceeded as refusal:
                asked.raise_if_ours(refusal)

    async def _open_telling(self, asked: "_Asked", stack: AsyncExitStack) -> Telling:
        while True:
            opening = self._cache.open_stream(asked.key, asked.run, **asked.cache_options)
            try:
                return await stack.enter_async_context(opening)
            except LimitExceeded as refusal:
                asked.raise_if_ours(refusal)

    @asynccontextmanager
    async def stream(self, caller: Caller, question: Question) -> AsyncGenerator[AsyncGenerator[RunEvent]]:
        """The agent's answer to `question` while it is made: `Started` first, the `Answer` last.

        Entering raises what `answer` raises before a model is asked; the iterator raises what comes later. Leaving
        the block early ends the caller's part, and the run where nobody else waits for it.
        """
        async with AsyncExitStack() as stack:
            question, keep = await stack.enter_async_context(self._continuing(caller, question))
            asked = self._asked(caller, question)
            record = stack.enter_context(self._recording(caller, asked))
            # Until it is known where the answer comes from; what a run does after that lies below it all the same.
            with tracing.span("mnemosine.cache", gen_ai__agent__name=asked.definition.name) as span:
                telling = await self._open_telling(asked, stack)
                span.set_attribute("mnemosine.cache.state", telling.state)
            events = self._events(asked, telling, record, keep)
            try:
                yield events
            finally:
                await events.aclose()

    def _recording(self, caller: Caller, asked: "_Asked") -> AbstractContextManager[Recording]:
        return self._runs.recording(
            asked.run_id,
            caller=caller,
            agent=asked.definition.name,
            model=asked.model_name,
            conversation_id=asked.question.conversation_id,
        )

    @asynccontextmanager
    async def _continuing(self, caller: Caller, question: Question) -> AsyncGenerator[tuple[Question, "_Keep"]]:
        """The question with what was said before it, and how to keep its answer: its conversation, while it is ours."""
        if question.conversation_id is None:
            yield question, _keep_nothing
            return
        began = perf_counter()
        async with self._conversations.turn(caller, question.conversation_id, on_busy=question.on_busy) as turn:
            note_step("conversation", began)
            continued = question
            if not question.history and not question.tells_history:
                continued = replace(question, history=StoredHistory([entry.message for entry in turn.history]))

            async def keep(answer: Answer) -> None:
                # What came from memory used nothing.
                spent = None if answer.cache in ("HIT", "COALESCED") else answer.usage
                await turn.append(messages_of(continued, answer), usage=spent)

            yield continued, keep

    async def _events(
        self, asked: "_Asked", telling: Telling, record: Recording, keep: "_Keep"
    ) -> AsyncGenerator[RunEvent]:
        question = asked.question
        kept = telling.kept
        yield Started(
            asked.run_id,
            asked.definition.name,
            asked.model_name,
            question.conversation_id,
            telling.state,
            age_s=kept.age_s if kept else 0.0,
            ttl_s=kept.ttl_s if kept else None,
        )
        async for event in telling.events():
            if isinstance(event, Answer):
                event = asked.ours(event)
                record.answered(event)
                await keep(event)
                asked.tell_end(event)
            yield event

    def _asked(self, caller: Caller, question: Question) -> "_Asked":
        definition = self._agents.get(question.agent, caller)
        model_name = self._model_for(definition, question.model)
        chain = (model_name, *definition.fallbacks) if model_name == definition.model else (model_name,)
        endpoints = [self._endpoint(definition, name) for name in chain]
        run_id = new_run_id()
        began = perf_counter()
        story = current.get()
        if story is not None:
            story.agent, story.model = definition.name, model_name

        def model() -> Model[Any]:
            own = definition.own_model if model_name == definition.model else None
            return own or self._models.get(model_name)

        async def run(tell: Tell | None, ready: Began) -> Answer:
            # Charged and leased by the run, not by the caller: whoever shares the run may leave before it ends.
            note_step("cache", began)
            asked = perf_counter()
            async with AsyncExitStack() as stack:
                charge = await stack.enter_async_context(
                    self._charges.open(caller, question, definition, model, run_id)
                )
                with tracing.span("mnemosine.agent_pool", gen_ai__agent__name=definition.name):
                    entry = await stack.enter_async_context(self._pool.lease(definition, model_name=model_name))
                note_step("agent pool", asked)
                ready()
                return await self._run(run_id, entry, caller, question, tell, charge)

        return _Asked(
            run_id=run_id,
            definition=definition,
            model_name=model_name,
            question=question,
            key=key_of(caller, definition, endpoints, question),
            run=run,
            began=began,
        )

    def _endpoint(self, definition: AgentDefinition, name: str) -> str:
        if definition.own_model is not None and name == definition.model:
            return f"{name}@{definition.own_model.base_url or ''}"
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            endpoint = self._endpoints[name] = f"{name}@{self._models.get(name).base_url or ''}"
        return endpoint

    async def _run(
        self,
        run_id: str,
        entry: PooledAgent,
        caller: Caller,
        question: Question,
        tell: Tell | None,
        charge: Charge,
    ) -> Answer:
        """Run the agent and count it, however it ends."""
        provider = provider_of(entry.model)
        started = perf_counter()
        tried: list[Attempt] = []
        attempts.set(tried)
        story = current.get()
        if story is not None:
            story.attempts = tried
        counted: dict[str, Any] = {"outcome": "error"}
        first_token_s: float | None = None

        def tell_and_time(event: RunEvent) -> None:
            nonlocal first_token_s
            if first_token_s is None and isinstance(event, TextDelta):
                first_token_s = perf_counter() - started
            assert tell is not None
            tell(event)

        answered_by = entry.model_name
        try:
            listening = charge.listening(tell and tell_and_time)
            outcome = await self._ask(run_id, entry, caller, question, provider, listening, charge)
            charge.ended(outcome.usage, outcome.cost_usd)
            provider = outcome.provider or provider
            answered_by = next((one.model for one in reversed(tried) if one.outcome == "ok"), entry.model_name)
            counted = {
                "outcome": "ok",
                "input_tokens": outcome.usage.input_tokens,
                "output_tokens": outcome.usage.output_tokens,
                "cost_usd": None if outcome.cost_usd is None else float(outcome.cost_usd),
            }
        except asyncio.CancelledError:
            counted = {"outcome": "cancelled"}
            raise
        finally:
            note_step("model", started)
            if self._on_model_call is not None:
                counted |= {"retries": _retries(tried), "first_token_s": first_token_s}
                self._on_model_call(provider, answered_by, seconds=perf_counter() - started, **counted)
        return Answer(
            id=run_id,
            output=outcome.output,
            agent=entry.definition.name,
            model=answered_by,
            usage=outcome.usage,
            cost_usd=outcome.cost_usd,
            model_s=perf_counter() - started,
            conversation_id=None,
            storable=answered_by == entry.model_name and is_storable(outcome.new_messages, entry.definition, question),
            finish_reason=outcome.finish_reason,
            tool_calls=outcome.tool_calls,
            attempts=tuple(tried),
            messages=outcome.written_messages,
        )

    async def _ask(
        self,
        run_id: str,
        entry: PooledAgent,
        caller: Caller,
        question: Question,
        provider: str,
        tell: Tell | None,
        charge: Charge,
    ) -> Outcome:
        charge.began = True
        deadline_at.set(monotonic() + self._model_timeout_s)
        try:
            async with asyncio.timeout(self._model_timeout_s), entry.definition.open_deps(caller) as deps:
                return await run_agent(entry, question, deps, run_id=run_id, tell=tell, usage=charge.usage)
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


def _retries(tried: list[Attempt]) -> int:
    """How many requests went to the model that the one before had failed on; a fallback is no retry."""
    return sum(one.model == before.model and before.outcome != "ok" for before, one in pairwise(tried))


_Keep = Callable[[Answer], Awaitable[None]]
"""Stores an answer in its conversation."""


async def _keep_nothing(_: Answer) -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question on its way: which agent and model are meant, what its answer is called, how to run it."""

    run_id: str
    definition: AgentDefinition
    model_name: str
    question: Question
    key: CacheKey
    run: Run
    began: float
    """On the `perf_counter` clock."""

    @property
    def cache_options(self) -> dict[str, Any]:
        """How the cache takes part."""
        kept = may_be_kept(self.definition)
        mode: CacheMode = self.question.cache_mode if kept else "off"
        return {
            "mode": mode,
            "ttl_s": ttl_of(self.definition, self.question),
            "alone": not may_be_shared_in_flight(self.definition),
        }

    def tell_end(self, answer: Answer) -> None:
        """Tell the story of this request where its answer came from."""
        story = current.get()
        if story is not None:
            if answer.cache == "HIT":
                story.step("cache", self.began)
            elif answer.cache == "COALESCED":
                story.step("run of another request", self.began)
            story.end(answer)

    def raise_if_ours(self, refusal: LimitExceeded) -> None:
        """Raise what was refused to this caller; who joined a run that had no room asks anew, for himself."""
        if refusal.run_id in (None, self.run_id):
            raise refusal

    def ours(self, answer: Answer) -> Answer:
        """The answer as this caller's: its own id where it was somebody else's run, its own conversation."""
        run_id = self.run_id if answer.cache in ("HIT", "COALESCED") else answer.id
        if run_id == answer.id and self.question.conversation_id is None:
            return answer
        return replace(answer, id=run_id, conversation_id=self.question.conversation_id)
