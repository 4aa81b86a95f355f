"""Passwords, tokens and the signing key, tried the way an attacker would."""

import asyncio
import base64
import hashlib
import hmac
import json
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from app.core.security import PasswordHasher, TokenSigner, generate_password, open_data_dir, signing_key
from app.errors import BadConfiguration, InvalidFields, NotAuthenticated, Overloaded

# Its key types name classes of `cryptography`, which is not installed.
pyjwt: Any = jwt

KEY = b"k" * 32
OTHER_KEY = b"o" * 32


@pytest.fixture
async def hasher() -> AsyncIterator[PasswordHasher]:
    made = PasswordHasher(threads=2, memory_kib=8192, passes=1)
    yield made
    await made.aclose()


async def test_a_password_is_verified_and_another_is_not(hasher: PasswordHasher) -> None:
    hashed = await hasher.hash("correct horse")
    assert hashed.startswith("$argon2id$")
    assert await hasher.verify(hashed, "correct horse")
    assert not await hasher.verify(hashed, "correct horses")
    assert not await hasher.verify("not a hash", "correct horse")
    assert not await hasher.verify(None, "correct horse")


async def test_default_parameters_are_the_recommended_ones() -> None:
    hasher = PasswordHasher()
    try:
        assert "$m=19456,t=2,p=1$" in await hasher.hash("x")
    finally:
        await hasher.aclose()


async def test_an_outdated_hash_is_recognised(hasher: PasswordHasher) -> None:
    assert not hasher.needs_rehash(await hasher.hash("x"))
    assert hasher.needs_rehash("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA")
    assert hasher.needs_rehash("garbage")


