"""Live models, made from names such as `openai-chat:gpt-5-mini`, and their failures in our words."""

import difflib
import ssl
from hashlib import sha256
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast, get_args
from urllib.request import getproxies

import httpx2
from pydantic_ai import exceptions
from pydantic_ai.models import KnownModelName, Model, create_async_httpx2_client, infer_model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from app.core import offline_model
from app.core.model_providers import key_of, nearest_provider, package_of
from app.core.openai_chat import LeanChatModel, ProviderHttp, is_covered
from app.core.provider_guard import GuardedModel, GuardedTextModel, ProviderGuard
from app.core.text_stream import StreamsTexts
from app.errors import BadConfiguration, LimitExceeded, MnemosineError, ProviderBusy, ProviderFailed, ProviderTimeout

if TYPE_CHECKING:
    from pydantic_ai.models.openai import OpenAIChatModel


class Models:
    """Every model that this process talks to, made once and kept; all of them share one HTTP client.

    A model made afresh costs 25-45 ms, nearly all of it the TLS context of its own client (measured before the
    first line was written). One client pools connections per host; its TLS context, of 20 ms and 1 MB, is
    `ProviderHttp`'s too.
    Belongs to the event loop that first uses it; close it there.
    """

    def __init__(self) -> None:
        self._models: dict[str, Model[Any]] = {}
        self._client: httpx2.AsyncClient | None = None
        self._http: ProviderHttp | None = None
        self._tls: ssl.SSLContext | None = None
        self.guards: dict[str, ProviderGuard] = {}
        """By provider, base URL and credential: who shares these shares an outage."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def get(self, name: str) -> Model[Any]:
        """The model of this name. Raises `BadConfiguration` where it is unknown, or its key or package is missing."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = self._make(name)
        return model

    async def aclose(self) -> None:
        """Forget the models and close their connections."""
        self._models.clear()
        client, self._client = self._client, None
        http, self._http = self._http, None
        if client is not None:
            await client.aclose()
        if http is not None:
            await http.aclose()

    def _make(self, name: str) -> Model[Any]:
        if name == offline_model.NAME:
            return offline_model.OfflineModel()
        try:
            return self._guarded(self._lean(infer_model(name, self._provider)), name)
        except (exceptions.UserError, ValueError) as error:
            near = nearest_provider(name)
            cure = f"; {near}" if near else " (valid: openai-chat:gpt-5-mini, offline)"
            raise BadConfiguration(f"model {name!r} cannot be used: {_first_line(error)}{cure}") from error
        except ImportError as error:
            raise BadConfiguration(
                f"model {name!r} needs a package that is not installed: pip install '{package_of(name)}'"
            ) from error

    def _lean(self, model: Model[Any]) -> Model[Any]:
        """Our own HTTP beneath a model that speaks OpenAI chat; any other model as it is."""
        if not is_covered(model):
            return model
        if self._http is None:
            self._http = ProviderHttp(self._shared_tls())
        return LeanChatModel(cast("OpenAIChatModel", model), self._http)

    def _guarded(self, model: Model[Any], name: str) -> Model[Any]:
        identity = provider_identity(model)
        guard = self.guards.get(identity)
        if guard is None:
            guard = self.guards[identity] = ProviderGuard(provider_of(model))
        kind = GuardedTextModel if isinstance(model, StreamsTexts) else GuardedModel
        return kind(model, guard, name)

    def _provider(self, name: str) -> Provider[Any]:
        if name.startswith("gateway/"):
            return infer_provider(name)
        make: Any = infer_provider_class(name)
        if self._client is None:
            self._client = self._new_client()
        try:
            return make(http_client=self._client)
        except TypeError:
            # A few providers (Bedrock) bring a client that is not HTTPX; they keep their own.
            return make()

    def _new_client(self) -> httpx2.AsyncClient:
        if getproxies():
            # Only without a transport does it look for them; it then has a TLS context of its own.
            return create_async_httpx2_client()
        # The limits that it would set itself.
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
        transport = httpx2.AsyncHTTPTransport(verify=self._shared_tls(), limits=limits)
        return create_async_httpx2_client(transport=transport)

    def _shared_tls(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()
        return self._tls


def provider_of(model: Model[Any]) -> str:
    """The provider's name as errors, metrics and records show it: `openai`; of a chain that of its first."""
    return model.models[0].system if isinstance(model, FallbackModel) else model.system


def provider_identity(model: Model[Any]) -> str:
    """Provider, base URL and a digest of the credential: what two models must have in common to share a client.

    The credential itself never leaves the provider's client.
    """
    key = getattr(getattr(model.provider, "client", None), "api_key", None)
    digest = sha256(key.encode()).hexdigest()[:16] if isinstance(key, str) else "-"
    return f"{model.system}|{model.base_url or ''}|{digest}"


def provider_error(error: Exception, *, provider: str) -> MnemosineError | None:
    """What a failed run means to the caller, or `None` where the failure is not the provider's.

    The upstream body and headers stay behind: providers repeat keys and prompts in them.
    """
    match error:
        case MnemosineError():
            return error
        case exceptions.FallbackExceptionGroup():
            # Every model of the chain failed; the first is the one that was asked for.
            first = error.exceptions[0]
            return provider_error(first, provider=provider) if isinstance(first, Exception) else None
        case exceptions.ModelRateLimitError():
            return ProviderBusy(
                f"the model provider {provider} is rate-limiting this server", retry_after_s=error.retry_after or 1.0
            )
        case exceptions.ModelTimeoutError() | exceptions.ModelRequestTimeout() | TimeoutError():
            return ProviderTimeout(f"the model provider {provider} did not answer in time")
        case exceptions.ModelAuthenticationError():
            key = key_of(provider)
            cure = f"; whoever runs it has to correct {key}" if key is not None else ""
            return ProviderFailed(
                f"the model provider {provider} refused this server's credentials{cure}", retry_useful=False
            )
        case exceptions.ModelNotFoundError():
            unknown = f"{error.model_name!r}{_nearest_model(error.model_name, provider)}"
            return ProviderFailed(
                f"the model provider {provider} does not know the model {unknown}", retry_useful=False
            )
        case exceptions.ModelContextWindowExceededError():
            return ProviderFailed(f"the prompt is too long for this model of {provider}", retry_useful=False)
        case exceptions.ModelQuotaExceededError():
            return ProviderFailed(f"the model provider {provider} says that the quota is used up", retry_useful=False)
        case exceptions.ModelRequestRejectedError():
            return ProviderFailed(f"the model provider {provider} rejected the request", retry_useful=False)
        case exceptions.ModelConnectionError():
            return ProviderFailed(f"the model provider {provider} could not be reached, or broke off")
        case exceptions.ModelHTTPError():
            return ProviderFailed(f"the model provider {provider} answered with status {error.status_code}")
        case exceptions.ModelAPIError() | exceptions.UnexpectedModelBehavior():
            return ProviderFailed(f"the model provider {provider} answered with something that is not an answer")
        case exceptions.UsageLimitExceeded():
            return LimitExceeded("the run needed more requests or tokens than one run may use", retry_useful=False)
        case _:
            return None


def _nearest_model(model: str, provider: str) -> str:
    """`; did you mean …?` with the model of `provider` that is named most like it, or nothing."""
    names: set[str] = set()
    for known in get_args(KnownModelName.__value__):
        prefix, _, name = known.partition(":")
        if prefix.startswith(provider):
            names.add(name)
    close = [] if model in names else difflib.get_close_matches(model, sorted(names), n=1, cutoff=0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
