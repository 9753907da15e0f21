"""A simulated database: tables with foreign keys between them, random transactions, and the WAL that they leave.

Each row has a ``uid`` that it keeps for life, whatever becomes of its key, and a ``version`` that grows with each of
its changes: with these the CRM's books can tell a second record and a step back.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from cdcsync.model import ABSENT, Begin, Change, ChangeKind, Column, Commit, Relation, Text, Truncate
from cdcsync.wal.decode import join_tuple
from tests.simulation.virtual import WALL

Row: TypeAlias = dict[str, str | None]

COMPANIES, PEOPLE, DEALS = "companies", "people", "deals"
COLUMNS = {
    COMPANIES: ("id", "name", "big", "phone", "owner", "uid", "version"),
    PEOPLE: ("id", "name", "big", "phone", "company", "manager", "uid", "version"),
    DEALS: ("id", "name", "big", "phone", "contact", "uid", "version"),
}


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """ON UPDATE CASCADE; ON DELETE SET NULL, or CASCADE where the habits say so and it ``cascades`` at all."""

    table: str
    column: str
    parent: str
    cascades: bool = False


FOREIGN_KEYS = (
    ForeignKey(PEOPLE, "company", COMPANIES, cascades=True),
    ForeignKey(PEOPLE, "manager", PEOPLE),
    ForeignKey(COMPANIES, "owner", PEOPLE),
    ForeignKey(DEALS, "contact", PEOPLE, cascades=True),
)
TEXT = 25
BAD = "bad"
"""How a name begins that the CRM refuses."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction as the stream delivers it."""

    begin: Begin
    changes: tuple[Change | Truncate, ...]
    commit: Commit


@dataclass(frozen=True, slots=True)
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
    own: float = 0.0
    """New owner of a company."""
    truncate: float = 0.0
    deals: bool = False
    """Whether there are deals."""


