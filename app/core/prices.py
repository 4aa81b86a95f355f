"""What a response cost, where somebody knows the price of its model."""

# pyright: reportPrivateUsage=false
# Pydantic AI's own look-up is what makes a direct run cost what the graph's costs.

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Usage
from pydantic_ai import ModelResponse, RequestUsage
from pydantic_ai._genai_prices import fill_response_cost, iter_provider_references

_MOST = 1000
_PROBES = ((7919, 104_729), (0, 15_485_863), (982_451_653, 0))
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class _Rate:
    """Dollars for a million tokens, in and out, of a model whose price knows nothing else."""

    prices: Any
    """What it was read from; held, so that its place in memory is nobody else's."""
    asked: Decimal
    said: Decimal

    def cost(self, asked: int, said: int) -> Decimal:
        return self.asked * asked / _MILLION + self.said * said / _MILLION


_unpriced: set[tuple[str | None, str | None, str | None]] = set()
"""Models that the price list does not know. It searches itself to the end for each of them, at 100 µs a response."""
_rates: dict[int, _Rate | None] = {}
"""By the place of the list's entry; `None` where only the list can tell. It takes 100 µs for that, too."""


def fill_cost(response: ModelResponse) -> None:
    """Put the price into `response.usage.cost`; it stays `None` where the model's price is not known."""
    model = (response.model_name, response.provider_url, response.provider_name)
    usage = response.usage
    if usage.cost is not None or model in _unpriced:
        return
    if (
        _is_simple(usage)
        and (listed := _listed(response)) is not None
        and (rate := _rate(*listed, response)) is not None
    ):
        usage.cost = rate.cost(usage.input_tokens, usage.output_tokens)
        return
    fill_response_cost(response)
    if usage.cost is None and len(_unpriced) < _MOST and _listed(response) is None:
        # A price may also be missing for this response alone, because its usage makes no sense.
        _unpriced.add(model)


def _listed(response: ModelResponse) -> tuple[str, ModelInfo] | None:
    """The list's entry for the model, and whose it is."""
    for provider_id, url in iter_provider_references(
        provider_api_url=response.provider_url, provider_id=response.provider_name
    ):
        try:
            provider, model = get_snapshot().find_provider_model(response.model_name or "", None, provider_id, url)
        except LookupError:
            continue
        return provider.id, model
    return None


def _is_simple(usage: RequestUsage) -> bool:
    """Whether nothing but tokens, in and out, was counted."""
    counted = [name for name, value in usage.__dict__.items() if value and name != "details"]
    return set(counted) <= {"input_tokens", "output_tokens"} and not any(usage.details.values())


def _rate(provider_id: str, model: ModelInfo, response: ModelResponse) -> _Rate | None:
    prices = model.prices
    if not isinstance(prices, ModelPrice) or provider_id == "groq":
        return None
    details = response.provider_details or {}
    for variant in model.price_variants or ():
        # Another service tier, for example; one that overrides nothing only says so.
        if vars(variant.prices) and all(details.get(name) == value for name, value in variant.when.items()):
            return None
    if id(prices) in _rates:
        known = _rates[id(prices)]
        return known if known is not None and known.prices is prices else None
    if len(_rates) >= _MOST:
        _rates.clear()
    rate = _rates[id(prices)] = _read(prices)
    return rate


def _read(prices: ModelPrice) -> _Rate | None:
    asked, said = (cast("object", getattr(prices, name)) for name in ("input_mtok", "output_mtok"))
    if not isinstance(asked, Decimal | None) or not isinstance(said, Decimal | None):
        return None
    rate = _Rate(prices, asked or Decimal(0), said or Decimal(0))
    for tokens in _PROBES:
        try:
            told = prices.calc_price(Usage(input_tokens=tokens[0], output_tokens=tokens[1]))["total_price"]
        except ValueError:
            return None
        if told != rate.cost(*tokens):
            return None
    return rate
