"""``cdcsync state``: backups and checks of the state file on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdcsync.cli_base import ConfigOption, ConfirmOption, JsonOption, confirm, load
from cdcsync.errors import EXIT_NOT_FINE, EXIT_OK

if TYPE_CHECKING:
    from cdcsync.state_check import Report

state_app = typer.Typer(help="The state file: back up, check, restore.", no_args_is_help=True)


@state_app.command("backup")
def state_backup(
    file: Path,
    *,
    config: ConfigOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    json: JsonOption = False,
) -> None:
    """Copy the state file as it is now into FILE; the daemon may run, and goes on."""
    import time

    from cdcsync.state_backup import back_up
    from cdcsync.status import duration, size
    from cdcsync.status_json import fields_json

    loaded = load(config)
    began = time.monotonic()
    written = back_up(loaded.state.path, file, force=force, told=_progress())
    took = time.monotonic() - began
    fields = {"path": str(file), "bytes": written, "seconds": round(took, 3)}
    typer.echo(fields_json(fields) if json else f"{file}: {size(written)}, in {duration(took)}")


@state_app.command("check")
def state_check(
    file: Annotated[Path | None, typer.Argument(help="A backup; else the state file of the config.")] = None,
    *,
    config: ConfigOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out whether indexes agree with tables.")] = False,
    json: JsonOption = False,
) -> None:
    """Check all of the state file, or of a backup, and its books; the daemon may run."""
    from cdcsync.state_check import look
    from cdcsync.status_json import fields_json

    report = look(file if file is not None else load(config).state.path, quick=quick)
    typer.echo(fields_json(_fields(report)) if json else _text(report))
    raise typer.Exit(EXIT_NOT_FINE if report.problems else EXIT_OK)


@state_app.command("restore")
def state_restore(file: Path, *, config: ConfigOption = None, confirmed: ConfirmOption = None) -> None:
    """Put a backup in the state file's place, which is kept beside it; the daemon must not run."""
    from cdcsync.state_backup import restore

    loaded = load(config)
    warning = [
        f"This puts {file} in the place of {loaded.state.path}. What was sent since it was made, it does not know.",
        "Where the slot has gone on since, the next `cdcsync run` refuses, and says what to do.",
    ]
    confirm("slot's name", loaded.postgres.slot, confirmed, warning)
    aside = restore(file, loaded.state.path, loaded.state.mirror, _progress())
    typer.echo(f"{file} is in place" + (f"; what was there is {aside}" if aside is not None else ""))


def _progress() -> Callable[[int, int], None]:
    """Return what shows how far a copy is, on a terminal."""
    if not sys.stderr.isatty():
        return lambda *_: None

    def show(done: int, total: int) -> None:
        typer.echo(f"\r{done / max(1, total):.0%}" + ("\n" if done == total else ""), err=True, nl=False)

    return show


def _fields(report: Report) -> dict[str, object]:
    identity = report.identity
    return {
        "path": str(report.path),
        "fine": not report.problems,
        "problems": list(report.problems),
        "schema": report.schema,
        "system_id": identity.system_id if identity else None,
        "database": identity.database if identity else None,
        "slot": identity.slot if identity else None,
        "consistent_point_lsn": identity.consistent_point if identity else None,
        "durable_lsn": report.checkpoint.durable_lsn,
        "timeline": report.timeline,
        "backup": report.backup,
        "bytes": report.bytes,
        "free_bytes": report.free_bytes,
        "wal_bytes": report.wal_bytes,
        "rows": report.rows,
        "books": [one._asdict() | {"missing": one.missing} for one in report.books],
    }


def _text(report: Report) -> str:
    from cdcsync.status_text import fields_text

    flat = {name: value for name, value in _fields(report).items() if not isinstance(value, list | dict)}
    lines = [fields_text(flat), *(f"{name}: {rows:,} rows" for name, rows in report.rows.items())]
    for one in report.books:
        parts = ("applied", "suppressed", "coalesced", "discarded", "rejected", "pending")
        sides = " + ".join(f"{getattr(one, part):,} {part}" for part in parts)
        lines.append(f"{'✗' if one.missing else '✓'} {one.lane}: {one.changes_in:,} changes in = {sides}")
    lines += [f"✗ {problem}" for problem in report.problems]
    return "\n".join(lines)
