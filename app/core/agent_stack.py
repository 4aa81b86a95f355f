"""All that is needed to answer a prompt, as one import: before a fork, so that workers share it; else by a thread.

What the libraries would import by themselves at their first use is named here too. Each worker would hold it in
memory of its own, and the first prompts would wait for it.
"""

from importlib import import_module

from genai_prices.data_snapshot import get_snapshot

from app.core import agent_code, agent_files, charges, prompt_service

__all__ = ["agent_code", "agent_files", "charges", "prompt_service"]

for _name in (
    "genai_prices.data",
    "openai.resources.chat.chat",
    "openai.types.responses.response",  # Pydantic AI asks of every answer whether it is one of these
    "pydantic_ai.providers.openai",
):
    import_module(_name)
get_snapshot()
