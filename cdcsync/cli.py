"""The command line. It parses, calls, prints and sets the exit code; everything else is imported when it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cdcsync.errors import EXIT_BUG, EXIT_NOT_FINE, EXIT_OK, CdcsyncError, StateError

if TYPE_CHECKING:
    import psycopg

    from cdcsync.config import Config
    from cdcsync.status import Snapshot

T = TypeVar("T")

app = typer.Typer(
    name="cdcsync",
    help="Keeps Salesforce and HubSpot equal to a PostgreSQL database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
slot_app = typer.Typer(help="The replication slot: show, create, drop, reset.", no_args_is_help=True)
app.add_typer(slot_app, name="slot")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Config file; else CDCSYNC_CONFIG, ./cdcsync.toml, /etc/cdcsync/cdcsync.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]
ConfirmOption = Annotated[str | None, typer.Option("--confirm", help="The slot's name, instead of asking for it.")]


def main() -> None:
    """Run the command line; the exit codes are part of the contract with users."""
    try:
        app()
    except CdcsyncError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 — the last resort: say so, and end with the code for a bug
        import traceback

        traceback.print_exc()
        print("cdcsync: this is a bug; nothing was lost. Please report it with the lines above.", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_BUG)


@app.command()
def version(
    *,
    config: ConfigOption = None,
    server: Annotated[bool, typer.Option(help="Also ask the database of the config.")] = False,
) -> None:
    """Print the versions of cdcsync, libpq, Python and, with --server, PostgreSQL."""
    import platform

    import psycopg

    from cdcsync import __version__

    typer.echo(f"cdcsync {__version__}")
    typer.echo(f"libpq {psycopg.pq.version() // 10000}.{psycopg.pq.version() % 10000}")
    typer.echo(f"Python {platform.python_version()}")
    if server:
        loaded = _load(config)

        async def ask() -> str:
            async with await _connection(loaded) as connection:
                return connection.info.parameter_status("server_version") or "unknown"

        typer.echo(f"PostgreSQL {_run(ask())}")


@app.command()
def run(
    *,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Drain to the present position, then exit.")] = False,
) -> None:
    """Run the daemon."""
    from cdcsync.logs import set_up
    from cdcsync.service import Service

    loaded = _load(config)
    _run(Service(loaded, set_up(loaded.log.level, loaded.log.format), once=once).run())


@app.command()
def status(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show everything at a glance; works while the daemon is down, too."""
    from cdcsync.status_json import dumps
    from cdcsync.status_text import to_text

    snapshot = _snapshot(_load(config))
    typer.echo(dumps(snapshot) if json else to_text(snapshot))
    raise typer.Exit(EXIT_OK if snapshot.balanced else EXIT_NOT_FINE)


