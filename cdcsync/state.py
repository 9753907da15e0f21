"""The state file: journal, ledger, rejects, jobs, counters and the checkpoint, in one SQLite database.

Its one promise: a ``Tick`` is written whole or not at all. It carries everything that became known since the last
one, up to and including its position in the stream; only after it is on disk may its ``durable_lsn`` be confirmed to
PostgreSQL. The tables are described in ``docs/state.md``; the schema has a version and is migrated at the start.

All methods block, and belong to one thread at a time (the pipeline gives them a thread of their own).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from cdcsync.backlog import COLD
from cdcsync.claim import Claim
from cdcsync.coalesce import PendingRow, Refused
from cdcsync.entries import Asker, Balance, Checkpoint, CopyState, DriftMark, Identity, Job, Known, Pause, Seen, Tick
from cdcsync.model import START, Column, JobState, Op, Position, Relation
from cdcsync.state_deletes import OURS, StoredDeletes
from cdcsync.state_file import StateFile
from cdcsync.state_pauses import StoredPauses
from cdcsync.state_rejects import RejectTable

T = TypeVar("T")

_DELETED, _INSERTED, _UNCERTAIN, _WHOLE, _COPIED = 1, 2, 4, 8, 16
_ROW = (
    "key, relation, image, flags, origins, first_lsn, first_ordinal, last_lsn, last_ordinal, since, latest, refusals, "
    "refused"
)
_COPY = (
    "id, mapping, reason, requested, condition, keys, sweep, asker, started, cursor, rows, estimate, read, "
    "finished, error"
)
_WHOLE_TABLE = "condition IS NULL AND keys IS NULL"
_ROW_BYTES = 80
"""What a row of the journal takes beside its key and image."""
BACKUP = "backup"
"""The setting that says of a file that it is a copy which the daemon did not go on with."""
_SHAPES = 1_000
"""So many new shapes of tables and mappings make a start look for those that are not used."""
_CHUNK = 500
"""Entries that one statement, or one run of it, is given."""


class State:
    """The open state file. ``State.open`` for the daemon (exclusive), ``State.read`` for commands beside it."""

    def __init__(self, file: StateFile) -> None:
        self._db = file
        self.path = file.path
        self.pauses = StoredPauses(file)
        self.deletes = StoredDeletes(file, self._mapping_id)
        self._mapping_ids: dict[str, int] = {}
        self._relation_ids: dict[Relation, int] = {}
        self._relations: dict[int, Relation] = {}
        self._shape_ids: dict[tuple[str, ...], int] = {}
        self._shapes: dict[int, tuple[str, ...]] = {}
        self.parked = RejectTable(
            file,
            columns=_ROW,
            pack=self._pack,
            unpack=self._unpack,
            mapping_id=self._mapping_id,
            transaction=self._transaction,
        )

    @classmethod
    def open(cls, path: Path, mirror: Path | None = None, claim: Claim | None = None) -> State:
        """Open or create the file for writing, alone. Raises StateError when it or its mirror cannot be used."""
        state = cls(StateFile.open(path, mirror, claim))
        state._drop_unused()
        return state

    @classmethod
    def read(cls, path: Path) -> State:
        """Open an existing file read-only, beside a running daemon. Raises StateError."""
        return cls(StateFile.read(path))

    @classmethod
    def beside(cls, path: Path, mirror: Path | None = None) -> State:
        """Open an existing file for a small change beside a running daemon. Raises StateError."""
        return cls(StateFile.beside(path, mirror))

    def close(self) -> None:
        """Close the file and release the lock."""
        self._db.close()

    @property
    def mirrored(self) -> bool:
        """Whether the file has a mirror, so that another machine may take over."""
        return self._db.mirrored

    def confirm(self) -> None:
        """See that the file is still this daemon's. Raises StateError where another one may write, or has written."""
        self._db.confirm()

    # --- identity and checkpoint

    def identity(self) -> Identity | None:
        """Return what the checkpoint is bound to; None before the first start."""
        text = self._meta("identity")
        return Identity(*json.loads(text)) if text else None

    def bind(self, identity: Identity, start: int, timeline: int) -> None:
        """Bind a new file to a slot; the stream starts at ``start``, on the server's ``timeline``."""
        with self._transaction():
            self._set_meta("identity", json.dumps(list(identity)))
            self._set_meta("durable_lsn", str(start))
            self._set_meta("timeline", str(timeline))

    def timeline(self) -> int | None:
        """Return the server's timeline on which the checkpoint was received; None in files of before 0.1."""
        text = self._meta("timeline")
        return int(text) if text else None

    def skip(self, lsn: int, timeline: int) -> None:
        """Move the checkpoint to ``lsn``, past changes that nobody reads, and let every table be compared again."""
        with self._transaction():
            position = max(self.checkpoint().position, Position(lsn, 0))
            self._set_meta("durable_lsn", str(lsn))
            self._set_meta("position", json.dumps(list(position)))
            self._set_meta("timeline", str(timeline))
            self._copy_anew("changes were skipped")

    def intend_slot(self, slot: str) -> None:
        """Write down that a slot is about to be made, so that an interrupted first start knows it as its own."""
        with self._transaction():
            self._set_meta("intended_slot", slot)

    def intended_slot(self) -> str | None:
        """Return the slot that a first start was about to make."""
        return self._meta("intended_slot")

    def unbind(self) -> None:
        """Forget slot and position, and let every table be copied again; the ledger stays, so only differences go.

        Records whose rows went away meanwhile are found at the end of that copy. Copies that were asked for and are
        not done begin anew: what they have read may have changed unseen.
        """
        with self._transaction():
            self._db.execute(
                "DELETE FROM meta WHERE key IN ('identity', 'durable_lsn', 'position', 'timeline', 'intended_slot')"
            )
            self._db.execute("DELETE FROM horizon")
            self.deletes.forget_grants()
            self._copy_anew("the slot was given up")

    def begin_trial(self) -> None:
        """Make a copy of a state file one to try things on: its ledger stays, and every table is compared with it.

        What waits, is parked or paused is forgotten: the copies find it again.
        """
        self.unbind()
        with self._transaction():
            for table in ("journal", "reject", "reject_request", "job", "counter", "sent_link", "pause", "met", "copy"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 — our names
            for prefix in ("paused_by:", "paused_crm:", "drifted:"):
                self._db.execute("DELETE FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
            self._db.execute("DELETE FROM meta WHERE key = 'alerts'")

    def _copy_anew(self, reason: str) -> None:
        self._db.execute("DELETE FROM met")
        self._db.execute("DELETE FROM meta WHERE key LIKE 'copied:%'")
        self._db.execute("DELETE FROM copy WHERE asker = 'config' OR finished IS NOT NULL")
        self._db.execute(
            "UPDATE copy SET started = 0, cursor = NULL, rows = 0, read = 0, sweep = sweep OR (condition IS NULL)"
        )
        for (name,) in self._db.execute("SELECT name FROM mapping").fetchall():
            self._set_meta(f"sweep:{name}", reason)

    def retire(self, configured: Collection[str]) -> list[str]:
        """Note which mappings are not configured now: when one is again, its table is copied and swept anew.

        What changed meanwhile was not seen. Returns the mappings that were configured before.
        """
        with self._transaction():
            known = [name for (name,) in self._db.execute("SELECT DISTINCT mapping FROM copy").fetchall()]
            retired = [name for name in known if name not in configured]
            for name in retired:
                self._db.execute("DELETE FROM met WHERE copy IN (SELECT id FROM copy WHERE mapping = ?)", (name,))
                self._db.execute("DELETE FROM copy WHERE mapping = ?", (name,))
                self._set_meta(f"sweep:{name}", "it was not configured for a while")
        return retired

    def distrust(self) -> None:
        """Give up what an old copy says of rows on their way and of records' contents: much has happened since.

        That there are such records it still says, so that a comparison can find those whose rows are gone; each is
        looked up in the CRM by its key. Rows that are dropped count as folded into what that comparison reads.
        """
        with self._transaction():
            for balance in self.balances():
                self._db.execute(
                    "INSERT OR REPLACE INTO counter VALUES (?, 'coalesced', ?)",
                    (balance.lane, balance.coalesced + balance.pending + balance.rejected),
                )
            for table in ("journal", "reject", "reject_request", "job", "horizon"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 — our names
            self._db.execute(
                "UPDATE ledger SET crm_id = NULL, shape = ?, hashes = X'', links = NULL", (self._shape_id(()),)
            )
            self._db.execute("DELETE FROM meta WHERE key = ?", (BACKUP,))

    def backed_up(self) -> str | None:
        """Return when this file was copied as a backup, in words; None if it is not a backup."""
        return self._meta(BACKUP)

    def go_on_from_backup(self, lanes: Collection[str], lsn: int) -> None:
        """Take a backup for the state: what was committed up to ``lsn`` may have been sent without its knowledge."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO horizon VALUES (?, ?, ?)",
                [(lane, *max(self.horizon(lane), Position(lsn, 0))) for lane in lanes],
            )
            self._db.execute("DELETE FROM meta WHERE key = ?", (BACKUP,))

    def unmapped(self, lane: str, configured: Collection[str]) -> int:
        """Count a lane's unsettled and parked rows of mappings that are not configured now; they are kept."""
        prefix = "applied:"
        names = {name.removeprefix(prefix) for name in self.counters(lane) if name.startswith(prefix)} - set(configured)
        pending = self.pending()
        return sum(pending.get(name, 0) + self.parked.count(name) for name in names)

    def checkpoint(self) -> Checkpoint:
        """Return where the stream goes on."""
        position = json.loads(self._meta("position") or "null")
        return Checkpoint(int(self._meta("durable_lsn") or 0), Position(*position) if position else START)

    def horizon(self, lane: str) -> Position:
        """Return the position up to which changes may have been sent to the CRM."""
        row = self._db.execute("SELECT lsn, ordinal FROM horizon WHERE lane = ?", (lane,)).fetchone()
        return Position(*row) if row else START

    def announce(self, lane: str, position: Position, links: Sequence[tuple[str, str, str, str]] = ()) -> None:
        """Write down, before sending, that changes up to ``position`` may reach the CRM.

        ``links`` are associations about to be made: (mapping, key, slot, CRM id linked to).
        """
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO horizon VALUES (?, ?, ?)", (lane, *position))
            self._db.executemany(
                "INSERT OR IGNORE INTO sent_link VALUES (?, ?, ?, ?)",
                [(self._mapping_id(mapping), *rest) for mapping, *rest in links],
            )

    def sent_links(self, mapping: str) -> list[tuple[str, str, str]]:
        """Return the associations that may have been made without being settled: (key, slot, CRM id)."""
        return self._db.execute(
            "SELECT key, slot, crm_id FROM sent_link WHERE mapping = ?", (self._mapping_id(mapping),)
        ).fetchall()

    def paused(self) -> dict[str, str]:
        """Return the mappings that are paused themselves, with the reason."""
        return {name: pause.reason for name, pause in self.pauses.standing().maps.items()}

    def pause(self, mapping: str, reason: str, now: float) -> None:
        """Pause a mapping, by hand: its changes are kept and not sent."""
        self.pauses.pause(mapping, Pause(reason, now))

    def resume(self, mapping: str) -> bool:
        """Lift a mapping's pause; returns whether there was one."""
        return self.pauses.resume(mapping)

    def seen(self, mapping: str) -> Seen | None:
        """Return a mapping's table as it was when it fitted last; None before the first start with it."""
        text = self._meta(f"seen:{mapping}")
        return Seen(**json.loads(text)) if text else None

    def drift_mark(self, mapping: str) -> DriftMark | None:
        """Return what becomes of the table's rows, if the mapping was paused because the table changed."""
        mark = self._meta(f"drifted:{mapping}")
        return "passed over" if mark == "passed over" else "kept" if mark else None

    def pace(self, lane: str) -> str | None:
        """Return what a lane's limiter remembered last, as JSON: calls of the day, and the breaker."""
        return self._meta(f"pace:{lane}")

    def alerts(self) -> str | None:
        """Return what was to be remembered of the alerts."""
        return self._meta("alerts")

    def keep_alerts(self, text: str) -> None:
        """Remember the alerts."""
        with self._transaction():
            self._set_meta("alerts", text)

    # --- copies

    def request_resync(
        self,
        mapping: str,
        reason: str,
        now: float,
        *,
        condition: str | None = None,
        keys: Sequence[str] = (),
        sweep: bool = True,
        asker: Asker = "daemon",
        estimate: int = 0,
    ) -> None:
        """Ask for a mapping's rows to be copied: all, those that meet a ``condition`` (SQL), or those with ``keys``.

        ``sweep``: what is not met is deleted from the CRM, of all records or of those with ``keys``; with a condition
        nothing is. A daemon that runs takes the request up within a second or two, another one at its start. One for
        all rows that has not begun takes a further one in.
        """
        with self._transaction():
            self._request(
                mapping, reason, now, sweep=sweep, condition=condition, keys=keys, asker=asker, estimate=estimate
            )

    def want_copy(self, mapping: str, now: float) -> None:
        """Ask for a mapping's first copy unless all its rows are, or are going to be, copied already."""
        with self._transaction():
            whole = f"SELECT 1 FROM copy WHERE mapping = ? AND error IS NULL AND {_WHOLE_TABLE}"  # noqa: S608 — constant
            if self._db.execute(whole, (mapping,)).fetchone() is None:
                unseen = self._meta(f"sweep:{mapping}")
                self._request(mapping, unseen or "first copy", now, sweep=unseen is not None, asker="config")
            self._db.execute("DELETE FROM meta WHERE key = ?", (f"sweep:{mapping}",))

    def _request(
        self,
        mapping: str,
        reason: str,
        now: float,
        *,
        sweep: bool,
        condition: str | None = None,
        keys: Sequence[str] = (),
        asker: Asker = "daemon",
        estimate: int = 0,
    ) -> None:
        sweep = sweep and condition is None
        if condition is None and not keys:
            taken = self._db.execute(
                "UPDATE copy SET sweep = sweep OR ?, asker = max(asker, ?), reason = ? WHERE mapping = ? "  # noqa: S608 — constant
                f"AND NOT started AND finished IS NULL AND {_WHOLE_TABLE}",
                (sweep, asker, reason, mapping),
            )
            if taken.rowcount:
                return
        self._db.execute(
            "INSERT INTO copy (mapping, reason, requested, condition, keys, sweep, asker, estimate) "
            "VALUES (?,?,?,?,?,?,?,?)",
            (mapping, reason, now, condition, json.dumps(list(keys)) if keys else None, sweep, asker, estimate),
        )

    def copies(self) -> list[CopyState]:
        """Return the copies that are not finished, in the order in which they were asked for."""
        return [_copy(row) for row in self._db.execute(f"SELECT {_COPY} FROM copy WHERE finished IS NULL ORDER BY id")]  # noqa: S608 — constant

    def last_copy(self, mapping: str) -> CopyState | None:
        """Return the copy that is under way for a mapping, or else the one that finished last."""
        row = self._db.execute(
            f"SELECT {_COPY} FROM copy WHERE mapping = ? ORDER BY finished IS NOT NULL, started DESC, "  # noqa: S608 — constant
            "CASE WHEN finished IS NULL THEN id ELSE -finished END LIMIT 1",
            (mapping,),
        ).fetchone()
        return None if row is None else _copy(row)

    def copied(self, mapping: str) -> bool:
        """Whether all rows of a mapping's table were copied once."""
        query = f"SELECT 1 FROM copy WHERE mapping = ? AND finished IS NOT NULL AND error IS NULL AND {_WHOLE_TABLE}"  # noqa: S608 — constant
        return self._db.execute(query, (mapping,)).fetchone() is not None

    def copied_to(self, mapping: str) -> Position:
        """Return the position up to which rows that wait may be of a copy, with all that had happened before it."""
        text = self._meta(f"copied:{mapping}")
        return Position(*json.loads(text)) if text else START

    def begin_copy(self, number: int) -> CopyState:
        """Note that a copy begins, so that later requests are not taken into it; returns it as it is now."""
        with self._transaction():
            self._db.execute("UPDATE copy SET started = 1 WHERE id = ?", (number,))
            return _copy(self._db.execute(f"SELECT {_COPY} FROM copy WHERE id = ?", (number,)).fetchone())  # noqa: S608 — constant

    def unmet(self, entry: CopyState, start: str, limit: int) -> list[str]:
        """Return keys from ``start`` on, in order, of records that the CRM may have or get and that nobody met.

        What the ledger knows without our having written it (records that were found to link to) is not ours to delete.
        """
        new = "AND NOT EXISTS (SELECT 1 FROM met WHERE copy = :copy AND met.key = s.key)"
        rows = self._db.execute(
            "SELECT key FROM ledger s WHERE mapping = :mapping AND key >= :start "  # noqa: S608 — constants
            f"AND {OURS} {new} "
            f"UNION SELECT key FROM journal s WHERE mapping = :mapping AND key >= :start {new} "
            f"UNION SELECT key FROM reject s WHERE mapping = :mapping AND key >= :start {new} ORDER BY 1 LIMIT :limit",
            {"copy": entry.id, "mapping": self._mapping_id(entry.mapping), "start": start, "limit": limit},
        )
        return [key for (key,) in rows]

    def count_unmet(self, entry: CopyState) -> tuple[int, int]:
        """Return how many records of a mapping nobody met, and how many the CRM is known to hold."""
        (counts,) = self._db.execute(
            "SELECT count(*) - count(met.key), count(*) FROM ledger s "  # noqa: S608 — constant
            "LEFT JOIN met ON met.copy = :copy AND met.key = s.key "
            f"WHERE mapping = :mapping AND {OURS}",
            {"copy": entry.id, "mapping": self._mapping_id(entry.mapping)},
        ).fetchall()
        return counts[0], counts[1]

    def superseded(self, entry: CopyState) -> bool:
        """Whether a later copy of all of a mapping's rows is to be done."""
        query = (
            "SELECT 1 FROM copy WHERE mapping = ? AND id > ? AND sweep AND finished IS NULL "  # noqa: S608 — constant
            f"AND {_WHOLE_TABLE}"
        )
        return self._db.execute(query, (entry.mapping, entry.id)).fetchone() is not None

    def met(self, number: int) -> set[str]:
        """Return the keys that a copy has met."""
        return {key for (key,) in self._db.execute("SELECT key FROM met WHERE copy = ?", (number,))}

    def finish_copy(self, entry: CopyState, now: float, error: str | None = None) -> None:
        """Note that a copy is done, or why it will never be; of those finished before, only what still counts stays."""
        same_kind = _WHOLE_TABLE if entry.whole else f"NOT ({_WHOLE_TABLE})"
        with self._transaction():
            self._db.execute("DELETE FROM met WHERE copy = ?", (entry.id,))
            self._db.execute(
                "DELETE FROM copy WHERE mapping = ? AND finished IS NOT NULL "  # noqa: S608 — constants
                f"AND (error IS NOT NULL OR (? AND {same_kind}))",
                (entry.mapping, error is None),
            )
            self._db.execute("UPDATE copy SET finished = ?, error = ? WHERE id = ?", (now, error, entry.id))
            if error is None and entry.makes_up:
                self._set_meta(f"copied:{entry.mapping}", json.dumps(list(self.checkpoint().position)))

    # --- the tick

    def write(self, tick: Tick) -> None:
        """Write a tick, whole or not at all; it is on disk when this returns. Raises StateError (disk full, …)."""
        with self._transaction():
            self._write(tick)
        self._db.give_back()

    def _write(self, tick: Tick) -> None:
        execute = self._db.executemany
        for entries in _chunks(
            tick.journal
        ):  # made into what SQLite takes, all of them would take as much memory again
            execute(
                "DELETE FROM journal WHERE mapping = ? AND key = ? AND job = ?",
                [(self._mapping_id(m), key, job) for m, key, job, row in entries if row is None],
            )
            execute(
                "INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                [(self._mapping_id(m), key, job, *self._pack(row)) for m, key, job, row in entries if row is not None],
            )
        for known_entries in _chunks(sorted(tick.ledger, key=itemgetter(0, 1))):
            self._write_ledger(known_entries)
        for rejects in _chunks(tick.rejects):
            self.parked.write(rejects)
        for number, job in tick.jobs:
            self._write_job(number, job)
        execute("INSERT OR REPLACE INTO counter VALUES (?,?,?)", tick.counters)
        execute(
            "UPDATE copy SET cursor = ?, rows = ?, estimate = ?, read = ? WHERE id = ?",
            [(_cursor_text(c), c.rows, c.estimate, c.read, c.id) for c in tick.copies],
        )
        execute("INSERT OR IGNORE INTO met VALUES (?,?)", sorted(tick.met))
        for mapping, keys, at in tick.rereads:
            self._request(mapping, "large values did not come with the stream", at, sweep=True, keys=keys)
        for mapping, reason, at in tick.resyncs:
            self._request(mapping, reason, at, sweep=True)
        execute(
            "DELETE FROM sent_link WHERE mapping = ? AND key = ?",
            [(self._mapping_id(m), key) for m, key in tick.linked],
        )
        for mapping, pause in tick.pauses:
            self.pauses.write(mapping, pause)
        for name, seen in tick.seen:
            self._set_meta(f"seen:{name}", json.dumps(dataclasses.asdict(seen)))
            self._db.execute("DELETE FROM meta WHERE key = ?", (f"drifted:{name}",))
        for name, mark in tick.drifted:
            self._set_meta(f"drifted:{name}", mark)
        for name, pace in tick.paces:
            self._set_meta(f"pace:{name}", pace)
        if tick.timeline is not None:
            self._set_meta("timeline", str(tick.timeline))
        self._set_meta("durable_lsn", str(tick.durable_lsn))
        self._set_meta("position", json.dumps(list(tick.position)))

    def _write_ledger(self, entries: Sequence[tuple[str, str, Known | None]]) -> None:
        self.deletes.count(entries)
        self._db.executemany(
            "DELETE FROM ledger WHERE mapping = ? AND key = ?",
            [(self._mapping_id(m), key) for m, key, known in entries if known is None],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO ledger VALUES (?,?,?,?,?,?,?,?,?)",
            [
                (
                    self._mapping_id(m), key, known.crm_id, self._shape_id(known.fields), known.hashes,
                    json.dumps(known.links) if known.links else None, *known.position, known.at,
                )
                for m, key, known in entries
                if known is not None
            ],
        )  # fmt: skip

    # --- what a start reads back

    def journal(self, mapping: str) -> Iterator[tuple[int, PendingRow]]:
        """Yield (job, row) of what was not settled at the last tick, but for cold rows; job 0 is no job."""
        rows = self._db.execute(
            f"SELECT {_ROW}, job FROM journal WHERE mapping = ? AND job <> {COLD} ORDER BY first_lsn, first_ordinal",  # noqa: S608 — constant
            (self._mapping_id(mapping),),
        )
        for row in rows:
            yield row[-1], self._unpack(row[:-1])

    def cold_keys(self, mapping: str) -> Iterator[str]:
        """Yield the keys of rows that live in the journal alone."""
        query = f"SELECT key FROM journal WHERE mapping = ? AND job = {COLD}"  # noqa: S608 — constant
        return (key for (key,) in self._db.execute(query, (self._mapping_id(mapping),)))

    def cold(self, mapping: str, keys: Sequence[str]) -> dict[str, PendingRow]:
        """Return rows that live in the journal alone, by key."""
        found: dict[str, PendingRow] = {}
        for chunk in _chunks(keys):
            marks = ",".join("?" * len(chunk))
            for row in self._db.execute(
                f"SELECT {_ROW} FROM journal WHERE mapping = ? AND job = {COLD} AND key IN ({marks})",  # noqa: S608 — marks
                (self._mapping_id(mapping), *chunk),
            ):
                found[row[0]] = self._unpack(row)
        return found

    def coldest(self, mapping: str, limit: int) -> list[PendingRow]:
        """Return the rows that live in the journal alone and have waited longest."""
        rows = self._db.execute(
            f"SELECT {_ROW} FROM journal WHERE mapping = ? AND job = {COLD} ORDER BY first_lsn, first_ordinal LIMIT ?",  # noqa: S608 — constants
            (self._mapping_id(mapping), limit),
        )
        return [self._unpack(row) for row in rows]

    def known(self, mapping: str, keys: Sequence[str]) -> dict[str, Known]:
        """Look records up in the ledger."""
        found: dict[str, Known] = {}
        number = self._mapping_id(mapping)
        for chunk in _chunks(keys):
            marks = ",".join("?" * len(chunk))
            for key, crm_id, shape, hashes, links, lsn, ordinal, at in self._db.execute(
                "SELECT key, crm_id, shape, hashes, links, lsn, ordinal, at FROM ledger "  # noqa: S608 — marks only
                f"WHERE mapping = ? AND key IN ({marks})",
                (number, *chunk),
            ):
                found[key] = Known(
                    crm_id, self._shape(shape), hashes, json.loads(links) if links else {}, Position(lsn, ordinal), at
                )
        return found

    def records(self, mapping: str) -> int:
        """Count the records that the CRM is known to hold because we wrote them."""
        return self.deletes.records(mapping)

    def jobs(self) -> list[Job]:
        """Return the bulk jobs that are not settled."""
        rows = self._db.execute(
            "SELECT j.id, m.name, j.op, j.state, j.crm_job, j.planned, j.records, j.digest "
            "FROM job j JOIN mapping m ON m.id = j.mapping ORDER BY j.id"
        )
        return [Job(r[0], r[1], Op(r[2]), JobState(r[3]), *r[4:]) for r in rows]

    def save_job(self, job: Job) -> None:
        """Write down a job's next state."""
        with self._transaction():
            self._write_job(job.id, job)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the file in several questions, beside a daemon that writes."""
        with self._db.reading():
            yield

    @property
    def blank(self) -> bool:
        """Whether the file never belonged to a slot, and knows no mapping."""
        return self._db.blank

    def verify(self) -> None:
        """Check as a start does. Raises StateDamagedError."""
        self._db.verify()

    def faults(self, limit: int, *, quick: bool = False) -> tuple[str, ...]:
        """Look at every page; returns what does not hold together, at most ``limit`` faults."""
        return self._db.faults(limit, quick=quick)

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 — our names

    @property
    def schema(self) -> int:
        """The version of the file's tables."""
        return int(self._meta("schema_version") or 0)

    def size(self) -> int:
        """Return the bytes in use in the file (free pages inside it are used again, and do not count)."""
        page, pages, free = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return int(page * (pages - free))

    def journal_size(self) -> int:
        """Return the bytes that the rows in the journal take, roughly; it looks at each."""
        query = "SELECT count(*), coalesce(sum(length(key) + length(image)), 0) FROM journal"
        number, content = self._db.execute(query).fetchone()
        return int(number * _ROW_BYTES + content)

    def counters(self, lane: str) -> dict[str, int]:
        """Return a lane's counters as of the last tick."""
        return dict(self._db.execute("SELECT name, value FROM counter WHERE lane = ?", (lane,)).fetchall())

    def lanes(self) -> list[str]:
        """Return the CRMs that the file has counters of, by their names in the config."""
        return [lane for (lane,) in self._db.execute("SELECT DISTINCT lane FROM counter ORDER BY 1").fetchall()]

    def balance(self, lane: str) -> Balance:
        """Return a lane's books, with the rows counted where they are; it looks at each."""
        counters, prefix = self.counters(lane), "applied:"
        names = [name.removeprefix(prefix) for name in counters if name.startswith(prefix)]
        return Balance(
            lane,
            changes_in=counters.get("changes_in", 0),
            applied=counters.get("applied", 0),
            suppressed=counters.get("suppressed", 0),
            coalesced=counters.get("coalesced", 0),
            discarded=counters.get("discarded", 0),
            rejected=sum(self.parked.count(name) for name in names),
            pending=sum(self._journaled(name) for name in names),
        )

    def balances(self) -> list[Balance]:
        """Return the books of all lanes."""
        return [self.balance(lane) for lane in self.lanes()]

    def _journaled(self, mapping: str) -> int:
        query = "SELECT count(*) FROM journal WHERE mapping = ?"
        return int(self._db.execute(query, (self._mapping_id(mapping),)).fetchone()[0])

    def pending(self) -> dict[str, int]:
        """Count the rows in the journal by mapping."""
        return dict(
            self._db.execute(
                "SELECT m.name, count(*) FROM journal j JOIN mapping m ON m.id = j.mapping GROUP BY 1"
            ).fetchall()
        )

    def oldest(self) -> dict[str, tuple[int, float]]:
        """Return the first LSN and commit time of the oldest unsettled row, by mapping."""
        rows = self._db.execute(
            "SELECT m.name, min(first_lsn), min(since) FROM journal j JOIN mapping m ON m.id = j.mapping GROUP BY 1"
        )
        return {name: (lsn, since) for name, lsn, since in rows}

    # --- inside

    def _drop_unused(self) -> None:
        """Drop tables' and mappings' shapes that no row has any more, when many have come since that was done last."""
        if self._shape_count() <= int(self._meta("shapes_left") or 0) + _SHAPES:
            return
        with self._transaction():
            self._db.execute(
                "DELETE FROM relation WHERE id NOT IN (SELECT relation FROM journal UNION SELECT relation FROM reject)"
            )
            self._db.execute("DELETE FROM shape WHERE id NOT IN (SELECT shape FROM ledger)")
            self._set_meta("shapes_left", str(self._shape_count()))

    def _shape_count(self) -> int:
        query = "SELECT (SELECT count(*) FROM relation) + (SELECT count(*) FROM shape)"
        return int(self._db.execute(query).fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write whole or not at all. Raises StateError (disk full, locked by another process for long, …)."""
        try:
            with self._db.transaction():
                yield
        except BaseException:
            # Ids given out in this transaction are gone with it.
            self._mapping_ids.clear()
            self._relation_ids.clear()
            self._shape_ids.clear()
            raise

    def _meta(self, key: str) -> str | None:
        return self._db.meta(key)

    def _set_meta(self, key: str, value: str) -> None:
        self._db.set_meta(key, value)

    def _write_job(self, number: int, job: Job | None) -> None:
        if job is None:
            self._db.execute("DELETE FROM job WHERE id = ?", (number,))
            return
        self._db.execute(
            "INSERT OR REPLACE INTO job VALUES (?,?,?,?,?,?,?,?)",
            (
                number, self._mapping_id(job.mapping), job.op.value, job.state.value, job.crm_job, job.planned,
                job.records, job.digest,
            ),
        )  # fmt: skip

    def _pack(self, row: PendingRow) -> tuple[Any, ...]:
        flags = (
            (_DELETED if row.deleted else 0)
            | (_INSERTED if row.base is None else 0)
            | (_UNCERTAIN if row.uncertain else 0)
            | (_WHOLE if row.whole else 0)
            | (_COPIED if row.copied else 0)
        )
        relation = self._relation_id(row.relation)
        # The base comes first where there is one; most rows have no other place than that, and it is their key.
        origins = json.dumps(row.places) if row.tried or row.base not in {None, row.key} else None
        refused = row.refused or (0, None)
        return (relation, row.image, flags, origins, *row.first, *row.last, row.since, row.latest, *refused)

    def _unpack(self, row: Sequence[Any]) -> PendingRow:
        key, relation, image, flags, origins, first_lsn, first_ordinal, last_lsn, last_ordinal, *rest = row
        since, latest, refusals, refused_since = rest
        inserted = bool(flags & _INSERTED)
        places = tuple(json.loads(origins)) if origins else () if inserted else (key,)
        return PendingRow(
            key=key,
            relation=self._relation(relation),
            image=image,
            deleted=bool(flags & _DELETED),
            base=None if inserted else places[0],
            first=Position(first_lsn, first_ordinal),
            last=Position(last_lsn, last_ordinal),
            since=since,
            latest=latest,
            tried=places if inserted else places[1:],
            uncertain=bool(flags & _UNCERTAIN),
            whole=bool(flags & _WHOLE),
            copied=bool(flags & _COPIED),
            refused=Refused(refusals, refused_since) if refusals else None,
        )

    def _mapping_id(self, name: str) -> int:
        number = self._mapping_ids.get(name)
        if number is None:
            number = self._mapping_ids[name] = self._id_of("mapping", "name", name)
        return number

    def _relation_id(self, relation: Relation) -> int:
        number = self._relation_ids.get(relation)
        if number is None:
            number = self._relation_ids[relation] = self._id_of("relation", "body", _relation_text(relation))
        return number

    def _shape_id(self, fields: tuple[str, ...]) -> int:
        number = self._shape_ids.get(fields)
        if number is None:
            number = self._shape_ids[fields] = self._id_of("shape", "fields", json.dumps(fields))
        return number

    def _id_of(self, table: str, column: str, value: str) -> int:
        row = self._db.execute(f"SELECT id FROM {table} WHERE {column} = ?", (value,)).fetchone()  # noqa: S608 — our names
        if row is None and not self._db.alone:
            return 0
        if row is None:
            return int(self._db.execute(f"INSERT INTO {table} ({column}) VALUES (?)", (value,)).lastrowid or 0)  # noqa: S608
        return int(row[0])

    def _relation(self, number: int) -> Relation:
        if number not in self._relations:
            body = self._db.execute("SELECT body FROM relation WHERE id = ?", (number,)).fetchone()[0]
            self._relations[number] = _relation_of(body)
        return self._relations[number]

    def _shape(self, number: int) -> tuple[str, ...]:
        if number not in self._shapes:
            body = self._db.execute("SELECT fields FROM shape WHERE id = ?", (number,)).fetchone()[0]
            self._shapes[number] = tuple(json.loads(body))
        return self._shapes[number]


def _copy(row: Sequence[Any]) -> CopyState:
    number, mapping, reason, requested, condition, keys, sweep, asker, started, cursor, *rest = row
    rows, estimate, read, finished, error = rest
    after = json.loads(cursor) if cursor else None
    return CopyState(
        id=number,
        mapping=mapping,
        reason=reason,
        requested=requested,
        condition=condition,
        keys=tuple(json.loads(keys)) if keys else (),
        sweep=bool(sweep),
        asker=asker,
        started=bool(started),
        cursor=tuple(after.values() if isinstance(after, dict) else after) if after else None,
        order=tuple(after) if isinstance(after, dict) else (),
        rows=rows,
        estimate=estimate,
        read=bool(read),
        finished=finished,
        error=error,
    )


def _cursor_text(copy: CopyState) -> str | None:
    return None if copy.cursor is None else json.dumps(dict(zip(copy.order, copy.cursor, strict=True)))


def _chunks(entries: Sequence[T]) -> Iterable[Sequence[T]]:
    for start in range(0, len(entries), _CHUNK):
        yield entries[start : start + _CHUNK]


def _relation_text(relation: Relation) -> str:
    columns = [[c.name, c.type_oid, c.typmod, c.in_identity] for c in relation.columns]
    return json.dumps([relation.oid, relation.namespace, relation.name, relation.identity, columns])


def _relation_of(text: str) -> Relation:
    oid, namespace, name, identity, columns = json.loads(text)
    return Relation(oid, namespace, name, identity, tuple(Column(*c) for c in columns))
