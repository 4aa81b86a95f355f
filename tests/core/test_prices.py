"""The price of a response, and models that nobody sells."""

from decimal import Decimal

import pytest
from pydantic_ai import ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage

from app.core import prices


def response(model: str) -> ModelResponse:
    usage = RequestUsage(input_tokens=10_000, output_tokens=2_000)
    return ModelResponse([TextPart("Hi")], model_name=model, provider_name="openai", usage=usage)


def test_a_listed_model_has_its_price_each_time() -> None:
    for _ in range(2):
        answer = response("gpt-4o-mini")
        prices.fill_cost(answer)
        assert answer.usage.cost == Decimal("0.0027")


def test_an_unlisted_model_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str | None] = []
    original = prices.fill_response_cost

    def fill(answer: ModelResponse) -> None:
        looked_up.append(answer.model_name)
        original(answer)

    monkeypatch.setattr(prices, "fill_response_cost", fill)
    for _ in range(3):
        answer = response("a-model-of-our-own")
        prices.fill_cost(answer)
        assert answer.usage.cost is None
    assert looked_up == ["a-model-of-our-own"]


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4o-mini", "openai"),
        ("gpt-5-mini", "openai"),
        ("grok-4", "x-ai"),
        ("deepseek-chat", "deepseek"),
        ("gemini-2.5-pro", "google"),
        ("sonar", "perplexity"),
        ("llama-3.3-70b-versatile", "groq"),
    ],
)
@pytest.mark.parametrize(("asked", "said"), [(0, 0), (1, 1), (12, 34), (250_000, 7), (10**9, 1)])
@pytest.mark.parametrize("details", [None, {"service_tier": "default"}, {"service_tier": "priority"}])
def test_every_price_is_the_lists(
    model: str, provider: str, asked: int, said: int, details: dict[str, str] | None
) -> None:
    ours, theirs = (
        ModelResponse(
            [TextPart("Hi")],
            model_name=model,
            provider_name=provider,
            provider_details=details,
            usage=RequestUsage(input_tokens=asked, output_tokens=said),
        )
        for _ in range(2)
    )
    prices.fill_cost(ours)
    prices.fill_response_cost(theirs)
    assert ours.usage.cost == theirs.usage.cost


def test_an_ordinary_price_is_worked_out_without_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "fill_response_cost", lambda _: pytest.fail("the list was asked"))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    answer = response("gpt-4o-mini")
    answer.provider_details = {"service_tier": "default", "finish_reason": "stop"}
    prices.fill_cost(answer)
    assert answer.usage.cost == Decimal("0.0027")
