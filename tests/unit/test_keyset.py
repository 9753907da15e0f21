"""The set of keys that remembers no key."""

from __future__ import annotations

import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cdcsync.keyset import KeySet

KEYS = 200_000


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(-20, 20).map(str))))
def test_it_holds_what_was_added_and_nothing_whose_hash_was_not(steps: list[tuple[bool, str]]) -> None:
    """After any adding and discarding it holds the keys that are in, and takes others for them by their hash alone."""
    model: set[str] = set()
    keys = KeySet(hashed=_third)
    for adding, key in steps:
        if adding and key not in model:
            model.add(key)
            keys.add(key)
        elif not adding and key in model:
            model.discard(key)
            keys.discard(key)
        hashes = Counter(map(_third, model))
        assert len(keys) == len(model)
        assert all((str(number) in keys) == (_third(str(number)) in hashes) for number in range(-20, 21))


def test_a_key_takes_few_bytes() -> None:
    """200,000 keys take not much more than what is reckoned for each."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        keys = KeySet()
        for number in range(KEYS):
            keys.add(str(number))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(keys) == KEYS
    assert all(str(number) in keys for number in range(0, KEYS, 97))
    assert (after - before) / KEYS < 2 * KeySet.ENTRY_BYTES


def _third(key: str) -> int:
    return int(key) // 3 * 4096
