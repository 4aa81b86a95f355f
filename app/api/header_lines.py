"""Headers as they are sent: lines of bytes, written in one piece where most responses have the same ones."""


def headers_in(lines: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that these `lines` hold, as ASGI wants them. Each line is `name: value` and ends in CR LF."""
    return [(name, value) for name, _, value in [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]]
