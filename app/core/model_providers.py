"""What each model provider needs before its models can be made, known without importing any of them.

The agent stack takes most of a second to import; a start that only wants to know whether a model can work reads this.
"""

import difflib
import os
from importlib.util import find_spec

_EXTRAS = ("anthropic", "bedrock", "cohere", "google", "groq", "mistral")
_OPENAI = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
_GOOGLE = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
_VARIABLES: dict[str, tuple[str, ...]] = {
    "alibaba": ("ALIBABA_API_KEY", "DASHSCOPE_API_KEY"),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "azure": (),
    "azure-responses": (),
    "bedrock": (),
    "bedrock-mantle": (),
    "cerebras": ("CEREBRAS_API_KEY",),
    "cohere": ("CO_API_KEY",),
    "crusoe": ("CRUSOE_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "elevenlabs": ("ELEVENLABS_API_KEY",),
    "fireworks": ("FIREWORKS_API_KEY",),
    "github": ("GITHUB_API_KEY",),
    "github-copilot": (),
    "google": _GOOGLE,
    "google-cloud": (),
    "google-decisions": _GOOGLE,
    "groq": ("GROQ_API_KEY",),
    "heroku": ("HEROKU_INFERENCE_KEY",),
    "huggingface": ("HF_TOKEN",),
    "litellm": (),
    "meta": ("META_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "moonshotai": ("MOONSHOTAI_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "ollama": ("OLLAMA_BASE_URL",),
    "openai": _OPENAI,
    "openai-chat": _OPENAI,
    "openai-chatgpt": (),
    "openai-codex": (),
    "openai-decisions": _OPENAI,
    "openai-responses": _OPENAI,
    "openrouter": ("OPENROUTER_API_KEY",),
    "ovhcloud": ("OVHCLOUD_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "sentence-transformers": (),
    "snowflake": ("SNOWFLAKE_ACCOUNT",),
    "system-one": (),
    "together": ("TOGETHER_API_KEY",),
    "typesafe": (),
    "vercel": ("VERCEL_AI_GATEWAY_API_KEY", "VERCEL_OIDC_TOKEN"),
    "vllm": ("VLLM_BASE_URL",),
    "voyageai": (),
    "xai": ("XAI_API_KEY",),
    "zai": ("ZAI_API_KEY",),
}
"""Every provider that Pydantic AI knows, with the variables of which one has to be set; none where credentials may come
another way. A test compares this with the installed library."""
_MODULES = {
    "anthropic": "anthropic",
    "bedrock": "boto3",
    "cohere": "cohere",
    "google": "google.genai",
    "google-cloud": "google.genai",
    "google-decisions": "google.genai",
    "groq": "groq",
    "huggingface": "huggingface_hub",
    "mistral": "mistralai",
    "xai": "xai_sdk",
}
"""What is not installed with Mnemosine itself."""


def fault_of(model: str) -> tuple[str, str] | None:
    """Why `model` can never be made in this environment, and the cure; `None` where that is not known beforehand."""
    provider, _, name = model.partition(":")
    if not name or provider.startswith("gateway/"):
        return None
    if provider not in _VARIABLES:
        cure = nearest_provider(model) or "openai-chat:gpt-5-mini and offline would be valid"
        return f"there is no model provider {provider!r}", cure
    module = _MODULES.get(provider)
    if module is not None and not _is_installed(module):
        return "its package is not installed", f"pip install '{package_of(model)}'"
    variables = _VARIABLES[provider]
    if variables and not any(map(os.environ.get, variables)):
        return f"{' or '.join(variables)} is not set", f"set it in the environment or in .env to use {name}"
    return None


def nearest_provider(model: str) -> str:
    """`did you mean …?` where the provider in `model` is unknown and like a known one, else nothing."""
    provider, _, name = model.partition(":")
    known = provider in _VARIABLES or provider.startswith("gateway/")
    close = [] if known else difflib.get_close_matches(provider, _VARIABLES, n=1)
    return f"did you mean {close[0]}:{name}?" if close else ""


def package_of(model: str) -> str:
    """What to install for `model`: an extra of ours, or of Pydantic AI where we have none."""
    provider = model.partition(":")[0].removeprefix("gateway/")
    ours = provider.partition("-")[0]
    return f"mnemosine[{ours}]" if ours in _EXTRAS else f"pydantic-ai-slim[{provider}]"


def key_of(provider: str) -> str | None:
    """The variable that holds the key of `provider`, or `None` where there is no one such variable."""
    return next((name for name in _VARIABLES.get(provider, ()) if name.endswith(("_KEY", "_TOKEN"))), None)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # no parent package; or in `sys.modules` without a spec
        return False
