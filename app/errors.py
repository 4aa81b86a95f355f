"""Everything that can go wrong and that a caller may be told about.

    MnemosineError
    ├── BadConfiguration        a setting cannot work; the start stops with one line        (exit status 2)
    ├── InvalidRequest          400  the request cannot be read at all
    │   ├── PayloadTooLarge     413
    │   ├── UnsupportedMedia    415
    │   ├── UnsupportedParameter  400  a parameter of OpenAI's that would change the answer, and cannot here
    │   └── InvalidFields       422  readable, but fields are wrong; each one is named
    ├── NotAuthenticated        401  no credentials, or bad ones
    ├── NotAllowed              403  known caller, but not for this
    ├── NotFound                404  not there, or not yours: one answer for both
    │   └── ModelNotFound       404  no agent of this name, asked for as a model
    ├── Conflict                409  the state of things forbids it
    ├── LimitExceeded           429  over a rate limit or a budget
    ├── ModelError              what the model's provider did to us
    │   ├── ProviderFailed      502  it answered with an error, with nonsense, or not at all
    │   ├── ProviderBusy        429  it asked us to slow down
    │   └── ProviderTimeout     504  no answer before the deadline
    └── Unavailable             503  right now we cannot; try again in `retry_after_s`
        ├── DatabaseUnavailable
        ├── StoreUnavailable
        ├── ProviderUnavailable
        └── Overloaded

Every error carries a stable `code` (also the last segment of its problem `type`), the HTTP `status` it leaves
with, and a message that is safe to show: no trace, no SQL, no key, no upstream body. The API layer is the only
place that turns one into a response; a test walks this tree and compares it with the docstring.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

TYPE_BASE = "urn:mnemosine:problem:"
"""What a problem's `type` begins with; each has its line in `docs/reference/errors.md`."""


@dataclass(frozen=True, slots=True)
class FieldFault:
    """One field that is wrong: its dotted path in the request, and what would be right."""

    field: str
    message: str


class MnemosineError(Exception):
    """The root. `detail` is one sentence for the caller, with the cure where there is one."""

    code: ClassVar[str] = "internal-error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: float | None = None,
        retry_useful: bool | None = None,
        errors: Sequence[FieldFault] = (),
    ) -> None:
        """Keep `detail` and what the caller can do.

        `retry_after_s` becomes `Retry-After`; `retry_useful=False` becomes `x-should-retry: false`, which the
        OpenAI SDKs obey; `errors` names the fields at fault.
        """
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.retry_useful = retry_useful
        self.errors = tuple(errors)


class BadConfiguration(MnemosineError):
    """A setting cannot work: the message names the setting, what is wrong, and a valid example."""

    code = "bad-configuration"
    title = "Bad configuration"


class InvalidRequest(MnemosineError):
    """The request cannot be read: malformed JSON, a bad header."""

    code = "invalid-request"
    status = 400
    title = "Invalid request"


class PayloadTooLarge(InvalidRequest):
    """The body is larger than `MAX_REQUEST_BYTES`."""

    code = "payload-too-large"
    status = 413
    title = "Payload too large"


class UnsupportedMedia(InvalidRequest):
    """The body is not the media type that the route takes, or it is compressed."""

    code = "unsupported-media-type"
    status = 415
    title = "Unsupported media type"


class UnsupportedParameter(InvalidRequest):
    """A parameter of OpenAI's API that would change the answer is not known here; `errors` names it."""

    code = "unsupported-parameter"
    title = "Unsupported parameter"


class InvalidFields(InvalidRequest):
    """The body is JSON, but fields are missing, unknown or out of bounds."""

    code = "invalid-fields"
    status = 422
    title = "Invalid fields"


class NotAuthenticated(MnemosineError):
    """No credentials, or none that are valid now."""

    code = "not-authenticated"
    status = 401
    title = "Not authenticated"


class NotAllowed(MnemosineError):
    """The caller is known and may not do this."""

    code = "not-allowed"
    status = 403
    title = "Not allowed"


class NotFound(MnemosineError):
    """It does not exist, or it belongs to somebody else; the answer does not tell which."""

    code = "not-found"
    status = 404
    title = "Not found"


class ModelNotFound(NotFound):
    """No agent has the name that an OpenAI request gives as its `model`."""

    code = "model-not-found"
    title = "Model not found"


class Conflict(MnemosineError):
    """The request contradicts the present state."""

    code = "conflict"
    status = 409
    title = "Conflict"


class LimitExceeded(MnemosineError):
    """The caller is over a rate limit or a budget.

    `run_id` names the run that had no room in it; who only waited for that run has been refused nothing.
    """

    run_id: str | None = None

    code = "limit-exceeded"
    status = 429
    title = "Limit exceeded"


class ModelError(MnemosineError):
    """The model's provider did not give a usable answer. The message names the provider, never its body."""

    code = "provider-failed"
    status = 502
    title = "Model provider failed"


class ProviderFailed(ModelError):
    """The provider refused, broke off, or answered with something that is not an answer."""


class ProviderBusy(ModelError):
    """The provider is rate-limiting us; `retry_after_s` is what it asked for, if it said."""

    code = "provider-busy"
    status = 429
    title = "Model provider is rate-limiting"


class ProviderTimeout(ModelError):
    """The provider did not answer before the deadline."""

    code = "provider-timeout"
    status = 504
    title = "Model provider timed out"


class Unavailable(MnemosineError):
    """Something that is needed is away for the moment."""

    code = "unavailable"
    status = 503
    title = "Temporarily unavailable"

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        """Keep `detail`; the caller may come back in `retry_after_s` seconds."""
        super().__init__(detail, retry_after_s=retry_after_s)


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or not in time. Never reported as a 401."""

    code = "database-unavailable"
    title = "Database unavailable"


class StoreUnavailable(Unavailable):
    """The shared store (Redis, or this machine's) does not answer; the caller decides what that means."""

    code = "store-unavailable"
    title = "Shared store unavailable"


class ProviderUnavailable(Unavailable):
    """The model's provider has been failing, so it is left alone until `retry_after_s`; nothing was sent to it."""

    code = "provider-unavailable"
    title = "Model provider unavailable"


class Overloaded(Unavailable):
    """More work is waiting than the configured bounds allow."""

    code = "overloaded"
    title = "Overloaded"
