"""What a response cost, where somebody knows the price of its model."""

# pyright: reportPrivateUsage=false
# Pydantic AI's own look-up is what makes a direct run cost what the graph's costs.

from genai_prices.data_snapshot import get_snapshot
from pydantic_ai import ModelResponse
from pydantic_ai._genai_prices import fill_response_cost, iter_provider_references

_MOST = 1000
_unpriced: set[tuple[str | None, str | None, str | None]] = set()
"""Models that the price list does not know. It searches itself to the end for each of them, at 100 µs a response."""


def fill_cost(response: ModelResponse) -> None:
    """Put the price into `response.usage.cost`; it stays `None` where the model's price is not known."""
    model = (response.model_name, response.provider_url, response.provider_name)
    if response.usage.cost is not None or model in _unpriced:
        return
    fill_response_cost(response)
    if response.usage.cost is None and len(_unpriced) < _MOST and not _is_listed(response):
        _unpriced.add(model)


def _is_listed(response: ModelResponse) -> bool:
    # A price may also be missing for this response alone, because its usage makes no sense.
    for provider_id, url in iter_provider_references(
        provider_api_url=response.provider_url, provider_id=response.provider_name
    ):
        try:
            get_snapshot().find_provider_model(response.model_name or "", None, provider_id, url)
        except LookupError:
            continue
        return True
    return False
