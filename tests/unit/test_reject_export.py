"""What people see of parked rows: remedies for every code, one row in full, and exports that are exact and harmless."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path

import pytest

from cdcsync.coalesce import Refused
from cdcsync.entries import Reject
from cdcsync.mappers.compile import _REASONS
from cdcsync.model import ABSENT, INCOMPLETE_ROW, Column, Relation, Text
from cdcsync.reject_export import csv_lines, json_lines
from cdcsync.rejects import PARENT_MISSING
from cdcsync.remedies import OURS, remedy
from cdcsync.wal.decode import join_tuple
from tests.unit.test_state import row

PACKAGE = Path(__file__).parents[2] / "cdcsync"
TABLE = Relation(7, "public", "t", "d", tuple(Column(name, 25, -1, name == "id") for name in ("id", "a", "b")))


def parked(*values: Text, relation: Relation = TABLE, **changes: object) -> Reject:
    """Make a parked row."""
    given = {"relation": relation, "image": join_tuple(values), "refused": Refused(2, 3600.0), **changes}
    return Reject(row("k", **given), "CODE", "Field", "their words", 7200.0, 9000.0)


def own_codes() -> set[str]:
    """Find the codes of our own refusals in the source: they are in lower case, vendors' in upper."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if "sandbox" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if named in {"Rejected", "RowRejectedError", "_reject"} and isinstance(node, ast.Call) and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and str(first.value).islower():
                    found.add(str(first.value))
    return found


def test_each_of_our_codes_has_a_remedy() -> None:
    """Whatever the program itself refuses a row for, it says what to do; an unknown code points at the CRM's words."""
    assert len(own_codes()) > 5
    assert own_codes() | {INCOMPLETE_ROW, PARENT_MISSING, *_REASONS} == OURS.keys()
    assert remedy("salesforce", "STRING_TOO_LONG") != remedy("hubspot", "STRING_TOO_LONG") == remedy("", "NEW")


def test_json_lines_are_exact() -> None:
    """NULL, the empty text, and what was not carried are three things; bytes that are no UTF-8 are told."""
    rejects = [
        parked(b"1", None, b""),
        parked(b"2", ABSENT, b"=1\xff\r\n"),
        parked(b"", b"", b"", deleted=True, image=b""),
    ]
    null, absent, deleted = (json.loads(line) for line in json_lines("m", rejects))
    assert null == {
        "format": 1,
        "mapping": "m",
        "key": "k",
        "deleted": False,
        "code": "CODE",
        "field": "Field",
        "message": "their words",
        "refusals": 2,
        "first": "1970-01-01T01:00:00+00:00",
        "last": "1970-01-01T02:00:00+00:00",
        "row": {"id": "1", "a": None, "b": ""},
    }
    assert absent["row"] == {"id": "2", "b": "=1\\xff\r\n"}
    assert (deleted["deleted"], deleted["row"]) == (True, {})


def test_csv_has_the_columns_of_all_shapes() -> None:
    """A column that was added while rows were parked has its place, and each value stands under its name."""
    wider = Relation(7, "public", "t", "d", (*TABLE.columns[:2], Column("code", 25, -1, False)))
    rejects = [parked(b"1", b"x,y", None), parked(b"2", b"line\nbreak", b"c", relation=wider)]
    text = "".join(csv_lines(rejects, [TABLE, wider]))
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert header[-4:] == ["id", "a", "b", "code"]
    assert header[:3] == ["cdcsync_key", "cdcsync_deleted", "cdcsync_code"]
    assert [line[-4:] for line in lines] == [["1", "x,y", "", ""], ["2", "line\nbreak", "", "c"]]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("-12.50", "-12.50"),
        ("+49", "+49"),
        ("-1e10", "-1e10"),
        ("plain", "plain"),
    ],
)
def test_a_spreadsheet_runs_nothing(given: str, written: str) -> None:
    """What would be a formula is a text; a negative number stays a number."""
    _, line = csv.reader(io.StringIO("".join(csv_lines([parked(b"1", given.encode(), None)], [TABLE])), newline=""))
    assert line[-2] == written
