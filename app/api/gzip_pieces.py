"""A gzip body around a part that was compressed once: what is new about it goes out as it is, beside that part."""

import struct
import zlib

# RFC 1952: no name, no time; "unknown" as the system, so that every machine writes the same.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_STORED = struct.Struct("<BHH")
_TRAILER = struct.Struct("<II")
_MOST_STORED = 0xFFFF


def compress_part(part: bytes, *, level: int = 5) -> bytes:
    """`part` as deflate blocks that end at a whole byte and refer to nothing before them."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)


def gzip_around(before: bytes, part: bytes, compressed: bytes, after: bytes) -> bytes:
    """The gzip of `before`, `part` and `after`, where `compressed` is what `compress_part` made of `part`.

    `before` and `after` have at most 65,535 bytes each; they are not compressed (RFC 1951, section 3.2.4).
    """
    crc = zlib.crc32(after, zlib.crc32(part, zlib.crc32(before)))
    length = len(before) + len(part) + len(after)
    trailer = _TRAILER.pack(crc, length & 0xFFFFFFFF)
    return b"".join((_HEADER, _stored(before), compressed, _stored(after, last=True), trailer))


def _stored(data: bytes, *, last: bool = False) -> bytes:
    return _STORED.pack(last, len(data), len(data) ^ _MOST_STORED) + data
