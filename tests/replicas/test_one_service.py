"""Two replicas are one service: whoever is limited or locked out by one is so by the other."""

import time

import httpx2

from tests.replicas.conftest import Replicas, ask, in_some_round


def test_a_limit_is_counted_over_both(replicas: Replicas) -> None:
    def attempt(number: int) -> bool:
        _, headers = replicas.key(requests_per_minute=20)
        began = time.monotonic()
        replies = [ask(server, "nonce:limited", headers) for _ in range(20) for server in replicas.servers]
        statuses = [reply.status_code for reply in replies]
        refilled = (time.monotonic() - began) // 3 + 1
        assert set(statuses) == {200, 429}
        # A replica that takes Redis for away on a busy machine counts on alone.
        return 20 <= statuses.count(200) <= 20 + refilled

    in_some_round(attempt, True)


def test_a_key_deleted_on_one_is_refused_by_the_other(replicas: Replicas) -> None:
    one, two = replicas.servers
    key_id, headers = replicas.key()
    for server in (one, two):
        assert httpx2.get(f"{server.url}/api/v1/auth/me", headers=headers).status_code == 200
    assert httpx2.delete(f"{one.url}/api/v1/auth/api-keys/{key_id}", headers=one.headers).status_code == 204
    # It has already waited for the other, so no second is left to it.
    assert httpx2.get(f"{two.url}/api/v1/auth/me", headers=headers).status_code == 401
    assert httpx2.get(f"{one.url}/api/v1/auth/me", headers=headers).status_code == 401