class Database:
    """The tables, and the WAL since ever."""

    def __init__(self, rng: random.Random, habits: Habits) -> None:
        self._rng = rng
        self.habits = habits
        self.tables: dict[str, dict[str, Row]] = {COMPANIES: {}, PEOPLE: {}, DEALS: {}}
        self.wal: list[Transaction] = []
        self.lsn = 1_000
        self.truncated = False
        """Whether rows ever went away without a word about each of them."""
        self._serial = 0
        self._changes: list[Change | Truncate] = []
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

    @property
    def uids(self) -> set[str]:
        """The rows that there are."""
        return {str(row["uid"]) for rows in self.tables.values() for row in rows.values()}

    def transact(self, now: float) -> None:
        """Commit a random transaction."""
        for _ in range(self._rng.choice((1, 1, 1, 2, 3, 6))):
            self._change()
        self._commit(now)

    def mend(self, now: float, table: str, keys: Iterable[str]) -> None:
        """Change rows so that each is sent with all it has: a name that the CRM takes, and a new large value."""
        for key in keys:
            row = self.tables[table].get(key)
            if row is not None:
                self._serial += 1
                news: Row = {"big": f"B{self._serial}"}
                if is_bad(row):
                    news["name"] = self._name(bad=0.0)
                self._update(table, key, news)
        self._commit(now)

    def touch_all(self, now: float) -> None:
        """Update every row, to what it is already."""
        for table, rows in self.tables.items():
            for key, row in list(rows.items()):
                self._write(table, key, dict(row))
        self._commit(now)

    def images(self, table: str, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Read a page of a table in key order, as a SELECT would now."""
        rows = self.tables[table]
        keys = sorted(key for key in rows if key > after)[:limit]
        return [(key, self._image(table, rows[key], None)) for key in keys]

    # --- changes

    def _change(self) -> None:
        habits, rng = self.habits, self._rng
        kinds = ("insert", "update", "touch", "rename", "delete", "replace", "swap", "hire", "own", "truncate")
        kind = rng.choices(kinds, [getattr(habits, name) for name in kinds])[0]
        table = rng.choice((COMPANIES, PEOPLE, PEOPLE, *((DEALS,) if habits.deals else ())))
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
        elif kind == "truncate":
            self._truncate(table)
        elif kind == "hire" and table == PEOPLE:
            self._update(table, key, {"manager": rng.choice(sorted(rows))})
        elif kind == "own" and table == COMPANIES:
            self._update(table, key, {"owner": self._one_of(PEOPLE)})

    def _name(self, bad: float) -> str:
        self._serial += 1
        return f"{BAD if self._rng.random() < bad else 'n'}{self._serial}"

    def _news(self, table: str) -> Row:
        choice, rng = self._rng.random(), self._rng
        if choice < 0.5:
            names = (self._name(self.habits.bad), self._name(self.habits.bad))
            return {"name": rng.choice(names if self.habits.bad == 1 else (None, "", *names))}
        if choice < 0.6:
            return {"phone": rng.choice((None, self._phone()))}
        if choice < 0.8 or table == COMPANIES:
            return {"big": f"B{self._serial}"}
        return self._parents(table)

    def _phone(self) -> str:
        self._serial += 1
        return f"p{self._serial}"

    def _one_of(self, table: str) -> str | None:
        keys = sorted(self.tables[table])
        return self._rng.choice([None, *keys]) if keys else None

    def _parents(self, table: str) -> Row:
        if table == DEALS:
            return {"contact": self._one_of(PEOPLE)}
        return {"company": self._one_of(COMPANIES)}

    def _free(self, table: str) -> str | None:
        free = [str(n) for n in range(self.habits.keys) if str(n) not in self.tables[table]]
        return self._rng.choice(free) if free else None

    def _insert(self, table: str, key: str | None = None) -> None:
        key = key or self._free(table)
        if key is None:
            return
        self._serial += 1
        row: Row = {**dict.fromkeys(COLUMNS[table]), "id": key, "name": self._name(self.habits.bad)}
        row |= {"big": f"B{self._serial}", "phone": self._rng.choice((None, self._phone()))}
        if table != COMPANIES:
            row |= self._parents(table)
        row |= {"uid": f"u{self._serial}", "version": self._version()}
        self.tables[table][key] = row
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
        self._stream(ChangeKind.UPDATE, table, before, row)
        if after != key:
            self._follow(table, key, after)

    def _follow(self, table: str, key: str, after: str | None) -> None:
        """Do what the foreign keys do."""
        for one in FOREIGN_KEYS:
            if one.parent == table:
                for child in list(self.tables[one.table]):
                    row = self.tables[one.table].get(child)
                    if row is None or row[one.column] != key:
                        continue
                    if after is None and one.cascades and self.habits.cascade:
                        self._delete(one.table, child)
                    else:
                        self._update(one.table, child, {one.column: after})

    def _rename(self, table: str, key: str, to: str | None) -> None:
        if to is not None:
            row = {**self.tables[table][key], "id": to, "version": self._version()}
            if row.get("manager") == key:  # its own: the constraint's trigger comes to the row by its new key
                self._write(table, key, {**row, "manager": to})
            else:
                self._write(table, key, row)

    def _delete(self, table: str, key: str) -> None:
        row = self.tables[table].pop(key)
        self._stream(ChangeKind.DELETE, table, row, None)
        self._follow(table, key, None)

    def _swap(self, table: str, key: str) -> None:
        others = sorted(set(self.tables[table]) - {key})
        if others:
            other = self._rng.choice(others)
            self._rename(table, key, "swap")
            self._rename(table, other, key)
            self._rename(table, "swap", other)

    def _truncate(self, table: str) -> None:
        """TRUNCATE … CASCADE: each table but that of the deals is referred to by all others, in the end."""
        tables = [DEALS] if table == DEALS else list(COLUMNS)
        for one in tables:
            self.tables[one].clear()
        self.truncated = True
        self._changes.append(
            Truncate(tuple(self.relations[one] for one in tables), cascade=True, restart_identity=False)
        )

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


def is_bad(row: Row) -> bool:
    """Whether the CRM refuses a row."""
    return str(row["name"]).startswith(BAD)
