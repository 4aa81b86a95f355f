"""What a built site makes a reader's browser load from other servers: nothing, or `make docs` fails.

`python -m docs.loads FOLDER` prints each with its page, and then has exit status 1.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
}
_ONLY_NAMED = {"canonical", "alternate", "next", "prev", "author", "license"}
"""Links that a browser does not follow by itself."""


def foreign_loads(site: Path) -> list[str]:
    """`page: address` of everything that a page or a style sheet below `site` loads from another server."""
    found = [f"{page.relative_to(site)}: {address}" for page in site.rglob("*.html") for address in _of_page(page)]
    for sheet in site.rglob("*.css"):
        found += [f"{sheet.relative_to(site)}: {address}" for address in _of_style(sheet.read_text(encoding="utf-8"))]
    return sorted(found)


def _of_page(page: Path) -> Iterator[str]:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    yield from (address for address in reader.loaded if _is_foreign(address))
    yield from _of_style(reader.styles)


def _of_style(text: str) -> Iterator[str]:
    for found in re.finditer(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""", text):
        if _is_foreign(found[1]):
            yield found[1]


def _is_foreign(address: str) -> bool:
    return re.match(r"\s*(https?:)?//", address, re.IGNORECASE) is not None


class _Reader(HTMLParser):
    """Collects what a page loads, and what stands in its `style` elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.styles = ""
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        values = {name: value or "" for name, value in attrs}
        self.styles += values.get("style", "")
        if tag == "link" and set(values.get("rel", "").split()) <= _ONLY_NAMED:
            return
        self.loaded += [values[name] for name in _LOADED.get(tag, ()) if name in values]

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles += data

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


if __name__ == "__main__":
    loads = foreign_loads(Path(sys.argv[1]))
    print("\n".join(loads), end="\n" if loads else "")
    sys.exit(1 if loads else 0)
