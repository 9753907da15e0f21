"""Snapshots, and the reconciliation of chunks with the stream on a simulated database."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcsync.wal import visibility
from cdcsync.wal.visibility import Snapshot, Window, flushed_position

WRAP = 1 << 32


def test_parse() -> None:
    """Both forms of a snapshot are read, and nothing else."""
    assert Snapshot.parse("10:20:10,14") == Snapshot(10, 20, frozenset({10, 14}))
    assert Snapshot.parse("7:7:") == Snapshot(7, 7, frozenset())
    for wrong in ("", "10:20", "a:b:", "10:20:1,,2", "1:2:3:4"):
        with pytest.raises(ValueError, match=r".*"):
            Snapshot.parse(wrong)


def test_sees_follows_the_snapshot_s_definition() -> None:
    """Running and future transactions are not seen, all others are."""
    snapshot = Snapshot.parse("10:20:10,14")
    assert [xid for xid in range(5, 25) if not snapshot.sees(xid)] == [10, 14, 20, 21, 22, 23, 24]


@given(
    epoch=st.integers(0, 1 << 20),
    low=st.integers(0, WRAP - 1),
    width=st.integers(0, 1000),
    running=st.sets(st.integers(0, 999)),
    distance=st.integers(-(1 << 30), 1 << 30),
)
def test_sees_across_the_wraparound(epoch: int, low: int, width: int, running: set[int], distance: int) -> None:
    """The 32 bits that the stream carries mean the transaction nearest to the snapshot, in whichever epoch it is."""
    xmin = (epoch + 1) * WRAP + low
    xmax = xmin + width
    snapshot = Snapshot(xmin, xmax, frozenset(xmin + offset for offset in running if offset < width))
    full = xmax + distance
    assert snapshot.sees(full % WRAP) == (full < xmax and full not in snapshot.xip)


@pytest.mark.parametrize(
    ("insert", "flushed"),
    [
        (0x3000000 + 40, 0x3000000),  # behind the long header of a segment's first page
        (0x3002000 + 24, 0x3002000),  # behind another page's header
        (0x3002000 + 40, 0x3002000 + 40),  # a record ends there
        (0x3000000 + 24, 0x3000000 + 24),
        (0x3002000, 0x3002000),
        (0x3002ABC, 0x3002ABC),
    ],
)
def test_flushed_position(insert: int, flushed: int) -> None:
    """Only a position directly behind a page's header stands for the page's boundary."""
    assert flushed_position(insert, 16 << 20, 8192) == flushed


NOTHING_SEEN = Snapshot(100, 100, frozenset())


def test_partial_change_does_not_displace_the_row() -> None:
    """A newer change without all columns ends the chunk before its row, unless the same stretch has a whole one."""
    window = Window()
    rows: list[tuple[str | None, bytes]] = [("a", b"A"), (None, b"-"), ("b", b"B"), ("c", b"C")]
    window.open()
    window.note("b", 100, partial=True)
    assert window.merge(rows, NOTHING_SEEN) == ([b"A", b"-"], 2)
    window = Window()
    window.open()
    window.note("b", 100, partial=True)
    window.note("b", 101)
    window.note("b", 101, partial=True)
    assert window.merge(rows, NOTHING_SEEN) == ([b"A", b"-", b"C"], 4)


def test_slow_chunk_under_many_changes_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many keys before the chunk's own are known make the chunk void; afterwards only its own keys are kept."""
    monkeypatch.setattr(visibility, "MAX_NOTED", 3)
    window = Window()
    window.open()
    for key in "wxyz":
        window.note(key, 5)
    assert window.merge([("a", b"A")], NOTHING_SEEN) == ([], 0)
    window.open()
    window.narrow(["a"])
    for key in "wxyz":
        window.note(key, 5)
    assert window.merge([("a", b"A")], NOTHING_SEEN) == ([b"A"], 1)


@dataclass
class Transaction:
    """A transaction of the simulated database and what it writes: key → (version, big column or None for "kept")."""

    xid: int
    truncates: bool = False
    writes: dict[int, tuple[int, int | None] | None] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    commit_lsn: int | None = None


