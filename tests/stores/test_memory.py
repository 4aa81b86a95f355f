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


def test_what_was_made_of_a_value_counts_and_goes_with_it() -> None:
    store = MemoryStore(max_bytes=2 * (ENTRY_OVERHEAD_BYTES + 100))
    store.put(b"a", bytes(100), ttl_s=60, generation=1)
    kept = store.get(b"a", generation=1)
    assert kept is not None
    store.attach(b"a", kept, bytes(1000))
    assert kept.made == b"", "there is no room for it"
    store.attach(b"a", kept, bytes(50))
    store.attach(b"a", kept, bytes(70))
    assert len(kept.made) == 50, "once"
    assert store.bytes == ENTRY_OVERHEAD_BYTES + 150
    store.put(b"a", bytes(100), ttl_s=60, generation=2)
    store.attach(b"a", kept, bytes(10))
    assert store.bytes == ENTRY_OVERHEAD_BYTES + 100, "of the value before"
    store.put(b"b", bytes(100), ttl_s=60, generation=2)
    assert len(store) == 2
    newer = store.get(b"b", generation=2)
    assert newer is not None
    store.attach(b"b", newer, bytes(50))
    assert store.get(b"a", generation=2) is None, "it made room"
    store.clear()
    assert store.bytes == 0
