"""A gzip body in pieces is read by every reader as the whole that it stands for."""

import gzip
import shutil
import subprocess
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.gzip_pieces import compress_part, gzip_around


@given(before=st.binary(max_size=100), part=st.binary(max_size=5000), after=st.binary(max_size=100))
def test_the_pieces_are_one_gzip(before: bytes, part: bytes, after: bytes) -> None:
    packed = gzip_around(before, part, compress_part(part), after)
    assert gzip.decompress(packed) == before + part + after
    # As HTTP clients read it: one member, which ends where the body ends.
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert reader.decompress(packed) == before + part + after
    assert reader.eof
    assert not reader.unused_data


def test_another_part_is_noticed() -> None:
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(gzip_around(b"{", b"one" * 100, compress_part(b"two" * 100), b"}"))


def test_gzip_itself_agrees() -> None:
    tool = shutil.which("gzip")
    if tool is None:
        pytest.skip("there is no gzip command here")
    part = b"the same words again and again, " * 1000
    packed = gzip_around(b'{"id":"1",', part, compress_part(part), b"}")
    assert len(packed) < len(part) / 20
    assert subprocess.run([tool, "-dc"], input=packed, capture_output=True, check=True).stdout[10:-1] == part
