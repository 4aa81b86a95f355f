"""Fresh names: none comes twice, in whatever process."""

import os
from uuid import UUID

from app.core.identity import new_id, new_uuid7


def test_no_name_comes_twice() -> None:
    names = [new_id() for _ in range(2000)]
    assert len(set(names)) == len(names)
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


def test_a_uuid_says_its_version_and_comes_once() -> None:
    made = [UUID(new_uuid7()) for _ in range(2000)]
    assert len(set(made)) == len(made)
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}


def test_a_forked_process_gives_out_other_names() -> None:
    new_id()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 32).decode()
    os.close(read)
    os.close(write)
    assert theirs not in {new_id() for _ in range(300)}
