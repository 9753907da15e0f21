"""The documents say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "traps.md").read_text())))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_tests_that_the_traps_name_exist(path: str, name: str) -> None:
    """Nobody can rename or drop one of them without saying so there."""
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_group_of_complaints_is_answered() -> None:
    """Twelve groups, each with a test."""
    rows = re.findall(r"^\| \*\*([A-L])\. .*`tests/", (ROOT / "docs" / "traps.md").read_text(), re.MULTILINE)
    assert "".join(rows) == "ABCDEFGHIJKL"
