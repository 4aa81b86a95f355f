"""Providers that speak OpenAI chat, over our own HTTP: Pydantic AI maps messages, aiohttp carries bytes."""

# pyright: reportPrivateUsage=false
# The SDK's own request and response building is what makes ours equal to it; it has no public seam for that.

import asyncio
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, cast
from urllib.request import getproxies

import aiohttp
import httpx2
from openai import APIConnectionError, APIError, APITimeoutError, AsyncOpenAI, AsyncStream, NotGiven, Omit
from openai._base_client import get_platform
from openai._models import FinalRequestOptions
from openai._utils._json import openapi_dumps
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import CompletedStreamedResponse, ModelRequestParameters, check_allow_model_requests
from pydantic_ai.models._decode_errors import map_decode_errors
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings, OpenAIStreamedResponse
from pydantic_ai.models.openai._chat_completions import LenientChatCompletion
from pydantic_ai.models.openai._errors import map_api_errors
from pydantic_ai.profiles import DEFAULT_THINKING_TAGS
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_core import from_json
from yarl import URL

from app.core.openai_stream import ChunkStream
from app.core.plain_chat import Form, PlainAnswers, can_be_plain
from app.core.prices import fill_cost
from app.core.text_stream import Interpret, PlainTextStream, StreamsTexts, TextStream

_FIELDS = [
    "model",
    "stream",
    "service_tier",
    "messages",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "seed",
    "stop",
    "store",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
]
"""The fields of a request in the order in which the SDK writes them; a test compares the bytes."""

_KNOWN = frozenset(_FIELDS)
_OPTIONS: FinalRequestOptions = FinalRequestOptions.construct(method="post", url="/chat/completions")
_MAX_BODY_BYTES = 64 * 1024 * 1024

PROFILE = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
"""A stream that ends in order but without a finish reason was cut; without this it counts as complete."""


