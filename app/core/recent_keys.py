"""The keys under which answers were kept lately, to tell why a question was not answered from memory."""

from collections import OrderedDict, deque

from app.core.cache_key import CacheKey, Marks, fewest_differing

_FAMILIAR = 256
"""Pairs of scope and agent; the one that came first makes room."""
_RECENT = 8
"""Keys of each."""


class RecentKeys:
    """The last kept keys of each scope and agent, as marks: enough to compare them, and nothing to read in them."""

    def __init__(self) -> None:
        self._marks: OrderedDict[tuple[str, str], deque[Marks]] = OrderedDict()

    def add(self, key: CacheKey) -> None:
        """An answer is now kept under `key`."""
        place = (key.scope, key.agent)
        marks = self._marks.get(place)
        if marks is None:
            marks = self._marks[place] = deque(maxlen=_RECENT)
            if len(self._marks) > _FAMILIAR:
                self._marks.popitem(last=False)
        marks.append(key.marks())

    def differs(self, key: CacheKey) -> tuple[str, ...]:
        """The ingredients in which it differs from the nearest of its scope and agent; none where nothing is near."""
        marks = self._marks.get((key.scope, key.agent))
        return fewest_differing(key.marks(), marks) if marks else ()

    def clear(self) -> None:
        """Nothing is kept any more."""
        self._marks.clear()
