"""The state file: journal, ledger, rejects, jobs, counters and the checkpoint, in one SQLite database.

Its one promise: a ``Tick`` is written whole or not at all. It carries everything that became known since the last
one, up to and including its position in the stream; only after it is on disk may its ``durable_lsn`` be confirmed to
PostgreSQL. The tables are described in ``docs/state.md``; the schema has a version and is migrated at the start.

All methods block, and belong to one thread at a time (the pipeline gives them a thread of their own).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cdcsync.backlog import COLD
from cdcsync.claim import Claim
from cdcsync.coalesce import PendingRow
from cdcsync.entries import BackfillState, Checkpoint, Identity, Job, Known, Reject, Tick
from cdcsync.model import START, Column, JobState, Op, Position, Relation
from cdcsync.state_file import StateFile

_DELETED, _FRESH, _UNCERTAIN, _WHOLE = 1, 2, 4, 8
_ROW = "key, relation, image, flags, origins, first_lsn, first_ordinal, last_lsn, last_ordinal, since, latest"
_LOOKUP_CHUNK = 500


class State:
    """The open state file. ``State.open`` for the daemon (exclusive), ``State.read`` for commands beside it."""

    def __init__(self, file: StateFile) -> None:
        self._db = file
        self.path = file.path
        self._mapping_ids: dict[str, int] = {}
        self._relation_ids: dict[Relation, int] = {}
        self._relations: dict[int, Relation] = {}
        self._shape_ids: dict[tuple[str, ...], int] = {}
        self._shapes: dict[int, tuple[str, ...]] = {}

    @classmethod
    def open(cls, path: Path, mirror: Path | None = None, claim: Claim | None = None) -> State:
        """Open or create the file for writing, alone. Raises StateError when it or its mirror cannot be used."""
        return cls(StateFile.open(path, mirror, claim))

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

    def bind(self, identity: Identity, start: int) -> None:
        """Bind a new file to a slot; the stream starts at ``start``."""
        with self._transaction():
            self._set_meta("identity", json.dumps(list(identity)))
            self._set_meta("durable_lsn", str(start))

    def intend_slot(self, slot: str) -> None:
        """Write down that a slot is about to be made, so that an interrupted first start knows it as its own."""
        with self._transaction():
            self._set_meta("intended_slot", slot)

    def intended_slot(self) -> str | None:
        """Return the slot that a first start was about to make."""
        return self._meta("intended_slot")

    def unbind(self) -> None:
        """Forget slot and position, and let every table be copied again; the ledger stays, so only differences go.

        Records whose rows went away meanwhile are found at the end of that copy (``sweeping``).
        """
        with self._transaction():
            names = [name for (name,) in self._db.execute("SELECT name FROM mapping").fetchall()]
            self._db.execute("DELETE FROM meta WHERE key IN ('identity', 'durable_lsn', 'position', 'intended_slot')")
            self._db.execute("DELETE FROM backfill")
            self._db.execute("DELETE FROM horizon")
            for name in names:
                self._set_meta(f"sweep:{name}", "1")

    def retire(self, configured: Collection[str]) -> list[str]:
        """Note which mappings are not configured now: when one is again, its table is copied and swept anew.

        What changed meanwhile was not seen. Returns the mappings that were configured before.
        """
        with self._transaction():
            copied = self._db.execute("SELECT id, name FROM mapping WHERE id IN (SELECT mapping FROM backfill)")
            retired = [(number, name) for number, name in copied.fetchall() if name not in configured]
            for number, name in retired:
                self._db.execute("DELETE FROM backfill WHERE mapping = ?", (number,))
                self._set_meta(f"sweep:{name}", "1")
        return [name for _, name in retired]

    def unmapped(self, lane: str, configured: Collection[str]) -> int:
        """Count a lane's unsettled and parked rows of mappings that are not configured now; they are kept."""
        prefix = "applied:"
        names = {name.removeprefix(prefix) for name in self.counters(lane) if name.startswith(prefix)} - set(configured)
        pending = self.pending()
        return sum(pending.get(name, 0) + len(self.reject_keys(name)) for name in names)

    def sweeping(self, mapping: str) -> bool:
        """Whether the copy under way has to end with deleting the records whose rows it did not see."""
        return self._meta(f"sweep:{mapping}") is not None

    def swept(self, mapping: str) -> None:
        """Note that those records have been found."""
        with self._transaction():
            self._db.execute("DELETE FROM meta WHERE key = ?", (f"sweep:{mapping}",))

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
        """Return the paused mappings with the reason."""
        return dict(self._db.execute("SELECT mapping, reason FROM pause").fetchall())

    def pause(self, mapping: str, reason: str, now: float) -> None:
        """Pause a mapping: its changes are kept and not sent."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO pause VALUES (?, ?, ?)", (mapping, reason, now))

    def resume(self, mapping: str) -> bool:
        """Lift a mapping's pause; returns whether there was one."""
        with self._transaction():
            return self._db.execute("DELETE FROM pause WHERE mapping = ?", (mapping,)).rowcount > 0

    # --- the tick

    def write(self, tick: Tick) -> None:
        """Write a tick, whole or not at all; it is on disk when this returns. Raises StateError (disk full, …)."""
        with self._transaction():
            self._write(tick)

    def _write(self, tick: Tick) -> None:
        execute = self._db.executemany
        execute(
            "DELETE FROM journal WHERE mapping = ? AND key = ? AND job = ?",
            sorted((self._mapping_id(m), key, job) for m, key, job, row in tick.journal if row is None),
        )
        execute(
            "INSERT OR REPLACE INTO journal VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            sorted(
                (self._mapping_id(m), key, job, *self._pack(row))
                for m, key, job, row in tick.journal
                if row is not None
            ),
        )
        execute(
            "DELETE FROM ledger WHERE mapping = ? AND key = ?",
            sorted((self._mapping_id(m), key) for m, key, known in tick.ledger if known is None),
        )
        execute(
            "INSERT OR REPLACE INTO ledger VALUES (?,?,?,?,?,?,?,?,?)",
            [
                (
                    self._mapping_id(m), key, known.crm_id, self._shape_id(known.fields), known.hashes,
                    json.dumps(known.links) if known.links else None, *known.position, known.at,
                )
                for m, key, known in sorted(tick.ledger, key=lambda entry: entry[:2])
                if known is not None
            ],
        )  # fmt: skip
        execute(
            "DELETE FROM reject WHERE mapping = ? AND key = ?",
            [(self._mapping_id(m), key) for m, key, reject in tick.rejects if reject is None],
        )
        execute(
            "INSERT OR REPLACE INTO reject VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            [
                (
                    self._mapping_id(m),
                    key,
                    *self._pack(reject.row),
                    reject.code,
                    reject.field,
                    reject.message,
                    reject.at,
                )
                for m, key, reject in tick.rejects
                if reject is not None
            ],
        )
        for number, job in tick.jobs:
            self._write_job(number, job)
        execute("INSERT OR REPLACE INTO counter VALUES (?,?,?)", tick.counters)
        execute(
            "INSERT OR REPLACE INTO backfill VALUES (?,?,?,?,?)",
            [
                (self._mapping_id(m), json.dumps(b.cursor) if b.cursor else None, b.rows, b.estimate, int(b.done))
                for m, b in tick.backfills
            ],
        )
        execute(
            "DELETE FROM sent_link WHERE mapping = ? AND key = ?",
            [(self._mapping_id(m), key) for m, key in tick.linked],
        )
        execute("INSERT OR IGNORE INTO pause VALUES (?,?,?)", tick.pauses)
        self._set_meta("durable_lsn", str(tick.durable_lsn))
        self._set_meta("position", json.dumps(list(tick.position)))

    # --- what a start reads back

    def journal(self, mapping: str) -> Iterator[tuple[int, PendingRow]]:
        """Yield (job, row) of what was not settled at the last tick; job 0 is no job."""
        rows = self._db.execute(
            f"SELECT {_ROW}, job FROM journal WHERE mapping = ? ORDER BY first_lsn, first_ordinal",  # noqa: S608 — constant
            (self._mapping_id(mapping),),
        )
        for row in rows:
            yield row[-1], self._unpack(row[:-1])

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

    def ledger_keys(self, mapping: str) -> list[str]:
        """Return every key of a mapping that the CRM is known to hold."""
        rows = self._db.execute("SELECT key FROM ledger WHERE mapping = ?", (self._mapping_id(mapping),))
        return [key for (key,) in rows]

    def reject_keys(self, mapping: str) -> set[str]:
        """Return the keys of the parked rows."""
        rows = self._db.execute("SELECT key FROM reject WHERE mapping = ?", (self._mapping_id(mapping),))
        return {key for (key,) in rows}

    def rejects(self, mapping: str, keys: Sequence[str] | None = None) -> Iterator[Reject]:
        """Yield parked rows with their reasons; all of a mapping, or those of some keys."""
        for chunk in _chunks(keys) if keys is not None else [None]:
            where = "" if chunk is None else f" AND key IN ({','.join('?' * len(chunk))})"
            for row in self._db.execute(
                "SELECT key, relation, image, flags, origins, first_lsn, first_ordinal, last_lsn, last_ordinal, "  # noqa: S608
                f"since, latest, code, field, message, at FROM reject WHERE mapping = ?{where}",
                (self._mapping_id(mapping), *(chunk or ())),
            ):
                yield Reject(self._unpack(row[:11]), *row[11:])

    def reject_reasons(self) -> list[tuple[str, str, str | None, int, str]]:
        """Group the parked rows: (mapping, code, field, rows, one of the CRM's messages)."""
        return self._db.execute(
            "SELECT m.name, r.code, r.field, count(*), max(r.message) FROM reject r JOIN mapping m ON m.id = r.mapping "
            "GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC"
        ).fetchall()

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

    def size(self) -> int:
        """Return the bytes in use in the file (free pages inside it are used again, and do not count)."""
        page, pages, free = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        return int(page * (pages - free))

    def counters(self, lane: str) -> dict[str, int]:
        """Return a lane's counters as of the last tick."""
        return dict(self._db.execute("SELECT name, value FROM counter WHERE lane = ?", (lane,)).fetchall())

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

    def backfill(self, mapping: str) -> BackfillState | None:
        """Return how far a mapping's first copy is; None if it has not begun."""
        row = self._db.execute(
            "SELECT cursor, rows, estimate, done FROM backfill WHERE mapping = ?", (self._mapping_id(mapping),)
        ).fetchone()
        if row is None:
            return None
        cursor = tuple(json.loads(row[0])) if row[0] else None
        return BackfillState(cursor, row[1], row[2], bool(row[3]))

    # --- inside

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
            | (_FRESH if row.fresh else 0)
            | (_UNCERTAIN if row.uncertain else 0)
            | (_WHOLE if row.whole else 0)
        )
        relation = self._relation_id(row.relation)
        origins = json.dumps(row.origins) if row.origins else None
        return (relation, row.image, flags, origins, *row.first, *row.last, row.since, row.latest)

    def _unpack(self, row: Sequence[Any]) -> PendingRow:
        key, relation, image, flags, origins, first_lsn, first_ordinal, last_lsn, last_ordinal, since, latest = row
        return PendingRow(
            key=key,
            relation=self._relation(relation),
            image=image,
            deleted=bool(flags & _DELETED),
            fresh=bool(flags & _FRESH),
            first=Position(first_lsn, first_ordinal),
            last=Position(last_lsn, last_ordinal),
            since=since,
            latest=latest,
            origins=tuple(json.loads(origins)) if origins else (),
            uncertain=bool(flags & _UNCERTAIN),
            whole=bool(flags & _WHOLE),
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


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(keys), _LOOKUP_CHUNK):
        yield keys[start : start + _LOOKUP_CHUNK]


def _relation_text(relation: Relation) -> str:
    columns = [[c.name, c.type_oid, c.typmod, c.in_identity] for c in relation.columns]
    return json.dumps([relation.oid, relation.namespace, relation.name, relation.identity, columns])


def _relation_of(text: str) -> Relation:
    oid, namespace, name, identity, columns = json.loads(text)
    return Relation(oid, namespace, name, identity, tuple(Column(*c) for c in columns))