class ProviderHttp:
    """One pool of connections for every provider of this process that speaks OpenAI chat.

    `tls` is made here where none is given (20 ms of CPU). A request over aiohttp costs a third of one over httpx2
    (benchmarks/).
    Belongs to the event loop that first uses it; `aclose()` it there.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        connect_s: float = 5.0,
        first_byte_s: float = 60.0,
        gap_s: float = 30.0,
    ) -> None:
        self.connect_s = connect_s
        self.first_byte_s = first_byte_s
        self.gap_s = gap_s
        self._tls = tls or httpx2.create_ssl_context()
        self._session: aiohttp.ClientSession | None = None

    async def open(self, request: httpx2.Request, body: bytes, *, timeout_s: float | None) -> aiohttp.ClientResponse:
        """The head of the answer to `request`. Raises what httpx2 would: `TimeoutException`, `TransportError`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, limit=1000, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Looking for a proxy costs on every request, so it is only done where one is configured.
                trust_env=bool(getproxies()),
            )
        first_byte_s = self.first_byte_s if timeout_s is None else min(self.first_byte_s, timeout_s)
        connect_s = self.connect_s if timeout_s is None else min(self.connect_s, timeout_s)
        try:
            return await self._session.post(
                request.extensions["mnemosine.url"],
                data=body,
                headers=request.extensions["mnemosine.headers"],
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=first_byte_s),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _as_httpx(error, request) from error

    async def read(self, answer: aiohttp.ClientResponse, request: httpx2.Request) -> bytes:
        """The whole body, and the connection back in the pool."""
        try:
            body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _as_httpx(error, request) from error
        finally:
            answer.release()
        if len(body) > _MAX_BODY_BYTES:
            raise httpx2.RemoteProtocolError("the answer is too large", request=request)
        return body

    def reading(
        self, answer: aiohttp.ClientResponse, request: httpx2.Request
    ) -> Callable[[float | None], Awaitable[bytes]]:
        """A function that gives the next bytes of the body, none at its end.

        A silence longer than `gap_s` after the first bytes is a read timeout, or one longer than the call says.
        """
        content = answer.content
        has_begun = False

        async def read(within_s: float | None) -> bytes:
            nonlocal has_begun
            try:
                # What is there already needs no timer and no turn of the loop. Unlike `read_nowait` this gives what
                # came before the connection broke, too.
                piece = content._read_nowait(-1)
                if not piece and not content.at_eof():
                    async with asyncio.timeout(within_s or (self.gap_s if has_begun else None)):
                        piece = await content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _as_httpx(error, request) from error
            has_begun = True
            return piece

        return read

    async def aclose(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class LeanChatModel(OpenAIChatModel, StreamsTexts):
    """Pydantic AI's OpenAI chat model with our HTTP and parsing beneath it: the same bytes, answers and errors.

    What is not covered (an unknown field, a timeout by phases) goes through the SDK's own client.
    """

    def __init__(self, model: OpenAIChatModel, http: ProviderHttp) -> None:
        """Take the place of `model`, which `is_covered`."""
        self._lean: _Client | None = None
        provider = cast("Any", model.provider)
        super().__init__(model.model_name, provider=provider, profile=PROFILE, settings=model.settings)
        profile = self.profile
        self._streams_texts = not (
            profile.get("ignore_streamed_leading_whitespace") or profile.get("may_tokenize_special_tokens_in_content")
        )
        self._marks = tuple(profile.get("thinking_tags", DEFAULT_THINKING_TAGS) or ())
        self._lean = _Client(cast("AsyncOpenAI", provider.client), http, marks=self._marks, joins=self._streams_texts)
        if can_be_plain(self):
            self._lean.plain = PlainAnswers(self, provider.name, provider.base_url)

    async def form(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> Form | None:
        """What `request` would send, with a gap where `messages` say `MARK`; `None` where there can be none."""
        if self._lean is None or self._lean.plain is None:
            return None
        return await _written(self.request(messages, settings, parameters))

    async def stream_form(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> "StreamForm | None":
        """What `open_texts` would send, with a gap where `messages` say `MARK`; `None` where there can be none."""
        prepared, parameters = self.prepare_request(settings, parameters)
        chosen = cast("OpenAIChatModelSettings", prepared or {})
        form = await _written(self._completions_create(messages, True, chosen, parameters))
        return None if form is None else StreamForm(form, self._interpreting(parameters, chosen))

    async def answer(self, form: Form, prompt: str) -> ModelResponse:
        """What `request` gives for the messages of `form` with this `prompt`. Raises what it raises."""
        assert self._lean is not None
        try:
            answer, raw = await self._lean.post(form.head, form.filled(prompt), timeout_s=form.timeout_s)
        except APIError:
            with map_api_errors(self.model_name, self._provider.model_id_namespace):
                raise
        if (response := self._lean.plain_response(raw, answer)) is not None:
            return response
        with map_api_errors(self.model_name, self._provider.model_id_namespace), map_decode_errors(self.model_name):
            completion = await self._lean.completion(raw, answer, form.head)
        return self._process_response(cast("ChatCompletion | str", completion))

    @asynccontextmanager
    async def open_answer(self, form: "StreamForm", prompt: str) -> AsyncGenerator[TextStream]:
        """What `open_texts` gives for the messages of `form` with this `prompt`. Raises what it raises."""
        assert self._lean is not None
        request = form.request
        try:
            chunks = await self._lean.stream(request.head, request.filled(prompt), timeout_s=request.timeout_s)
        except APIError:
            with map_api_errors(self.model_name, self._provider.model_id_namespace):
                raise
        async with chunks:
            yield await self._begun(chunks, form.interpret)

    @property
    def client(self) -> AsyncOpenAI:
        """What the mapping sends its requests to."""
        return cast("AsyncOpenAI", self._lean) if self._lean is not None else super().client

    @property
    def streams_texts(self) -> bool:
        """Whether no chunk means more to Pydantic AI than its text, the marks of thinking apart."""
        return self._streams_texts

    @asynccontextmanager
    async def open_texts(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> AsyncGenerator[TextStream]:
        """`request_stream` as text. The messages hold no file that would have to be fetched."""
        check_allow_model_requests()
        prepared, parameters = self.prepare_request(model_settings, model_request_parameters)
        settings = cast("OpenAIChatModelSettings", prepared or {})
        response = await self._completions_create(messages, True, settings, parameters)
        if isinstance(response, ModelResponse):
            yield TextStream(CompletedStreamedResponse(response, model_request_parameters=parameters))
            return
        async with response:
            chunks: object = response
            if isinstance(chunks, ChunkStream):
                yield await self._begun(chunks, self._interpreting(parameters, settings))
            else:
                yield TextStream(await self._process_streamed_response(response, parameters, settings))

    async def _begun(self, chunks: ChunkStream, interpret: Interpret) -> PlainTextStream:
        assert self._lean is not None
        plain = self._lean.plain
        stream = PlainTextStream(
            chunks,
            interpret,
            None if plain is None else plain.read_stream,
            model_name=self.model_name,
            namespace=self._provider.model_id_namespace,
            marks=self._marks,
        )
        await stream.begin()
        return stream

    def _interpreting(self, parameters: ModelRequestParameters, settings: OpenAIChatModelSettings) -> Interpret:
        def interpret(source: AsyncIterator[ChatCompletionChunk], model_name: str) -> OpenAIStreamedResponse:
            # As `_process_streamed_response` does it, which looks at the first chunk under a lock; nobody else reads.
            stream = OpenAIStreamedResponse(
                model_request_parameters=parameters,
                _model_name=model_name,
                _model_profile=self.profile,
                _response=cast("Any", source),
                _provider_name=self._provider.name,
                _model_id_namespace=self._provider.model_id_namespace,
                _provider_url=self._provider.base_url,
                _model_settings=settings,
            )
            stream.canonical_system = self._canonical_system_stamp
            return stream

        return interpret

    async def _process_streamed_response(
        self,
        response: AsyncStream[ChatCompletionChunk],
        model_request_parameters: ModelRequestParameters,
        model_settings: OpenAIChatModelSettings | None = None,
    ) -> OpenAIStreamedResponse:
        chunks: object = response
        if isinstance(chunks, ChunkStream) and "openai_include_unmapped_response_data" in (model_settings or {}):
            chunks.joins = False  # Somebody may want to see each of them.
        return await super()._process_streamed_response(response, model_request_parameters, model_settings)

    def _validate_completion(self, response: ChatCompletion) -> LenientChatCompletion:
        if isinstance(response, LenientChatCompletion):
            return response
        return super()._validate_completion(response)

    def _process_response(
        self,
        response: ChatCompletion | str,
        *,
        include_raw_annotations: bool = False,
        include_unmapped_response_data: bool = False,
    ) -> ModelResponse:
        if isinstance(response, ChatCompletion) and response.choices == []:
            # Pydantic AI raises an IndexError for an empty list.
            raise UnexpectedModelBehavior(f"Invalid response from {self.system} chat completions endpoint: no choices")
        return super()._process_response(
            response,
            include_raw_annotations=include_raw_annotations,
            include_unmapped_response_data=include_unmapped_response_data,
        )


@dataclass(frozen=True, slots=True)
class StreamForm:
    """A request for a stream that is complete but for its prompt, and how Pydantic AI would read its answer."""

    request: Form
    interpret: Interpret


_writes_a_form: ContextVar[bool] = ContextVar("writes_a_form", default=False)


class _Written(BaseException):
    """Not an `Exception`, so that it is nobody's error."""

    def __init__(self, form: Form | None) -> None:
        self.form = form


async def _written(request: Coroutine[Any, Any, object]) -> Form | None:
    """The form of what `request` would send."""
    token = _writes_a_form.set(True)
    try:
        await request
    except _Written as written:
        return written.form
    finally:
        _writes_a_form.reset(token)
    raise AssertionError("the form is written before anything is sent")


def is_covered(model: object) -> bool:
    """Whether `LeanChatModel` may take the place of this model; in doubt it may not."""
    if type(model) is not OpenAIChatModel or model._profile is not None:
        return False
    client = model.client
    return (
        type(client) is AsyncOpenAI
        and client._provider is None
        and client.workload_identity is None
        and client._api_key_provider is None
        and client.custom_auth is None
        and not client._custom_query
        and "all" not in getproxies()
    )


class _Client:
    """The part of `AsyncOpenAI` that Pydantic AI's chat mapping calls."""

    def __init__(self, sdk: AsyncOpenAI, http: ProviderHttp, *, marks: Sequence[str], joins: bool) -> None:
        self._sdk = sdk
        self._http = http
        self._marks = marks
        self._joins = joins
        self._client = sdk._client
        self._heads: dict[object, httpx2.Request] = {}
        self.plain: PlainAnswers | None = None
        """Reads what is plain; `None` for a model whose answers have to be looked at each time."""
        # The mapping reaches the call as `client.chat.completions.create`.
        self.chat = self
        self.completions = self

    @property
    def base_url(self) -> httpx2.URL:
        return self._sdk.base_url

    def with_options(self, **_: object) -> Self:
        # Called to set the SDK's own retries; there are none here.
        return self

    async def create(
        self, *, stream: bool, extra_headers: Mapping[str, str], extra_body: object, timeout: object, **fields: object
    ) -> object:
        limit: float | None = None
        if not isinstance(timeout, NotGiven | Omit):
            if not isinstance(timeout, int | float):
                return await self._by_sdk(stream, extra_headers, extra_body, timeout, fields)
            limit = float(timeout)
        fields["stream"] = stream
        if fields.keys() - _KNOWN:
            return await self._by_sdk(stream, extra_headers, extra_body, timeout, fields)
        body: dict[str, object] = {}
        for name in _FIELDS:
            value = fields.get(name, _OMITTED)
            if not isinstance(value, Omit | NotGiven):
                body[name] = value
        if extra_body is not None:
            if not isinstance(extra_body, dict):
                return await self._by_sdk(stream, extra_headers, extra_body, timeout, fields)
            body |= cast("dict[str, object]", extra_body)
        data = openapi_dumps(body)
        request = await self._head(extra_headers, timeout)
        if _writes_a_form.get():
            raise _Written(Form.of(request, data, limit))
        if stream:
            return await self.stream(request, data, timeout_s=limit)
        answer, raw = await self.post(request, data, timeout_s=limit)
        return self.plain_response(raw, answer) or await self.completion(raw, answer, request)

    def plain_response(self, raw: bytes, answer: aiohttp.ClientResponse) -> ModelResponse | None:
        """The response with its price, where it is plain. The mapping passes on a `ModelResponse` as it is."""
        if self.plain is None or not answer.content_type.endswith("json"):
            return None
        response = self.plain.read(raw)
        if response is not None:
            fill_cost(response)
        return response

    async def post(
        self, request: httpx2.Request, data: bytes, *, timeout_s: float | None
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """The good answer to `request`, and its body. Raises what the SDK would."""
        with _sdk_errors(request):
            answer = await self._opened(request, data, timeout_s)
            return answer, await self._http.read(answer, request)

    async def stream(self, request: httpx2.Request, data: bytes, *, timeout_s: float | None) -> ChunkStream:
        """The good answer to `request` as it comes. Raises what the SDK would."""
        with _sdk_errors(request):
            answer = await self._opened(request, data, timeout_s)
        read = self._http.reading(answer, request)
        return ChunkStream(self._sdk, request, read, answer.close, marks=self._marks, joins=self._joins)

    async def _opened(self, request: httpx2.Request, data: bytes, timeout_s: float | None) -> aiohttp.ClientResponse:
        answer = await self._http.open(request, data, timeout_s=timeout_s)
        if not 200 <= answer.status < 300:
            raise await self._status_error(answer, request)
        return answer

    async def completion(self, raw: bytes, answer: aiohttp.ClientResponse, request: httpx2.Request) -> object:
        """The body as the SDK would give it."""
        if answer.content_type.endswith("json"):
            try:
                completion = LenientChatCompletion.model_validate(from_json(raw))
            except ValueError:
                pass  # The SDK is more lenient, and says better what is wrong.
            else:
                if not any(isinstance(choice.message.content, list) for choice in completion.choices):
                    return completion
        response = httpx2.Response(answer.status, headers=_headers(answer), content=raw, request=request)
        return await self._sdk._process_response(
            cast_to=ChatCompletion, options=_OPTIONS, response=response, stream=False, stream_cls=None
        )

    async def _status_error(self, answer: aiohttp.ClientResponse, request: httpx2.Request) -> APIError:
        raw = await self._http.read(answer, request)
        response = httpx2.Response(answer.status, headers=_headers(answer), content=raw, request=request)
        return self._sdk._make_status_error_from_response(response)

    async def _head(self, extra_headers: Mapping[str, str], timeout: object) -> httpx2.Request:
        """URL and headers as the SDK makes them; they are the same for every request with the same extras."""
        key = (tuple(extra_headers.items()), timeout if isinstance(timeout, int | float) else None)
        head = self._heads.get(key)
        if head is None:
            if self._sdk._platform is None:
                self._sdk._platform = await asyncio.to_thread(get_platform)
            options = FinalRequestOptions.construct(
                method="post",
                url="/chat/completions",
                headers=dict(extra_headers),
                timeout=cast("Any", timeout),
                json_data={},
                security={"bearer_auth": True},
            )
            head = self._sdk._build_request(options)
            for name in ("content-length", "host", "connection", "accept-encoding"):
                head.headers.pop(name, None)
            # Converted once: httpx2's URL and headers cost more to read than the request costs to send.
            head.extensions = {
                **head.extensions,
                "mnemosine.url": URL(str(head.url), encoded=True),
                "mnemosine.headers": dict(head.headers),
            }
            if len(self._heads) >= 64:
                self._heads.clear()
            self._heads[key] = head
        return head

    async def _by_sdk(
        self, stream: bool, extra_headers: object, extra_body: object, timeout: object, fields: dict[str, object]
    ) -> object:
        if _writes_a_form.get():
            raise _Written(None)
        fields["stream"] = stream
        create = cast("Any", self._sdk.with_options(max_retries=0).chat.completions.create)
        return await create(**fields, extra_headers=extra_headers, extra_body=extra_body, timeout=timeout)


_OMITTED = Omit()


@contextmanager
def _sdk_errors(request: httpx2.Request) -> Generator[None]:
    try:
        yield
    except httpx2.TimeoutException as error:
        raise APITimeoutError(request=request) from error
    except httpx2.TransportError as error:
        raise APIConnectionError(request=request) from error


def _headers(answer: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    # The body is decoded by now.
    skipped = ("content-encoding", "content-length", "transfer-encoding")
    return [(name, value) for name, value in answer.headers.items() if name.lower() not in skipped]


def _as_httpx(error: Exception, request: httpx2.Request) -> httpx2.TransportError:
    """The same failure in the words that Pydantic AI reads the phase of a failure from."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return httpx2.ConnectTimeout("", request=request)
        case TimeoutError():
            return httpx2.ReadTimeout("", request=request)
        case aiohttp.ClientConnectorError():
            return httpx2.ConnectError("", request=request)
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | aiohttp.ClientResponseError():
            return httpx2.RemoteProtocolError("", request=request)
        case _:
            return httpx2.ReadError("", request=request)
