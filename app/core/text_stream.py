"""The text of a streamed answer while it comes, and what Pydantic AI makes of the whole of it afterwards."""

# pyright: reportPrivateUsage=false
# How chunks become a response is asked of the class of Pydantic AI that maps them, once for a whole stream.

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime

from openai.types.chat import ChatCompletionChunk
from pydantic_ai import ModelMessage, ModelResponse, ModelSettings
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models._decode_errors import map_decode_errors
from pydantic_ai.models.openai import OpenAIStreamedResponse
from pydantic_ai.models.openai._errors import map_api_errors

from app.core.openai_stream import ChunkStream, PlainStream, model_named_in


def text_of(event: object) -> str:
    """The text that an event of a streamed run adds, or that it is; empty for any other event."""
    match event:
        case str():
            return event
        case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case _:
            return ""


class TextStream:
    """The text of one streamed answer, piece by piece; iterate it once, then `response` is there."""

    response: ModelResponse

    def __init__(self, events: StreamedResponse) -> None:
        """The text of a stream that Pydantic AI reads."""
        self._events = events

    async def __aiter__(self) -> AsyncGenerator[str]:
        async for event in self._events:
            if text := text_of(event):
                yield text
        self.response = self._events.get()


class StreamsTexts(ABC):
    """A model whose streams can be read as text, without an event and a part for each chunk."""

    @property
    @abstractmethod
    def streams_texts(self) -> bool:
        """Whether that gives the same text and the same response as Pydantic AI's events do."""

    @abstractmethod
    def open_texts(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> AbstractAsyncContextManager[TextStream]:
        """`request_stream` as text, once its first chunk is there. Raises what Pydantic AI raises."""


Interpret = Callable[[AsyncIterator[ChatCompletionChunk], str], OpenAIStreamedResponse]
"""Makes Pydantic AI's stream of chunks; the second argument is the model's name as the provider says it."""

ReadPlain = Callable[[Sequence[object], datetime], ModelResponse | None]
"""Reads the chunks of a stream that began then, where there is nothing in them that Pydantic AI has to interpret."""


class PlainTextStream(TextStream):
    """A stream that is read without Pydantic AI while nothing but text comes.

    Where something else comes, and at an end that `read_plain` does not read, Pydantic AI reads what came until then as
    one chunk: what it makes of it, and which errors it raises, are its own.
    """

    def __init__(
        self,
        chunks: ChunkStream,
        interpret: Interpret,
        read_plain: ReadPlain | None,
        *,
        model_name: str,
        namespace: str,
        marks: Sequence[str],
    ) -> None:
        self._chunks = chunks
        self._interpret = interpret
        self._read_plain = read_plain
        self._model_name = model_name
        self._namespace = namespace
        self._plain = PlainStream(marks)
        self._batch: list[object] = []
        self._began = datetime.now(UTC)

    async def begin(self) -> None:
        """Wait for the first chunk."""
        with self._errors():
            self._batch = await self._chunks.more()
            if not self._batch:
                raise UnexpectedModelBehavior("Streamed response ended without content or tool calls")
            self._model_name = model_named_in(self._batch[0]) or self._model_name
        self._began = datetime.now(UTC)

    async def __aiter__(self) -> AsyncGenerator[str]:
        told = 0
        rest: list[object] = []
        with self._errors():
            while self._batch and not rest:
                for at, data in enumerate(self._batch):
                    text = self._plain.take(data)
                    if text is None:
                        rest = self._batch[at:]
                        break
                    if text:
                        told += len(text)
                        yield text
                self._batch = [] if rest else await self._chunks.more()
        said = self._plain.chunks()
        if not rest and self._read_plain is not None and (plain := self._read_plain(said, self._began)) is not None:
            self.response = plain
            return
        stream = self._interpret(self._replayed(said, rest), self._model_name)
        stream._timestamp = self._began
        async for event in stream:
            text = text_of(event)
            if told:
                told -= len(text)  # the first event repeats what was told already
            elif text:
                yield text
        self.response = stream.get()

    async def _replayed(self, said: list[object], rest: list[object]) -> AsyncGenerator[ChatCompletionChunk]:
        for data in [*said, *rest]:
            yield self._chunks.chunk(data)
        while rest:
            rest = await self._chunks.more()
            for data in rest:
                yield self._chunks.chunk(data)

    @contextmanager
    def _errors(self) -> Generator[None]:
        with map_api_errors(self._model_name, self._namespace), map_decode_errors(self._model_name):
            yield
