"""Which of a mapping and a CRM a name means."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from cdcsync.cli_pause import Kind, _kind
from cdcsync.config import Config, load
from tests.unit.test_config import SMALLEST


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Load a config with a mapping that is called like its CRM, and one that is not."""
    path = tmp_path / "cdcsync.toml"
    second = '[[map]]\ntable = "c"\nto = "salesforce.C"\nkey = { K = "id" }\nname = "other"\n'
    path.write_text(SMALLEST.replace("[[map]]", '[[map]]\nname = "salesforce"') + second, encoding="utf-8")
    return load(path, {})


@pytest.mark.parametrize(
    ("name", "crm", "mapping", "kind"),
    [
        ("other", False, False, "mapping"),
        ("salesforce", True, False, "crm"),
        ("salesforce", False, True, "mapping"),
        ("other", False, True, "mapping"),
    ],
)
def test_a_name_is_found(config: Config, name: str, kind: Kind, *, crm: bool, mapping: bool) -> None:
    """By itself, or with a word which of two is meant."""
    assert _kind(config, name, crm=crm, mapping=mapping) == kind


@pytest.mark.parametrize(
    ("name", "crm", "words"),
    [
        ("salesforce", False, "say --crm or --map"),
        ("hubspot", False, "mappings: salesforce, other; CRMs: salesforce"),
        ("other", True, "no such mapping or CRM"),
    ],
)
def test_a_name_that_says_too_little_is_refused(config: Config, name: str, words: str, *, crm: bool) -> None:
    """The sentence says what there is."""
    with pytest.raises(typer.BadParameter, match=words):
        _kind(config, name, crm=crm, mapping=False)