@app.command()
def lag(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print one line per CRM: how far it is behind, in bytes, seconds and rows."""
    import json as json_format

    from cdcsync.status import count, duration, size

    snapshot = _snapshot(_load(config))
    server = snapshot.source.server_lsn
    for lane in snapshot.lanes:
        behind = None if server is None else max(0, server - lane.applied_lsn)
        if json:
            entry = {
                "crm": lane.name,
                "bytes": behind,
                "seconds": round(lane.lag_seconds, 3),
                "rows": lane.pending,
                "rejected": lane.rejected,
            }
            typer.echo(json_format.dumps({"version": 1, **entry}))
        else:
            amount = "unknown bytes" if behind is None else size(behind)
            typer.echo(f"{lane.name}: {amount}, {duration(lane.lag_seconds)}, {count(lane.pending, 'row')}")


@app.command()
def check(
    *,
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Look at the config file only.")] = False,
) -> None:
    """Prove the chain from the database to the CRMs, one line each; writes nothing."""
    from cdcsync import check as checks

    loaded = _load(config)
    findings = checks.offline(loaded) if offline else _run(checks.online(loaded))
    for finding in findings:
        typer.echo(f"{'✓' if finding.ok else '✗'} {finding.subject}: {finding.message}")
        if not finding.ok and finding.hint:
            typer.echo(f"    → {finding.hint}")
    raise typer.Exit(EXIT_OK if all(finding.ok for finding in findings) else EXIT_NOT_FINE)


@app.command()
def pause(mapping: str, *, config: ConfigOption = None) -> None:
    """Pause a mapping: its changes are kept, and not sent until it is resumed."""
    import time

    from cdcsync.state import State

    loaded = _load(config)
    _known_mapping(loaded, mapping)
    state = State.beside(loaded.state.path)
    state.pause(mapping, "paused by hand", time.time())
    state.close()
    typer.echo(f"{mapping} is paused; `cdcsync resume {mapping}` lets it go on")


@app.command()
def resume(mapping: str, *, config: ConfigOption = None) -> None:
    """Let a paused mapping go on."""
    from cdcsync.state import State

    loaded = _load(config)
    _known_mapping(loaded, mapping)
    state = State.beside(loaded.state.path)
    was = state.resume(mapping)
    state.close()
    typer.echo(f"{mapping} goes on" if was else f"{mapping} was not paused")


@app.command()
def sandbox(
    crm: Annotated[str, typer.Argument(help="salesforce, hubspot, or both.")] = "both",
    *,
    salesforce_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8101,
    hubspot_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8201,
) -> None:
    """Run the stand-in CRMs on local ports, for tests of configs; each has an admin port one above its own."""
    from cdcsync.sandbox.processes import run_processes

    ports = {"salesforce": salesforce_port, "hubspot": hubspot_port}
    if crm not in {*ports, "both"}:
        raise typer.BadParameter(f"{crm!r} is neither salesforce, hubspot nor both")
    raise typer.Exit(run_processes({name: port for name, port in ports.items() if crm in {name, "both"}}, typer.echo))


@app.command()
def demo(
    *,
    seconds: Annotated[float | None, typer.Option(help="End by itself after this time, with a verdict.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat the workload of an earlier run.")] = None,
) -> None:
    """Run a shop database, the stand-in CRMs and the daemon on this machine; needs no account."""
    from cdcsync.demo.run import run_demo

    raise typer.Exit(run_demo(seconds=seconds, seed=seed))


@slot_app.command("show")
def slot_show(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the slot as PostgreSQL has it."""
    import dataclasses
    import json as json_format

    from cdcsync.wal.slot import show_slot

    loaded = _load(config)

    async def ask() -> dict[str, Any]:
        async with await _connection(loaded) as connection:
            return dataclasses.asdict(await show_slot(connection, loaded.postgres.slot))

    info = _run(ask())
    if json:
        typer.echo(json_format.dumps({"version": 1, **info}, default=str))
    else:
        for name, value in info.items():
            if value is not None:
                typer.echo(f"{name}: {_readable(name, value)}")
    raise typer.Exit(EXIT_OK if info["exists"] else EXIT_NOT_FINE)


@slot_app.command("create")
def slot_create(*, config: ConfigOption = None) -> None:
    """Create the publication and the slot, for the first start to take up."""
    from cdcsync.service import make_slot

    loaded = _load(config)
    _run(make_slot(loaded))
    typer.echo(f"slot {loaded.postgres.slot} is made; `cdcsync run` starts from it")


@slot_app.command("drop")
def slot_drop(*, config: ConfigOption = None, confirm: ConfirmOption = None) -> None:
    """Drop the slot. What is written afterwards is not seen; the next start copies every table anew."""
    from cdcsync.service import forget_slot

    loaded = _load(config)
    _confirm(loaded.postgres.slot, confirm, "Dropping the slot loses its place in the stream.")
    _run(forget_slot(loaded))
    typer.echo(f"slot {loaded.postgres.slot} is dropped; the next start copies every table anew and sends differences")


@slot_app.command("reset")
def slot_reset(*, config: ConfigOption = None, confirm: ConfirmOption = None) -> None:
    """Drop and create the slot anew, and let every table be compared again at the next start."""
    from cdcsync.service import forget_slot, make_slot

    loaded = _load(config)
    for line in _run(_reset_warning(loaded)):
        typer.echo(line)
    _confirm(loaded.postgres.slot, confirm, "The next start reads every mapped table and sends what differs.")
    _run(forget_slot(loaded))
    _run(make_slot(loaded))
    typer.echo(f"slot {loaded.postgres.slot} is new; `cdcsync run` goes on from here")


async def _reset_warning(config: Config) -> list[str]:
    from cdcsync.status import size
    from cdcsync.wal.slot import show_slot

    async with await _connection(config) as connection:
        info = await show_slot(connection, config.postgres.slot)
    if info.active_pid is not None:
        raise StateError(
            f"slot {config.postgres.slot!r} is in use (server process {info.active_pid})", hint="Stop the daemon first."
        )
    if not info.exists:
        return ["There is no slot; a new one is made."]
    skipped = "an unknown amount" if info.retained_bytes is None else size(info.retained_bytes)
    return [
        f"This skips {skipped} of WAL; the copy at the next start makes up for it, rows deleted meanwhile included."
    ]


def _readable(name: str, value: object) -> object:
    from cdcsync.model import format_lsn
    from cdcsync.status import size

    if name.endswith("_lsn") and isinstance(value, int):
        return format_lsn(value)
    if isinstance(value, int) and (name.endswith("_bytes") or name == "safe_wal_size"):
        return size(value)
    return value


def _load(path: Path | None) -> Config:
    from cdcsync.config import find_config, load

    return load(find_config(path, os.environ), os.environ)


def _snapshot(config: Config) -> Snapshot:
    from cdcsync.report import SlotWatch, stored_snapshot
    from cdcsync.state import State

    state = State.read(config.state.path)
    watch = SlotWatch(config.postgres)
    _run(watch.look())
    snapshot = stored_snapshot(state, config, watch)
    state.close()
    return snapshot


async def _connection(config: Config) -> psycopg.AsyncConnection[Any]:
    from cdcsync.wal.connect import connect

    return await connect(config.postgres.dsn)


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)


def _known_mapping(config: Config, mapping: str) -> None:
    names = [entry.name for entry in config.maps]
    if mapping not in names:
        raise typer.BadParameter(f"there is no mapping {mapping!r}; there are: {', '.join(names)}")


def _confirm(name: str, given: str | None, warning: str) -> None:
    if given is None:
        typer.echo(warning, err=True)
        given = typer.prompt(f"Type the slot's name ({name}) to go on", err=True)
    if given != name:
        raise typer.BadParameter(f"{given!r} is not the slot's name ({name})")


def _complain(error: CdcsyncError) -> None:
    typer.echo(f"cdcsync: error [{error.code}]: {error}", err=True)
