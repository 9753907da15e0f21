"""``cdcsync rejects``: the rows that a CRM, or the mapping, refused, on the command line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cdcsync.cli_base import ConfigOption, JsonOption, confirm, known_mapping, load
from cdcsync.errors import EXIT_NOT_FINE

if TYPE_CHECKING:
    from cdcsync.config import Config
    from cdcsync.entries import Selection
    from cdcsync.state import State

rejects_app = typer.Typer(
    help="Rows that were refused and are parked: list, show, retry, discard, export.", no_args_is_help=True
)

CodeOption = Annotated[str | None, typer.Option("--code", help="Only rows that were refused with this code.")]
FieldOption = Annotated[str | None, typer.Option("--field", help="Only rows that were refused for this CRM field.")]
KeyOption = Annotated[
    list[str] | None, typer.Option("--key", help="Only the row with this external key; may be repeated.")
]
SOON = "the daemon does it within some seconds, or at its next start"


@rejects_app.command("list")
def rejects_list(
    mapping: Annotated[str | None, typer.Argument(help="Only this mapping's.")] = None,
    *,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show the parked rows grouped by mapping, code and field, with the CRM's words and the remedy."""
    from cdcsync.parked import group_json, group_text
    from cdcsync.status import count

    loaded = load(config)
    with _reading(loaded, mapping) as state:
        groups = [one for one in state.parked.groups() if mapping in {None, one.mapping}]
        paused = state.paused()
    for group in groups:
        typer.echo(group_json(group, loaded, paused) if json else group_text(group, loaded, paused, time.time()))
    if not json:
        typer.echo(f"{count(sum(group.rows for group in groups), 'rejected row')}.")


@rejects_app.command("show")
def rejects_show(mapping: str, key: str, *, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show one parked row: its columns, what would be sent, the reason, and when it is tried again."""
    from cdcsync.entries import Selection
    from cdcsync.parked import described, described_text
    from cdcsync.status_json import fields_json

    loaded = load(config)
    with _reading(loaded, mapping) as state:
        found = state.parked.selected(Selection(mapping, keys=(key,)))
        seen, paused = state.seen(mapping), state.paused().get(mapping)
    if not found:
        typer.echo(f"{mapping} has no rejected row with the key {key}", err=True)
        raise typer.Exit(EXIT_NOT_FINE)
    for reject in found:
        entry = described(reject, loaded, seen, paused, mapping)
        typer.echo(fields_json(entry) if json else described_text(entry, time.time()))


@rejects_app.command("retry")
def rejects_retry(
    mapping: Annotated[str | None, typer.Argument(help="This mapping's rows.")] = None,
    *,
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="The rows of all mappings.")] = False,
    code: CodeOption = None,
    field: FieldOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Let parked rows be tried again at once."""
    from cdcsync.entries import Selection
    from cdcsync.status import count

    loaded = load(config)
    if (mapping is None) != everything:
        raise typer.BadParameter("give a mapping or --all")
    if everything and key:
        raise typer.BadParameter("--key goes with a mapping")
    names = [entry.name for entry in loaded.maps] if mapping is None else [mapping]
    rows = 0
    with _changing(loaded, mapping) as state:
        for name in names:
            rows += _ask(state, "retry", Selection(name, code, field, tuple(key or ())))
        paused = [name for name in names if name in state.paused()]
    if json:
        _echo_asked(mapping, rows)
    elif not rows:
        typer.echo("No rejected row matches; nothing was asked for.")
    else:
        typer.echo(f"{count(rows, 'rejected row')} to be tried again: {SOON}.")
        for name in paused:
            typer.echo(f"{name} is paused, and its rows wait for `cdcsync resume {name}`.")


@rejects_app.command("discard")
def rejects_discard(
    mapping: str,
    *,
    config: ConfigOption = None,
    code: CodeOption = None,
    field: FieldOption = None,
    key: KeyOption = None,
    confirmed: Annotated[
        str | None, typer.Option("--confirm", help="The mapping's name, instead of asking for it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Give parked rows up: the CRM never gets these changes. The rows' next changes go as usual."""
    from cdcsync.entries import Selection
    from cdcsync.status import count

    loaded = load(config)
    selection = Selection(mapping, code, field, tuple(key or ()))
    with _changing(loaded, mapping) as state:
        rows = state.parked.count_selected(selection)
        if rows:
            words = f"{count(rows, 'rejected row')} of {mapping} will be given up: the CRM stays as it is until"
            confirm("mapping's name", mapping, confirmed, [f"{words} they change, or are compared (cdcsync resync)."])
            _ask(state, "discard", selection)
    if json:
        _echo_asked(mapping, rows)
    elif rows:
        typer.echo(f"{count(rows, 'rejected row')} to be given up: {SOON}.")
    else:
        typer.echo("No rejected row matches; nothing was asked for.")


@rejects_app.command("export")
def rejects_export(
    mapping: str,
    *,
    config: ConfigOption = None,
    form: Annotated[str, typer.Option("--format", help="jsonl (exact) or csv (for spreadsheets).")] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file, for you alone; else standard output.")
    ] = None,
) -> None:
    """Write out a mapping's parked rows, all their columns, with the reasons."""
    from cdcsync.reject_export import csv_lines, json_lines

    if form not in {"jsonl", "csv"}:
        raise typer.BadParameter(f"{form!r} is neither jsonl nor csv")
    loaded = load(config)
    with _reading(loaded, mapping) as state, _target(output) as file:
        rejects = state.parked.pages(mapping)
        lines = json_lines(mapping, rejects) if form == "jsonl" else csv_lines(rejects, state.parked.shapes(mapping))
        file.writelines(lines)


def _ask(state: State, verb: str, selection: Selection) -> int:
    """Write a request down, unless it would mean no row; returns how many it means."""
    rows = state.parked.count_selected(selection)
    if rows:
        state.parked.request("discard" if verb == "discard" else "retry", selection, time.time())
    return rows


def _echo_asked(mapping: str | None, rows: int) -> None:
    from cdcsync.status_json import fields_json

    typer.echo(fields_json({"mapping": mapping, "rows": rows, "requested": rows > 0}))


@contextmanager
def _reading(config: Config, mapping: str | None) -> Iterator[State]:
    """Open the state file for a look; on a machine whose daemon stands by, the mirror."""
    from cdcsync.claim import held_by
    from cdcsync.state import State

    if mapping is not None:
        known_mapping(config, mapping)
    place = config.state
    elsewhere = place.mirror is not None and held_by(place.mirror) is not None and held_by(place.path) is None
    state = State.read(place.mirror if elsewhere and place.mirror is not None else place.path)
    try:
        yield state
    finally:
        state.close()


@contextmanager
def _changing(config: Config, mapping: str | None) -> Iterator[State]:
    from cdcsync.state import State

    if mapping is not None:
        known_mapping(config, mapping)
    state = State.beside(config.state.path, config.state.mirror)
    try:
        yield state
    finally:
        state.close()


@contextmanager
def _target(path: Path | None) -> Iterator[TextIO]:
    """Open a new file with mode 0600, or give standard output. Raises BadParameter for a file that is there."""
    if path is None:
        yield sys.stdout
        return
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise typer.BadParameter(f"cannot make {path}: {error.strerror}") from error
    with open(handle, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123 — a descriptor, made with its mode
        yield file
