"""What names an answer, and what does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.cache_key import CacheKey, cache_key

BASE: dict[str, Any] = {
    "scope": "user:1",
    "agent": "default",
    "revision": "r1",
    "models": ["openai-chat:a@https://one.example/v1"],
    "instructions": "Be brief.",
    "prompt": "Hello",
    "history": [{"role": "user", "text": "before"}],
    "settings": {"temperature": 0.1, "max_tokens": 5},
    "output_schema": {"type": "object"},
    "tools": [["search", "read"]],
}
OTHER: dict[str, Any] = {
    "scope": "user:2",
    "agent": "second",
    "revision": "r2",
    "models": ["openai-chat:a@https://two.example/v1"],
    "instructions": "Be long.",
    "prompt": "Hello ",
    "history": None,
    "settings": {"temperature": 0.2, "max_tokens": 5},
    "output_schema": None,
    "tools": [["search", "write"]],
}


def key(**changes: Any) -> CacheKey:
    ingredients: dict[str, Any] = {**BASE, **changes}
    return cache_key(**ingredients)


@pytest.mark.parametrize("ingredient", sorted(BASE))
def test_each_ingredient_alone_changes_the_key(ingredient: str) -> None:
    assert key().digest != key(**{ingredient: OTHER[ingredient]}).digest


def test_the_order_of_json_keys_does_not_change_the_key() -> None:
    assert key(settings={"max_tokens": 5, "temperature": 0.1}) == key()


text = st.text(max_size=20)


@given(text, text, text, text)
def test_no_two_scopes_give_one_key(scope: str, other: str, prompt: str, other_prompt: str) -> None:
    if scope != other:
        assert key(scope=scope, prompt=prompt).digest != key(scope=other, prompt=other_prompt).digest
