"""Pydantic AI's own spans of agents, models and tools, in the GenAI conventions, without what was said."""

from collections.abc import Callable

from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings

from app import tracing


def trace_agents() -> Callable[[], None]:
    """Have every agent tell of its runs; call what is given back to end that.

    Call it before agents are made: one that is traced runs in the agent graph, which has these spans.
    Prompts, answers, tool arguments and pictures stay out of spans unless the operator asks for them by
    OpenTelemetry's own variable for GenAI content.
    """
    content = tracing.wants_content()
    Agent.instrument_all(
        InstrumentationSettings(
            tracer_provider=tracing.provider(),
            include_content=content,
            include_binary_content=False,
            include_model_request_parameters=content,
        )
    )
    return lambda: Agent.instrument_all(False)
