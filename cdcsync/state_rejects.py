"""The parked rows of the state file: written by ticks, looked up by reason, and what people ask for beside the daemon.

A part of ``state.State``, which owns the file's rows, names and transactions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from cdcsync.coalesce import PendingRow
from cdcsync.entries import Reject, RejectGroup, RejectRequest, Selection
from cdcsync.ladder import FARTHEST
from cdcsync.model import Relation
from cdcsync.state_file import StateFile

_REASON = "code, field, message, at, due, discarded"
_PAGE = 500
_AFTER_KEY = "\1"
"""A row without a seat has more after its last key, which begins with NUL (``coalesce``)."""


class RejectTable:
    """The table ``reject``, and the requests about it."""

    def __init__(
        self,
        file: StateFile,
        *,
        columns: str,
        pack: Callable[[PendingRow], tuple[Any, ...]],
        unpack: Callable[[Sequence[Any]], PendingRow],
        mapping_id: Callable[[str], int],
        transaction: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._db = file
        self._columns = f"{columns}, {_REASON}"
        self._width = columns.count(",") + 1
        self._pack = pack
        self._unpack = unpack
        self._mapping_id = mapping_id
        self._transaction = transaction

    def write(self, entries: Sequence[tuple[str, str, Reject | None]]) -> None:
        """Write a tick's parked rows (mapping, key, row), within its transaction; None: it is not parked any more."""
        self._db.executemany(
            "DELETE FROM reject WHERE mapping = ? AND key = ?",
            [(self._mapping_id(m), key) for m, key, reject in entries if reject is None],
        )
        marks = ",".join("?" * (self._width + 7))
        self._db.executemany(
            f"INSERT OR REPLACE INTO reject (mapping, {self._columns}) VALUES ({marks})",  # noqa: S608 — our names
            [
                (
                    self._mapping_id(m), key, *self._pack(one.row), one.code, one.field, one.message, one.at, one.due,
                    one.discarded,
                )
                for m, key, one in entries
                if one is not None
            ],
        )  # fmt: skip

    # --- for the daemon

    def all(self, mapping: str) -> Iterator[Reject]:
        """Yield a mapping's parked rows, the discarded ones too."""
        return self._select("mapping = ?", (self._mapping_id(mapping),))

    def of(self, mapping: str, keys: Sequence[str]) -> Iterator[Reject]:
        """Yield the parked rows of some keys, the discarded ones too."""
        for start in range(0, len(keys), _PAGE):
            chunk = keys[start : start + _PAGE]
            marks = ",".join("?" * len(chunk))
            yield from self._select(f"mapping = ? AND key IN ({marks})", (self._mapping_id(mapping), *chunk))

    def count(self, mapping: str) -> int:
        """Count a mapping's parked rows."""
        query = "SELECT count(*) FROM reject WHERE mapping = ? AND NOT discarded"
        return int(self._db.execute(query, (self._mapping_id(mapping),)).fetchone()[0])

    def due(self, mapping: str, code: str, field: str | None, now: float, limit: int) -> list[Reject]:
        """Return rows with one reason that are due, longest ones first, at most ``limit``."""
        where = (
            "mapping = ? AND code = ? AND field IS ? AND NOT discarded AND (due <= ? OR due > ?) ORDER BY due LIMIT ?"
        )
        return list(self._select(where, (self._mapping_id(mapping), code, field, now, now + FARTHEST, limit)))

    def next_due(self, mapping: str, code: str, field: str | None) -> float | None:
        """Return when the next row with a reason is due (Unix time); None if there is none."""
        query = "SELECT min(due) FROM reject WHERE mapping = ? AND code = ? AND field IS ? AND NOT discarded"
        found: float | None = self._db.execute(query, (self._mapping_id(mapping), code, field)).fetchone()[0]
        return found

    def make_due(self, selection: Selection, before: float) -> None:
        """Let selected rows that were refused up to a Unix time be taken up at once."""
        with self._transaction():
            self._make_due(selection, before)

    def _make_due(self, selection: Selection, before: float) -> None:
        where, values = self._where(selection)
        self._db.execute(f"UPDATE reject SET due = 0 WHERE {where} AND at <= ?", (*values, before))  # noqa: S608 — see _where

    # --- what people ask for

    def request(self, verb: Literal["retry", "discard"], selection: Selection, now: float) -> None:
        """Ask for something: a daemon that runs takes it up within a second or two, another one at its start."""
        keys = json.dumps(selection.keys) if selection.keys else None
        with self._transaction():
            self._db.execute(
                "INSERT INTO reject_request (verb, mapping, code, field, keys, at) VALUES (?,?,?,?,?,?)",
                (verb, selection.mapping, selection.code, selection.field, keys, now),
            )

    def requests(self) -> list[RejectRequest]:
        """Return what was asked for and is not done, in that order."""
        rows = self._db.execute("SELECT id, verb, mapping, code, field, keys, at FROM reject_request ORDER BY id")
        return [
            RejectRequest(number, verb, Selection(mapping, code, field, tuple(json.loads(keys or "[]"))), at)
            for number, verb, mapping, code, field, keys, at in rows
        ]

    def grant_retry(self, request: RejectRequest) -> None:
        """Do what a request for another try asks for."""
        with self._transaction():
            self._make_due(request.selection, request.at)
            self._drop_request(request.id)

    def finish(self, request: RejectRequest) -> None:
        """Note that a request is done."""
        with self._transaction():
            self._drop_request(request.id)

    def _drop_request(self, number: int) -> None:
        self._db.execute("DELETE FROM reject_request WHERE id = ?", (number,))

    # --- for people

    def selected(self, selection: Selection, *, before: float | None = None, limit: int | None = None) -> list[Reject]:
        """Return selected rows in the order of their keys; those refused up to ``before``, at most ``limit``."""
        where, values = self._where(selection)
        if before is not None:
            where, values = f"{where} AND at <= ?", (*values, before)
        return list(self._select(f"{where} ORDER BY key LIMIT ?", (*values, -1 if limit is None else limit)))

    def count_selected(self, selection: Selection) -> int:
        """Count selected rows."""
        where, values = self._where(selection)
        return int(self._db.execute(f"SELECT count(*) FROM reject WHERE {where}", values).fetchone()[0])  # noqa: S608 — see _where

    def pages(self, mapping: str) -> Iterator[Reject]:
        """Yield a mapping's parked rows by key, in pages: whoever reads slowly holds no snapshot of the file."""
        after, where = "", "mapping = ? AND NOT discarded AND key > ? ORDER BY key LIMIT ?"
        number = self._mapping_id(mapping)
        page = list(self._select("mapping = ? AND NOT discarded ORDER BY key LIMIT ?", (number, _PAGE)))
        while page:
            yield from page
            after = page[-1].row.key
            page = list(self._select(where, (number, after, _PAGE)))

    def shapes(self, mapping: str) -> list[Relation]:
        """Return the table shapes that a mapping's parked rows have."""
        where = (
            "mapping = ? AND NOT discarded AND key IN (SELECT min(key) FROM reject WHERE mapping = ? AND NOT discarded "
            "GROUP BY relation)"
        )
        number = self._mapping_id(mapping)
        return [reject.row.relation for reject in self._select(where, (number, number))]

    def groups(self) -> list[RejectGroup]:
        """Group all parked rows by mapping and reason, the largest group of each mapping first."""
        rows = self._db.execute(
            "SELECT m.name, r.code, r.field, count(*), min(r.refused), max(r.at), min(r.due), max(r.message) "
            "FROM reject r JOIN mapping m ON m.id = r.mapping WHERE NOT r.discarded "
            "GROUP BY 1, 2, 3 ORDER BY 1, 4 DESC, 2, 3"
        )
        return [RejectGroup(*row) for row in rows]

    # --- inside

    def _where(self, selection: Selection) -> tuple[str, tuple[Any, ...]]:
        where = "mapping = ? AND NOT discarded"
        values: list[Any] = [self._mapping_id(selection.mapping)]
        if selection.code is not None:
            where, values = f"{where} AND code = ?", [*values, selection.code]
        if selection.field is not None:
            where, values = f"{where} AND field = ?", [*values, selection.field]
        if selection.keys:
            one = "key = ? OR (key > ? AND key < ?)"
            where = f"{where} AND ({' OR '.join([one] * len(selection.keys))})"
            values += [text for key in selection.keys for text in (key, key, key + _AFTER_KEY)]
        return where, tuple(values)

    def _select(self, where: str, values: Sequence[Any]) -> Iterator[Reject]:
        for row in self._db.execute(f"SELECT {self._columns} FROM reject WHERE {where}", values):  # noqa: S608 — see the callers
            code, field, message, at, due, discarded = row[self._width :]
            yield Reject(self._unpack(row[: self._width]), code, field, message, at, due, bool(discarded))
