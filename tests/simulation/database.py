"""A simulated database: two tables with a foreign key, random transactions, and the WAL that they leave.

Each row has a ``uid`` that it keeps for life, whatever becomes of its key, and a ``version`` that grows with each of its
changes: with these the CRM's books can tell a second record and a step back.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from typing import TypeAlias

from cdcsync.model import ABSENT, Begin, Change, ChangeKind, Column, Commit, Relation, Text
from cdcsync.wal.decode import join_tuple
from tests.simulation.virtual import WALL

Row: TypeAlias = dict[str, str | None]

COMPANIES, PEOPLE = "companies", "people"
COLUMNS = {
    COMPANIES: ("id", "name", "big", "uid", "version"),
    PEOPLE: ("id", "name", "big", "company", "manager", "uid", "version"),
}
TEXT = 25
BAD = "bad"
"""How a name begins that the CRM refuses."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction as the stream delivers it."""

    begin: Begin
    changes: tuple[Change, ...]
    commit: Commit


@dataclass(slots=True)
class Habits:
    """How the application writes: the parts of each kind of change, and how many rows there are."""

    identity: str = "f"
    keys: int = 6
    bad: float = 0.05
    cascade: bool = True
    insert: float = 3.0
    update: float = 4.0
    touch: float = 0.5
    rename: float = 1.0
    delete: float = 1.0
    replace: float = 0.3
    swap: float = 0.3
    hire: float = 1.0
    """New manager."""


