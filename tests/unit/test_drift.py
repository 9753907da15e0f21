"""What a table's change means for a mapping."""

from __future__ import annotations

from typing import Any

import pytest

from cdcsync.config import MapConfig
from cdcsync.drift import mapped_types, shape_drift, table_drift, what_is_left
from cdcsync.entries import Seen
from cdcsync.model import Column, Relation
from cdcsync.route import Route
from cdcsync.wal.sight import TableSight

TEXT, INT4, INT8, VARCHAR, BYTEA, DOMAIN = 25, 23, 20, 1043, 17, 20001
TYPES = {DOMAIN: TEXT}


def mapping(**changes: Any) -> MapConfig:
    """Map id, name and (as an association) owner of a table t."""
    given = {"name": "m", "table": "t", "to": "crm.A", "key": {"K": "id"}, "fields": {"N": "name", "S": "size"}}
    link = {"to": "crm.B", "column": "owner", "type": "x"}
    return MapConfig.model_validate({**given, "associate": [link], **changes})


def relation(types: dict[str, int], *, oid: int = 7, table: str = "t", key: bool = True) -> Relation:
    """Describe a table; the column ``id`` is its identity."""
    columns = tuple(Column(column, type_oid, -1, key and column == "id") for column, type_oid in types.items())
    return Relation(oid, "public", table, "d", columns)


WHOLE = {"id": INT4, "name": TEXT, "size": INT4, "owner": INT4}
BEFORE = mapped_types(mapping(), relation({**WHOLE, "note": TEXT}), TYPES)
SEEN = Seen("", "public.t", 7, BEFORE, {}, "1", 0)


def test_a_column_may_go_away_during_a_look() -> None:
    """The shape and the columns' definitions are read one after the other: a drop between the two ends nothing."""
    gone = {column: "1" for column in WHOLE if column != "size"}
    assert Route(mapping(), TYPES).fit(TableSight(relation(WHOLE), publication="1", columns=gone)).columns == gone


def test_only_mapped_columns_count() -> None:
    """What else the table has is not remembered, and may change as it likes."""
    assert BEFORE == WHOLE
    assert shape_drift(mapping(), BEFORE, relation({**WHOLE, "note": BYTEA, "more": TEXT}), TYPES) is None


@pytest.mark.parametrize("column", WHOLE)
def test_a_missing_column_makes_rows_unreadable(column: str) -> None:
    """The reason names it."""
    left = {name: oid for name, oid in WHOLE.items() if name != column}
    drift = shape_drift(mapping(), BEFORE, relation(left), TYPES)
    assert drift is not None
    assert not drift.readable
    assert f"no column {column}" in drift.reason


@pytest.mark.parametrize(("now", "drifts"), [(VARCHAR, False), (DOMAIN, False), (INT8, True), (BYTEA, True)])
def test_a_type_counts_by_what_it_means_to_a_crm(now: int, *, drifts: bool) -> None:
    """Text stays text, by whatever name; a number is something else, and its rows are readable; bytes are not."""
    drift = shape_drift(mapping(), BEFORE, relation({**WHOLE, "name": now}), TYPES)
    assert (drift is not None) == drifts
    if drift is not None:
        assert drift.readable == (now == INT8)


def test_a_key_outside_the_identity_is_drift() -> None:
    """Deletes would not carry it."""
    drift = shape_drift(mapping(), BEFORE, relation(WHOLE, key=False), TYPES)
    assert drift is not None
    assert "replica identity" in drift.reason


def test_what_is_left_of_a_mapping() -> None:
    """Fields and associations go with their columns; a mapping that loses nothing is the same object."""
    whole = mapping()
    assert what_is_left(whole, relation(WHOLE)) is whole
    left = what_is_left(whole, relation({"id": INT4, "name": TEXT}))
    assert list(left.fields) == ["N"]
    assert left.associate == []


@pytest.mark.parametrize(
    ("sight", "words", "readable"),
    [
        (TableSight(None), "was dropped", False),
        (TableSight(relation(WHOLE, oid=8)), "another table", False),
        (TableSight(relation(WHOLE), unfit="has no primary key"), "no primary key", False),
        (TableSight(relation(WHOLE, table="t2")), "renamed to public.t2", True),
    ],
)
def test_what_the_catalogs_show(sight: TableSight, words: str, *, readable: bool) -> None:
    """Each change has its sentence; only a renamed table's rows still mean the same."""
    drift = table_drift(mapping(), SEEN, sight, TYPES)
    assert drift is not None
    assert words in drift.reason
    assert drift.readable == readable


def test_a_table_as_it_was_is_no_drift() -> None:
    """Nothing is said of it."""
    assert table_drift(mapping(), SEEN, TableSight(relation(WHOLE)), TYPES) is None


def test_the_meaning_of_a_mapping() -> None:
    """It follows what is sent for a row, and nothing else."""
    assert mapping().meaning == mapping(on_drift="warn", on_truncate="ignore", name="other").meaning
    assert mapping().meaning != mapping(fields={"N": "name"}).meaning
    assert mapping().meaning != mapping(where="id > 1").meaning


def test_the_meaning_survives_a_key_that_nobody_uses() -> None:
    """State files hold digests from before ``only_if_empty``: they stay true, or all tables would be compared."""
    plain, own = ({"N": {"column": "name", "only_if_empty": given}} for given in (False, True))
    digest = MapConfig.model_validate({"table": "t", "to": "salesforce.X", "key": {"K": "id"}, "fields": plain}).meaning
    assert digest == "60ea2a53e5b0d1e1"
    assert mapping(fields=plain).meaning != mapping(fields=own).meaning
