"""What ends is refused by every process from the next request on, also where it was just remembered."""

from collections.abc import Callable

import pytest

from tests.workers.conftest import ME, PROMPT, USER_PASSWORD, House, User

End = Callable[[House, User, str], int]
"""End the credentials of a user, of which one key has this id; gives the status of the answer."""


def delete_the_key(house: House, user: User, key_id: str) -> int:
    return house.request("DELETE", f"/api/v1/auth/api-keys/{key_id}", **user.headers).status_code


def disable_the_user(house: House, user: User, _: str) -> int:
    return house.request("PATCH", f"/api/v1/users/{user.id}", {"disabled": True}).status_code


def change_the_password(house: House, user: User, _: str) -> int:
    body = {"old_password": USER_PASSWORD, "new_password": "another password"}
    return house.request("POST", "/api/v1/auth/password", body, **user.headers).status_code


def sign_out(house: House, user: User, _: str) -> int:
    return house.request("POST", "/api/v1/auth/logout", **user.headers).status_code


@pytest.mark.parametrize(
    ("end", "of_the_token", "of_the_key"),
    [
        (delete_the_key, False, True),
        (disable_the_user, True, True),
        (change_the_password, True, True),
        (sign_out, True, False),
    ],
)
async def test_what_ended_is_refused_by_every_process(
    house: House, end: End, of_the_token: bool, of_the_key: bool
) -> None:
    user = house.user()
    key = house.key(user)
    credentials = [(user.token, of_the_token), (key["key"], of_the_key)]
    async with house.lines() as lines:

        async def statuses(credential: str) -> list[int]:
            headers = {"Authorization": f"Bearer {credential}"}
            told = [(await line.ask("GET", ME, **headers)).status for line in lines]
            # A question that came before in these bytes is answered at the front door, which has to know it too.
            return told + [(await line.ask("POST", PROMPT, {"message": "Hello"}, **headers)).status for line in lines]

        for credential, _ in credentials * 3:
            assert await statuses(credential) == [200] * 4
        assert end(house, user, key["id"]) in (200, 204)
        for credential, has_ended in credentials:
            assert await statuses(credential) == [401 if has_ended else 200] * 4