@pytest.mark.parametrize("password", ["x" * 1025, "é" * 513, "\ud800"])
async def test_what_is_no_password_is_refused_and_never_verified(hasher: PasswordHasher, password: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        await hasher.hash(password)
    assert caught.value.errors[0].field == "password"
    assert not await hasher.verify(await hasher.hash("x"), password)


async def test_an_unknown_user_costs_as_much_as_a_wrong_password() -> None:
    hasher = PasswordHasher(threads=1)
    try:
        hashed = await hasher.hash("right")
        await hasher.verify(None, "warm")

        async def duration(known: str | None) -> float:
            began = time.perf_counter()
            assert not await hasher.verify(known, "wrong")
            return time.perf_counter() - began

        known = min([await duration(hashed) for _ in range(7)])
        unknown = min([await duration(None) for _ in range(7)])
    finally:
        await hasher.aclose()
    assert 0.5 < unknown / known < 2


async def test_hashing_leaves_the_event_loop_free(hasher: PasswordHasher) -> None:
    threads: set[int] = set()
    original = vars(hasher)["_argon2"].hash

    class Spy:
        def hash(self, password: bytes) -> str:
            threads.add(threading.get_ident())
            return original(password)

    vars(hasher)["_argon2"] = Spy()
    await asyncio.gather(*(hasher.hash("x") for _ in range(8)))
    assert threading.get_ident() not in threads
    assert 1 <= len(threads) <= 2


class Gate:
    """Stands for argon2: hashes only when it is told to, and counts how many it does at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.running = 0
        self.most = 0
        self.done = 0
        self._lock = threading.Lock()

    def hash(self, password: bytes) -> str:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.set()
        self.open.wait(10)
        with self._lock:
            self.running -= 1
            self.done += 1
        return "hashed"


async def test_a_flood_is_bounded_and_the_rest_is_turned_away() -> None:
    hasher, gate = PasswordHasher(threads=2, max_waiting=32), Gate()
    vars(hasher)["_argon2"] = gate
    tasks = [asyncio.create_task(hasher.hash("x")) for _ in range(100)]
    refused = [task for task in (await asyncio.wait(tasks, timeout=0.2))[0] if isinstance(task.exception(), Overloaded)]
    assert len(refused) == 100 - 34
    gate.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers.count("hashed") == 34
    assert gate.most == 2
    await hasher.aclose()


async def test_a_caller_who_leaves_makes_no_room_before_the_thread_is_done() -> None:
    hasher, gate = PasswordHasher(threads=1, max_waiting=1), Gate()
    vars(hasher)["_argon2"] = gate
    running, waiting = (asyncio.create_task(hasher.hash("x")) for _ in range(2))
    await asyncio.to_thread(gate.entered.wait, 10)
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(Overloaded):
        await hasher.hash("x")

    # One who only waited takes no thread, so leaving does make room.
    waiting.cancel()
    await asyncio.wait([waiting])
    third = asyncio.create_task(hasher.hash("x"))
    gate.open.set()
    assert await third == "hashed"
    assert gate.done == 2
    await hasher.aclose()
    assert vars(hasher)["_admitted"] == 0


async def test_closing_ends_the_threads() -> None:
    hasher = PasswordHasher(threads=2)
    await hasher.hash("x")
    await hasher.aclose()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("argon2")]


# Tokens


@pytest.fixture
def signer() -> TokenSigner:
    return TokenSigner(KEY, lifetime_s=600)


def claims_of(signer: TokenSigner) -> dict[str, Any]:
    return pyjwt.decode(signer.issue("u1", 3)[0], options={"verify_signature": False})


def kid_of(signer: TokenSigner) -> str:
    return jwt.get_unverified_header(signer.issue("u1", 3)[0])["kid"]


def test_a_token_says_who_and_until_when(signer: TokenSigner) -> None:
    token, expires_in_s = signer.issue("u1", 3)
    claims = signer.read(token)
    assert (claims.user_id, claims.token_version, expires_in_s) == ("u1", 3, 600)
    assert claims.expires_at == pytest.approx(time.time() + 600, abs=5)
    assert claims.token_id != signer.read(signer.issue("u1", 3)[0]).token_id


def forge(claims: dict[str, Any], *, kid: str, key: Any = KEY, algorithm: str = "HS256", **header: Any) -> str:
    return pyjwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid, **header})


def assemble(header: dict[str, Any], claims: dict[str, Any], *, key: bytes = KEY, digest: str = "sha256") -> str:
    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    body = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    return (body + b"." + part(hmac.new(key, body, digest).digest())).decode()


def test_the_forger_of_these_tests_can_make_a_good_token(signer: TokenSigner) -> None:
    claims = claims_of(signer)
    assert signer.read(forge(claims, kid=kid_of(signer))).user_id == "u1"
    header = {"alg": "HS256", "typ": "JWT", "kid": kid_of(signer)}
    assert signer.read(assemble(header, claims)).user_id == "u1"


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
@pytest.mark.parametrize(
    "attack",
    ["none", "HS384", "HS512", "RS256 name", "other key", "empty key", "kid missing", "kid unknown", "kid path",
     "kid number", "kid other key", "jwk header", "signature cut", "signature flipped", "payload changed", "crit"],
)  # fmt: skip
def test_a_forged_token_is_refused(signer: TokenSigner, attack: str) -> None:
    claims, kid = claims_of(signer), kid_of(signer)
    good = forge(claims, kid=kid)
    head, payload, signature = good.split(".")
    jwk = {"kty": "oct", "k": base64.urlsafe_b64encode(OTHER_KEY).decode()}
    token = {
        "none": lambda: pyjwt.encode(claims, None, algorithm="none", headers={"kid": kid}),
        "HS384": lambda: forge(claims, kid=kid, algorithm="HS384"),
        "HS512": lambda: forge(claims, kid=kid, algorithm="HS512"),
        "RS256 name": lambda: assemble({"alg": "RS256", "typ": "JWT", "kid": kid}, claims),
        "other key": lambda: forge(claims, kid=kid, key=OTHER_KEY),
        "empty key": lambda: assemble({"alg": "HS256", "kid": kid}, claims, key=b""),
        "kid missing": lambda: pyjwt.encode(claims, KEY, algorithm="HS256"),
        "kid unknown": lambda: forge(claims, kid="unknown"),
        "kid path": lambda: assemble({"alg": "HS256", "kid": "../../dev/null"}, claims, key=b""),
        "kid number": lambda: assemble({"alg": "HS256", "kid": 1}, claims),
        "kid other key": lambda: forge(claims, kid=kid_of(TokenSigner(OTHER_KEY, lifetime_s=600)), key=OTHER_KEY),
        "jwk header": lambda: forge(claims, kid=kid, key=OTHER_KEY, jwk=jwk),
        "signature cut": lambda: f"{head}.{payload}.",
        "signature flipped": lambda: f"{head}.{payload}.{signature[:-4]}AAAA",
        "payload changed": lambda: f"{head}.{forge({**claims, 'sub': 'admin'}, kid=kid).split('.')[1]}.{signature}",
        "crit": lambda: forge(claims, kid=kid, crit=["unknown"]),
    }[attack]()
    with pytest.raises(NotAuthenticated) as caught:
        signer.read(token)
    assert "get a new one" in caught.value.detail


@pytest.mark.parametrize("missing", ["exp", "iat", "nbf", "sub", "aud", "iss", "jti", "ver"])
def test_a_token_without_a_claim_is_refused(signer: TokenSigner, missing: str) -> None:
    claims = {name: value for name, value in claims_of(signer).items() if name != missing}
    with pytest.raises(NotAuthenticated):
        signer.read(forge(claims, kid=kid_of(signer)))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"exp": time.time() - 11}, id="ended"),
        {"exp": "soon"},
        {"exp": 1e400},
        pytest.param({"iat": time.time() + 3600}, id="from the future"),
        pytest.param({"nbf": time.time() + 3600}, id="not yet"),
        {"aud": "somebody"},
        {"aud": ["mnemosine-api", "somebody"]},
        {"iss": "somebody"},
        {"sub": ""},
        {"sub": 1},
        {"jti": 1},
        {"ver": "3"},
        {"ver": True},
        {"ver": None},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_claim_is_refused(signer: TokenSigner, changed: dict[str, Any]) -> None:
    token = assemble({"alg": "HS256", "typ": "JWT", "kid": kid_of(signer)}, {**claims_of(signer), **changed})
    with pytest.raises(NotAuthenticated):
        signer.read(token)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "\x00", "\ud800", "x" * 100_000, "Bearer x"])
def test_what_is_no_token_is_refused(signer: TokenSigner, token: str) -> None:
    with pytest.raises(NotAuthenticated):
        signer.read(token)


def test_all_refusals_read_the_same(signer: TokenSigner) -> None:
    messages: set[str] = set()
    for token in ("x", forge(claims_of(signer), kid="unknown"), forge({}, kid=kid_of(signer))):
        with pytest.raises(NotAuthenticated) as caught:
            signer.read(token)
        messages.add(caught.value.detail)
    assert len(messages) == 1


def test_clocks_may_differ_by_ten_seconds(signer: TokenSigner) -> None:
    claims = claims_of(signer)
    soon = {**claims, "iat": time.time() + 8, "nbf": time.time() + 8, "exp": time.time() - 8}
    assert signer.read(forge(soon, kid=kid_of(signer)))


def test_the_previous_key_is_accepted_and_not_used(signer: TokenSigner) -> None:
    rotated = TokenSigner(OTHER_KEY, lifetime_s=600, previous_key=KEY)
    assert rotated.read(signer.issue("u1", 1)[0]).user_id == "u1"
    with pytest.raises(NotAuthenticated):
        signer.read(rotated.issue("u1", 1)[0])
    with pytest.raises(NotAuthenticated):
        TokenSigner(OTHER_KEY, lifetime_s=600).read(signer.issue("u1", 1)[0])


def test_a_short_key_is_refused() -> None:
    with pytest.raises(BadConfiguration, match="at least 32 bytes, has 31"):
        TokenSigner(b"x" * 31, lifetime_s=600)


# The key and its folder


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    key = signing_key(folder)
    assert len(key) == 32
    assert signing_key(folder) == key
    assert mode(folder) == 0o700
    assert mode(folder / "secret.key") == 0o600
    assert [path.name for path in folder.iterdir()] == ["secret.key"]


def test_the_modes_hold_with_a_careless_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        signing_key(tmp_path / "data")
    finally:
        os.umask(before)
    assert mode(tmp_path / "data") == 0o700
    assert mode(tmp_path / "data" / "secret.key") == 0o600


@pytest.mark.parametrize("open_mode", [0o644, 0o640, 0o620, 0o604])
def test_a_key_open_to_others_is_refused_with_the_cure(tmp_path: Path, open_mode: int) -> None:
    signing_key(tmp_path)
    (tmp_path / "secret.key").chmod(open_mode)
    with pytest.raises(BadConfiguration, match="run: chmod 600") as caught:
        signing_key(tmp_path)
    assert "\n" not in caught.value.detail


def test_a_short_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_bytes(b"short")
    (tmp_path / "secret.key").chmod(0o600)
    with pytest.raises(BadConfiguration, match="5 bytes instead of 32"):
        signing_key(tmp_path)


def test_a_key_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x" * 32)
    (tmp_path / "elsewhere").chmod(0o600)
    (tmp_path / "secret.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadConfiguration, match="cannot be opened"):
        signing_key(tmp_path)


def _digest_of_key(folder: Path, start_at: float) -> str:
    time.sleep(max(0.0, start_at - time.time()))
    return hashlib.sha256(signing_key(folder)).hexdigest()


def test_processes_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(len, ["warm"] * 4)
        for number in range(10):
            begin = time.time() + 0.05
            arguments = [(tmp_path / f"data{number}", begin)] * 4
            assert len(set(pool.starmap(_digest_of_key, arguments))) == 1


def test_a_data_directory_that_others_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(BadConfiguration, match="can be written to by others"):
        open_data_dir(tmp_path)
    tmp_path.chmod(0o755)
    assert open_data_dir(tmp_path) == tmp_path


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadConfiguration, match="is not a folder"):
        open_data_dir(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_data_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadConfiguration, match="cannot be written to"):
        open_data_dir(tmp_path)


def test_generated_passwords_are_long_and_differ() -> None:
    made = {generate_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(password) == 24 for password in made)
