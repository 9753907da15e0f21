"""The state file: journal, ledger, rejects, jobs, counters and the checkpoint, in one SQLite database.

Its one promise: a ``Tick`` is written whole or not at all. It carries everything that became known since the last
one, up to and including its position in the stream; only after it is on disk may its ``durable_lsn`` be confirmed to
PostgreSQL. The tables are described in ``docs/state.md``; the schema has a version and is migrated at the start.

All methods block, and belong to one thread at a time (the pipeline gives them a thread of their own).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cdcsync.backlog import COLD
from cdcsync.coalesce import PendingRow
from cdcsync.entries import BackfillState, Checkpoint, Identity, Job, Known, Reject, Tick
from cdcsync.errors import StateError
from cdcsync.model import START, Column, JobState, Op, Position, Relation

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mapping (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE relation (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE);
CREATE TABLE shape (id INTEGER PRIMARY KEY, fields TEXT NOT NULL UNIQUE);
CREATE TABLE journal (
  mapping INTEGER NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  PRIMARY KEY (mapping, key, job)) WITHOUT ROWID;
CREATE INDEX cold ON journal (mapping, first_lsn, first_ordinal) WHERE job = -2;
CREATE TABLE ledger (
  mapping INTEGER NOT NULL, key TEXT NOT NULL, crm_id TEXT, shape INTEGER NOT NULL, hashes BLOB NOT NULL,
  links TEXT, lsn INTEGER NOT NULL, ordinal INTEGER NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (mapping, key)) WITHOUT ROWID;
CREATE TABLE reject (
  mapping INTEGER NOT NULL, key TEXT NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  code TEXT NOT NULL, field TEXT, message TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (mapping, key)) WITHOUT ROWID;
CREATE TABLE job (
  id INTEGER PRIMARY KEY, mapping INTEGER NOT NULL, op TEXT NOT NULL, state TEXT NOT NULL, crm_job TEXT,
  planned REAL NOT NULL, records INTEGER NOT NULL, digest TEXT NOT NULL);
CREATE TABLE counter (lane TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (lane, name))
  WITHOUT ROWID;
CREATE TABLE horizon (lane TEXT PRIMARY KEY, lsn INTEGER NOT NULL, ordinal INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sent_link (mapping INTEGER NOT NULL, key TEXT NOT NULL, slot TEXT NOT NULL, crm_id TEXT NOT NULL,
  PRIMARY KEY (mapping, key, slot, crm_id)) WITHOUT ROWID;
CREATE TABLE pause (mapping TEXT PRIMARY KEY, reason TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE backfill (mapping INTEGER PRIMARY KEY, cursor TEXT, rows INTEGER NOT NULL, estimate INTEGER NOT NULL,
  done INTEGER NOT NULL) WITHOUT ROWID;
"""

_MIGRATIONS: dict[int, str] = {}
"""Schema version → the statements that lead to the next one."""

_DELETED, _FRESH, _UNCERTAIN, _WHOLE = 1, 2, 4, 8
_ROW = "key, relation, image, flags, origins, first_lsn, first_ordinal, last_lsn, last_ordinal, since, latest"
_LOOKUP_CHUNK = 500


