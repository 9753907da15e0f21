"""The documents say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAPS, CHAOS = ((ROOT / "docs" / name).read_text() for name in ("traps.md", "chaos.md"))
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TRAPS + CHAOS)))
MATRIX = (
    "Duplicate delivery",
    "Late answer",
    "Delete",
    "Merge",
    "Edit",
    "Schema change in the CRM",
    "CRM down",
    "PostgreSQL down",
    "Disk full",
    "Clock jump",
    "Quota exhausted",
    "Token revoked",
    "One object stuck",
)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_tests_that_the_documents_name_exist(path: str, name: str) -> None:
    """Nobody can rename or drop one of them without saying so there."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_group_of_complaints_is_answered() -> None:
    """Twelve groups, each with a test."""
    rows = re.findall(r"^\| \*\*([A-L])\. .*`tests/", TRAPS, re.MULTILINE)
    assert "".join(rows) == "ABCDEFGHIJKL"


def test_each_cell_of_the_chaos_matrix_is_answered() -> None:
    """Each thing that may fail has a line with a test."""
    assert tuple(re.findall(r"^\| \*\*(.+?)\*\*.*`tests/", CHAOS, re.MULTILINE)) == MATRIX
