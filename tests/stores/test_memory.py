"""The in-process store: bounds, order, time."""

from app.stores.memory import ENTRY_OVERHEAD_BYTES, MemoryStore


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_least_recently_used_entry_makes_room() -> None:
    store = MemoryStore(max_bytes=3 * (ENTRY_OVERHEAD_BYTES + 10))
    for name in (b"a", b"b", b"c"):
        store.put(name, b"x" * 10, ttl_s=60, generation=0)
    assert store.get(b"a", generation=0)
    store.put(b"d", b"x" * 10, ttl_s=60, generation=0)
    assert [name for name in (b"a", b"b", b"c", b"d") if store.get(name, generation=0)] == [b"a", b"c", b"d"]
    assert store.evictions == 1
    assert store.bytes == store.max_bytes


def test_an_entry_over_256_kib_is_not_kept_and_replaces_nothing_stale() -> None:
    store = MemoryStore(max_bytes=10**7)
    assert store.put(b"a", b"x" * 256 * 1024, ttl_s=60, generation=0)
    assert not store.put(b"a", b"x" * (256 * 1024 + 1), ttl_s=60, generation=0)
    assert (len(store), store.bytes) == (0, 0)


def test_nothing_is_served_after_its_time_or_from_another_generation() -> None:
    clock = Clock()
    store = MemoryStore(max_bytes=10**6, clock=clock)
    store.put(b"a", b"1", ttl_s=10, generation=0)
    store.put(b"b", b"2", ttl_s=99, generation=0)
    clock.now = 9.9
    assert store.get(b"a", generation=0)
    clock.now = 10
    assert store.get(b"a", generation=0) is None
    assert store.get(b"b", generation=1) is None
    assert (len(store), store.bytes, store.expirations) == (0, 0, 2)


def test_cleaning_up_removes_the_expired_and_nothing_else() -> None:
    clock = Clock()
    store = MemoryStore(max_bytes=10**6, clock=clock)
    store.put(b"a", b"1", ttl_s=10, generation=0)
    store.put(b"b", b"2", ttl_s=99, generation=0)
    clock.now = 50
    assert store.remove_expired(lambda _: 0) == 1
    assert store.get(b"b", generation=0)
