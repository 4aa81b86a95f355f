"""Rate limits and budgets over two processes, in the worst case: everybody at once."""

from collections import Counter
from math import ceil, floor
from time import monotonic

import anyio
import pytest

from tests.figures import Figures
from tests.workers.conftest import PROMPT, House

LIMIT = 100
TOKENS_A_RUN = 46  # what the fake provider counts: 12 in, 34 out


def same(_: int) -> dict[str, object]:
    return {"message": "the same for all"}


async def accepted_of_400(house: House) -> tuple[int, float]:
    """How many of 400 prompts at once a limit of 100 lets through, and how many seconds they took together."""
    key = house.key(house.user(), requests_per_minute=LIMIT)["key"]
    began = monotonic()
    answers = await house.burst(400, "POST", PROMPT, same, Authorization=f"Bearer {key}")
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}, statuses
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == str(LIMIT)
        if answer.status == 429:
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    return statuses[200], max(answer.at for answer in answers) - began


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.soak)])
async def test_of_400_at_once_a_limit_of_100_lets_100_through(house: House, rounds: int, figures: Figures) -> None:
    beyond: list[int] = []
    for _ in range(rounds):
        accepted, took_s = await accepted_of_400(house)
        # A limit refills all the time: one prompt every 0.6 s while the 400 are being answered.
        refilled = floor(took_s * LIMIT / 60)
        print(f"{accepted} accepted in {took_s:.2f} s, in which {refilled} came back")
        beyond.append(accepted - LIMIT - refilled)
        assert LIMIT <= accepted <= LIMIT + refilled
    figures.note(f"{rounds} times 400 at once, limit 100", "none beyond what came back", f"at most {max(beyond):+d}")


async def test_retry_after_is_right(house: House) -> None:
    key = house.key(house.user(), requests_per_minute=40)["key"]  # one every 1.5 s
    headers = {"Authorization": f"Bearer {key}"}
    await house.burst(40, "POST", PROMPT, same, **headers)
    async with house.lines() as lines:
        # When the next prompt is let through, as every refusal tells it: neither before `earliest` nor after `latest`.
        earliest, latest, accepted = 0.0, float("inf"), 0
        while not accepted:
            for line in lines:
                sent = monotonic()
                answer = await line.ask("POST", PROMPT, same(0), **headers)
                if answer.status == 200:
                    assert answer.at >= earliest, "sooner than the refusals said"
                    earliest, latest = 0.0, float("inf")
                    accepted += 1
                    continue
                assert answer.status == 429
                assert sent <= latest, "later than the refusals said"
                wait_s = int(answer.headers["retry-after-ms"]) / 1000
                assert answer.headers["retry-after"] == str(ceil(wait_s))
                # The header is rounded up, by a millisecond at most.
                earliest, latest = max(earliest, sent + wait_s - 0.002), min(latest, answer.at + wait_s)
                assert earliest <= latest, "two refusals contradict each other"
            await anyio.sleep(0.1)


async def test_of_400_at_once_a_budget_for_100_lets_at_most_101_run(house: House) -> None:
    user = house.user()
    budget = {"period": "month", "unit": "tokens", "amount": 100 * TOKENS_A_RUN}
    assert house.request("PUT", f"/api/v1/users/{user.id}/budget", budget).status_code == 200
    before = house.provider.stats()["calls"]

    def prompt(number: int) -> dict[str, object]:
        return {"message": f"nonce:{user.name}-{number}", "model_settings": {"max_tokens": 34}}

    answers = await house.burst(400, "POST", PROMPT, prompt, **user.headers)
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}, statuses
    ran = house.provider.stats()["calls"] - before
    print(f"{ran} ran")
    assert ran == statuses[200]
    assert 90 <= ran <= 101
    (told,) = house.request("GET", "/api/v1/auth/me/budget", **user.headers).json()["budgets"]
    assert told["spent"] <= 101 * TOKENS_A_RUN