class State:
    """The open state file. ``State.open`` for the daemon (exclusive), ``State.read`` for commands beside it."""

    def __init__(self, db: sqlite3.Connection, path: Path, lock: IO[str] | None) -> None:
        self._db = db
        self.path = path
        self._lock = lock
        self._mapping_ids: dict[str, int] = {}
        self._relation_ids: dict[Relation, int] = {}
        self._relations: dict[int, Relation] = {}
        self._shape_ids: dict[tuple[str, ...], int] = {}
        self._shapes: dict[int, tuple[str, ...]] = {}

    @classmethod
    def open(cls, path: Path) -> State:
        """Open or create the file for writing, alone. Raises StateError when it cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise StateError(
                f"cannot open the state file {path}: {error.strerror}",
                hint="Give the daemon's user a writable directory in [state] path.",
            ) from error
        state = cls(db, path, lock)
        try:
            state._prepare()
        except sqlite3.DatabaseError as error:
            state.close()
            raise _damaged(path, error) from error
        except StateError:
            state.close()
            raise
        return state

    @classmethod
    def read(cls, path: Path) -> State:
        """Open an existing file read-only, beside a running daemon. Raises StateError."""
        if not path.exists():
            raise StateError(
                f"there is no state file at {path}", hint="Has `cdcsync run` been started with this config?"
            )
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        state = cls(db, path, None)
        try:
            state._check_version()
        except sqlite3.DatabaseError as error:
            state.close()
            raise _damaged(path, error) from error
        return state

    @classmethod
    def beside(cls, path: Path) -> State:
        """Open an existing file for a small change beside a running daemon. Raises StateError."""
        cls.read(path).close()
        return cls(sqlite3.connect(path, isolation_level=None, timeout=10), path, None)

    def close(self) -> None:
        """Close the file and release the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

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
            self._copy_anew()

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
            self._db.execute(
                "DELETE FROM meta WHERE key IN ('identity', 'durable_lsn', 'position', 'timeline', 'intended_slot')"
            )
            self._db.execute("DELETE FROM horizon")
            self._copy_anew()

    def _copy_anew(self) -> None:
        self._db.execute("DELETE FROM backfill")
        for (name,) in self._db.execute("SELECT name FROM mapping").fetchall():
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
        if tick.timeline is not None:
            self._set_meta("timeline", str(tick.timeline))
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

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: what is confirmed to PostgreSQL must survive a power cut, not only a crash of the process.
        self._db.execute("PRAGMA synchronous = FULL")
        if self._db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise _damaged(self.path, None)
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables == 0:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._set_meta("schema_version", str(SCHEMA_VERSION))
        self._migrate()

    def _migrate(self) -> None:
        version = self._check_version()
        while version < SCHEMA_VERSION:
            with self._transaction():
                for statement in _MIGRATIONS[version].split(";"):
                    self._db.execute(statement)
                version += 1
                self._set_meta("schema_version", str(version))

    def _check_version(self) -> int:
        version = int(self._meta("schema_version") or 0)
        if version == 0:
            raise StateError(
                f"{self.path} is not a state file of cdcsync", hint="Point [state] path at a file of its own."
            )
        if version > SCHEMA_VERSION:
            raise StateError(
                f"the state file {self.path} was written by a newer cdcsync (schema {version}, this one knows "
                f"{SCHEMA_VERSION})",
                hint="Upgrade cdcsync; an older one must not touch the file.",
            )
        return version

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write whole or not at all. Raises StateError (disk full, locked by another process for long, …)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # Ids given out in this transaction are gone with it.
            self._mapping_ids.clear()
            self._relation_ids.clear()
            self._shape_ids.clear()
            if not isinstance(error, sqlite3.Error):
                raise
            raise StateError(
                f"cannot write the state file {self.path}: {error}",
                hint="Nothing was lost: free disk space and start again; the stream goes on at the last checkpoint.",
            ) from error

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

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
        if row is None and self._lock is None:
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


def _lock(path: Path) -> IO[str]:
    lock = path.with_name(path.name + ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StateError(
            f"another cdcsync is running with the state file {path}",
            hint="Stop it first, or give this one its own [state] path and slot.",
        ) from error
    return lock


def _damaged(path: Path, error: Exception | None) -> StateError:
    return StateError(
        f"the state file {path} is damaged{f': {error}' if error else ''}",
        hint="Keep a copy, remove it, drop the slot with `cdcsync slot drop`, and start again: rows are copied anew.",
    )


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(keys), _LOOKUP_CHUNK):
        yield keys[start : start + _LOOKUP_CHUNK]


def _relation_text(relation: Relation) -> str:
    columns = [[c.name, c.type_oid, c.typmod, c.in_identity] for c in relation.columns]
    return json.dumps([relation.oid, relation.namespace, relation.name, relation.identity, columns])


def _relation_of(text: str) -> Relation:
    oid, namespace, name, identity, columns = json.loads(text)
    return Relation(oid, namespace, name, identity, tuple(Column(*c) for c in columns))