class Database:
    """The tables, and the WAL since ever."""

    def __init__(self, rng: random.Random, habits: Habits) -> None:
        self._rng = rng
        self.habits = habits
        self.tables: dict[str, dict[str, Row]] = {COMPANIES: {}, PEOPLE: {}}
        self.wal: list[Transaction] = []
        self.lsn = 1_000
        self.alive: dict[str, tuple[str, str]] = {}
        """Table and key of each row that is there, by uid."""
        self._serial = 0
        self._changes: list[Change] = []
        self.relations = {
            table: Relation(
                number,
                "public",
                table,
                habits.identity,
                tuple(Column(name, TEXT, -1, habits.identity == "f" or name == "id") for name in columns),
            )
            for number, (table, columns) in enumerate(COLUMNS.items(), 1)
        }

    def transact(self, now: float) -> None:
        """Commit a random transaction."""
        for _ in range(self._rng.choice((1, 1, 1, 2, 3, 6))):
            self._change()
        self._commit(now)

    def mend(self, now: float, parked: dict[str, set[str]]) -> None:
        """Give every row that the CRM refuses a name that it takes, and those that are parked a new large value."""
        for table, rows in self.tables.items():
            for key, row in list(rows.items()):
                if str(row["name"]).startswith(BAD):
                    self._update(table, key, {"name": self._name(bad=0.0)})
                if key in parked[table]:
                    self._serial += 1
                    self._update(table, key, {"big": f"B{self._serial}"})
        self._commit(now)

    def images(self, table: str, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Read a page of a table in key order, as a SELECT would now."""
        rows = self.tables[table]
        keys = sorted(key for key in rows if key > after)[:limit]
        return [(key, self._image(table, rows[key], None)) for key in keys]

    # --- changes

    def _change(self) -> None:
        habits, rng = self.habits, self._rng
        kinds = ("insert", "update", "touch", "rename", "delete", "replace", "swap", "hire")
        kind = rng.choices(kinds, [getattr(habits, name) for name in kinds])[0]
        table = rng.choice((COMPANIES, PEOPLE, PEOPLE))
        rows = self.tables[table]
        key = rng.choice(sorted(rows)) if rows else None
        if kind == "insert" or key is None:
            self._insert(table)
        elif kind == "update":
            self._update(table, key, self._news(table))
        elif kind == "touch":
            self._write(table, key, dict(rows[key]))
        elif kind == "rename":
            self._rename(table, key, self._free(table))
        elif kind == "delete":
            self._delete(table, key)
        elif kind == "replace":
            self._delete(table, key)
            self._insert(table, key)
        elif kind == "swap":
            self._swap(table, key)
        elif table == PEOPLE:
            self._update(table, key, {"manager": rng.choice(sorted(rows))})

    def _name(self, bad: float) -> str:
        self._serial += 1
        return f"{BAD if self._rng.random() < bad else 'n'}{self._serial}"

    def _news(self, table: str) -> Row:
        choice = self._rng.random()
        if choice < 0.6:
            return {"name": self._rng.choice((None, "", self._name(self.habits.bad), self._name(self.habits.bad)))}
        if choice < 0.8 or table == COMPANIES:
            return {"big": f"B{self._serial}"}
        return {"company": self._company()}

    def _company(self) -> str | None:
        companies = sorted(self.tables[COMPANIES])
        return self._rng.choice([None, *companies]) if companies else None

    def _free(self, table: str) -> str | None:
        free = [str(n) for n in range(self.habits.keys) if str(n) not in self.tables[table]]
        return self._rng.choice(free) if free else None

    def _insert(self, table: str, key: str | None = None) -> None:
        key = key or self._free(table)
        if key is None:
            return
        self._serial += 1
        row: Row = {"id": key, "name": self._name(self.habits.bad), "big": f"B{self._serial}"}
        if table == PEOPLE:
            row |= {"company": self._company(), "manager": None}
        row |= {"uid": f"u{self._serial}", "version": self._version()}
        self.tables[table][key] = row
        self.alive[str(row["uid"])] = (table, key)
        self._stream(ChangeKind.INSERT, table, None, row)

    def _version(self) -> str:
        self._serial += 1
        return f"{self._serial:06}"

    def _update(self, table: str, key: str, news: Row) -> None:
        self._write(table, key, {**self.tables[table][key], **news, "version": self._version()})

    def _write(self, table: str, key: str, row: Row) -> None:
        before = self.tables[table].pop(key)
        after = str(row["id"])
        self.tables[table][after] = row
        self.alive[str(row["uid"])] = (table, after)
        self._stream(ChangeKind.UPDATE, table, before, row)
        if after != key:
            self._follow(table, key, after)

    def _follow(self, table: str, key: str, after: str | None) -> None:
        """Do what the foreign keys do: ON UPDATE CASCADE, ON DELETE CASCADE or SET NULL."""
        column = "company" if table == COMPANIES else "manager"
        for child in list(self.tables[PEOPLE]):
            row = self.tables[PEOPLE].get(child)
            if row is None or row[column] != key:
                continue
            if after is None and table == COMPANIES and self.habits.cascade:
                self._delete(PEOPLE, child)
            else:
                self._update(PEOPLE, child, {column: after})

    def _rename(self, table: str, key: str, to: str | None) -> None:
        if to is not None:
            row = {**self.tables[table][key], "id": to, "version": self._version()}
            if row.get("manager") == key:  # its own: the constraint's trigger comes to the row by its new key
                self._write(table, key, {**row, "manager": to})
            else:
                self._write(table, key, row)

    def _delete(self, table: str, key: str) -> None:
        row = self.tables[table].pop(key)
        del self.alive[str(row["uid"])]
        self._stream(ChangeKind.DELETE, table, row, None)
        self._follow(table, key, None)

    def _swap(self, table: str, key: str) -> None:
        others = sorted(set(self.tables[table]) - {key})
        if others:
            other = self._rng.choice(others)
            self._rename(table, key, "swap")
            self._rename(table, other, key)
            self._rename(table, "swap", other)

    # --- the stream

    def _stream(self, kind: ChangeKind, table: str, before: Row | None, after: Row | None) -> None:
        relation = self.relations[table]
        full = relation.identity == "f"
        new = None if after is None else self._image(table, after, before)
        moved = before is not None and (after is None or after["id"] != before["id"])
        old = None
        if before is not None and (full or moved):
            old = self._image(table, before if full else {**dict.fromkeys(before), "id": before["id"]}, None)
        self._changes.append(Change(kind, relation, new, old, old_is_key=old is not None and not full))

    def _image(self, table: str, row: Row, before: Row | None) -> bytes:
        """Print a tuple; the large value is left out where it did not change."""
        values: list[Text] = []
        for name in COLUMNS[table]:
            value = row[name]
            unchanged = name == "big" and before is not None and before[name] == value
            values.append(ABSENT if unchanged else None if value is None else value.encode())
        return join_tuple(values)

    def _commit(self, now: float) -> None:
        if not self._changes:
            return
        changes, self._changes = tuple(self._changes), []
        at = dt.datetime.fromtimestamp(WALL + now, dt.UTC)
        self.lsn += 100
        end = self.lsn + 8
        begin = Begin(self.lsn, at, self.lsn)
        self.wal.append(Transaction(begin, changes, Commit(self.lsn, end, at)))
        self.lsn = end


@dataclass(slots=True)
class Feed:
    """``pipeline.Reader``: delivers the WAL from a position on, in pieces; ``confirmed`` outlives it as the slot does."""

    database: Database
    confirmed: int
    timeline: int | None = 1
    held: bool = False
    asked: bool = False
    delivered: int = field(default=0)

    def confirm(self, lsn: int) -> None:
        """Move the slot."""
        self.confirmed = max(self.confirmed, lsn)

    def pause(self) -> None:
        """Stop delivering."""
        self.held = True

    def resume(self) -> None:
        """Deliver again."""
        self.held = False

    def request_progress(self) -> None:
        """Ask for a keepalive."""
        self.asked = True