class Simulation:
    """A database whose commits are streamed at one moment and become visible at another, both at random.

    Rows have a version, and a big column that an update may leave out. Row locks are held until visibility, as in
    PostgreSQL. ``copy`` stands for the CRM: it asserts at each write that no key goes back to an older version.
    """

    KEYS = 12

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = 0
        self.xid = 3 * WRAP - self.random.randrange(60)
        self.completed = self.xid - 1
        self.table: dict[int, tuple[int, int]] = {}
        self.versions = dict.fromkeys(range(self.KEYS), 0)
        self.open: list[Transaction] = []
        self.wal: list[Transaction] = []
        self.position = 0
        self.lsn = 0
        self.window = Window()
        self.copy: dict[int, tuple[int, int | None]] = {}
        self.reached = dict.fromkeys(range(self.KEYS), 0)
        self.rereads = 0
        for key in range(self.KEYS):
            if self.random.random() < 0.8:
                self.versions[key] = 1
                self.table[key] = (1, self.random.randrange(1000))

    def locked(self) -> set[int]:
        """Return the keys whose rows an unfinished transaction has written."""
        return {key for transaction in self.open for key in transaction.writes}

    def truncating(self) -> bool:
        """Tell whether a TRUNCATE holds the table's lock."""
        return any(transaction.truncates for transaction in self.open)

    def step(self, *, write: bool = True) -> None:
        """Let something happen."""
        actions = [self.commit, self.commit, self.show, self.show, self.deliver, self.deliver]
        if write:
            actions += [self.begin, self.write, self.write, self.write, self.abort]
            if self.random.random() < 0.05:
                actions.append(self.truncate)
        self.random.choice(actions)()

    def begin(self) -> None:
        """Start a transaction."""
        if len(self.open) < 4:
            self.open.append(Transaction(self.xid))
            self.xid += 1

    def write(self) -> None:
        """Insert, update (in part or whole) or delete a row that no other transaction holds."""
        running = [t for t in self.open if t.commit_lsn is None and not t.truncates]
        if not running or self.truncating():
            return
        transaction = self.random.choice(running)
        key = self.random.randrange(self.KEYS)
        if key in self.locked() - transaction.writes.keys():
            return
        before = transaction.writes[key] if key in transaction.writes else self.table.get(key)
        self.versions[key] += 1
        big = self.random.randrange(1000)
        new: tuple[int, int | None] | None = (self.versions[key], big)
        if before is not None and self.random.random() < 0.6:
            new = (self.versions[key], before[1] if key in transaction.writes else None)
        elif before is not None and self.random.random() < 0.4:
            new = None
        transaction.writes[key] = new
        transaction.versions[key] = self.versions[key]

    def truncate(self) -> None:
        """Empty the table in a transaction of its own."""
        if self.locked() or self.truncating():
            return
        transaction = Transaction(self.xid, truncates=True)
        self.xid += 1
        for key in range(self.KEYS):
            self.versions[key] += 1
            transaction.writes[key] = None
            transaction.versions[key] = self.versions[key]
        self.open.append(transaction)

    def commit(self) -> None:
        """Write a commit record: the stream may have it from now on."""
        running = [t for t in self.open if t.commit_lsn is None]
        if running:
            transaction = self.random.choice(running)
            self.lsn += 10
            transaction.commit_lsn = self.lsn
            self.wal.append(transaction)

    def abort(self) -> None:
        """Roll a transaction back."""
        running = [t for t in self.open if t.commit_lsn is None]
        if running and self.random.random() < 0.2:
            self.finish(self.random.choice(running))

    def show(self) -> None:
        """Make a committed transaction visible and give its locks back."""
        committed = [t for t in self.open if t.commit_lsn is not None]
        if not committed:
            return
        transaction = self.random.choice(committed)
        for key, new in transaction.writes.items():
            if new is None:
                self.table.pop(key, None)
            else:
                self.table[key] = (new[0], self.table[key][1] if new[1] is None else new[1])
        self.finish(transaction)

    def finish(self, transaction: Transaction) -> None:
        """End a transaction."""
        self.open.remove(transaction)
        self.completed = max(self.completed, transaction.xid)

    def deliver(self) -> None:
        """Stream the next committed transaction."""
        if self.position == len(self.wal):
            return
        transaction = self.wal[self.position]
        self.position += 1
        xid = transaction.xid % WRAP
        if transaction.truncates:
            self.window.note_truncate(xid)
        for key, new in transaction.writes.items():
            if not transaction.truncates:
                self.window.note(str(key), xid, partial=new is not None and new[1] is None)
            self.apply(key, transaction.versions[key], new)

    def apply(self, key: int, version: int, new: tuple[int, int | None] | None) -> None:
        """Bring a row's state to the copy; it must not be older than what the copy has."""
        assert version >= self.reached[key], f"key {key} went back from {self.reached[key]} to {version}"
        self.reached[key] = version
        if new is None:
            self.copy.pop(key, None)
        else:
            kept = self.copy.get(key, (0, None))[1]
            self.copy[key] = (new[0], kept if new[1] is None else new[1])

    def snapshot(self) -> Snapshot:
        """Say what is visible now."""
        xmax = self.completed + 1
        running = frozenset(t.xid for t in self.open if t.xid < xmax)
        return Snapshot(min(running, default=xmax), xmax, running)

    def backfill(self) -> Iterator[None]:
        """Copy the table in chunks, pausing wherever time can pass."""
        after = -1
        while True:
            self.window.open()
            yield
            while self.truncating():
                yield
            limit = self.random.randint(1, 5)
            keys = sorted(key for key in self.table if key > after)[:limit]
            chunk = [(key, self.table[key]) for key in keys]
            snapshot = self.snapshot()
            yield
            upto = self.lsn
            self.window.narrow(map(str, keys))
            yield
            while self.position < len(self.wal) and (self.wal[self.position].commit_lsn or 0) <= upto:
                yield
            yield
            merged = self.window.merge([(str(key), b"%d" % key) for key, _ in chunk], snapshot)
            for row in merged.rows:
                version, big = dict(chunk)[int(row)]
                self.apply(int(row), version, (version, big))
            if merged.settled == len(chunk) < limit:
                return
            self.rereads += not merged.settled
            after = chunk[merged.settled - 1][0] if merged.settled else after
            yield

    def run(self) -> None:
        """Write, stream and copy in a random interleaving; then let everything come to its end."""
        for _ in range(self.random.randrange(60)):
            self.step()
        copying = self.backfill()
        for _ in range(1500):
            if self.random.random() < 0.3 and next(copying, self) is self:
                break
            self.step()
        while self.open or self.position < len(self.wal):
            self.step(write=False)
        for _ in copying:
            self.step(write=False)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 1 << 60))
def test_copy_beside_a_stream_converges_and_never_steps_back(seed: int) -> None:
    """Whatever is visible when: at the end the copy equals the table, and no key ever showed an older state."""
    simulation = Simulation(seed)
    simulation.run()
    assert simulation.copy == simulation.table
