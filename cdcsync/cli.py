"""The command line. It parses, calls, prints and sets the exit code; everything else is imported when it is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cdcsync.cli_base import (
    ConfigOption,
    JsonOption,
    active_elsewhere,
    known_mapping,
    load,
    run_to_end,
    snapshot_of,
)
from cdcsync.cli_pause import pause, resume
from cdcsync.cli_proof import lag, wait
from cdcsync.cli_rejects import rejects_app
from cdcsync.cli_slot import slot_app
from cdcsync.cli_state import state_app
from cdcsync.errors import EXIT_BUG, EXIT_NOT_FINE, EXIT_OK, CdcsyncError

app = typer.Typer(
    name="cdcsync",
    help="Keeps Salesforce and HubSpot equal to a PostgreSQL database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(slot_app, name="slot")
app.add_typer(rejects_app, name="rejects")
app.add_typer(state_app, name="state")
app.command()(pause)
app.command()(resume)


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
    from cdcsync.wal.connect import connect

    typer.echo(f"cdcsync {__version__}")
    typer.echo(f"libpq {psycopg.pq.version() // 10000}.{psycopg.pq.version() % 10000}")
    typer.echo(f"Python {platform.python_version()}")
    if server:
        loaded = load(config)

        async def ask() -> str:
            async with await connect(loaded.postgres.dsn) as connection:
                return connection.info.parameter_status("server_version") or "unknown"

        typer.echo(f"PostgreSQL {run_to_end(ask())}")


@app.command()
def run(
    *,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Drain to the present position, then exit.")] = False,
    standby: Annotated[
        bool, typer.Option("--standby", help="While another daemon has the state, wait, and take over when it is gone.")
    ] = False,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Write to no CRM: tell what would be sent. Disturbs no running daemon.")
    ] = False,
    shadow_output: Annotated[
        Path | None, typer.Option(help="With --shadow: a new file for the records, one as JSON a line.")
    ] = None,
) -> None:
    """Run the daemon."""
    from cdcsync.logs import set_up
    from cdcsync.service import Service
    from cdcsync.shadow import ShadowService

    if shadow_output is not None and not shadow:
        raise typer.BadParameter("--shadow-output goes with --shadow")
    if shadow and standby:
        raise typer.BadParameter("--shadow has no state to wait for: leave --standby out")
    loaded = load(config)
    log = set_up(loaded.log.level, loaded.log.format)
    if shadow:
        service: Service = ShadowService(loaded, log, once=once, output=shadow_output)
    else:
        service = Service(loaded, log, once=once, standby=standby)
    run_to_end(service.run())
    if isinstance(service, ShadowService):
        typer.echo(service.summary())
    if service.hanging():
        # Requests that a CRM does not answer: their threads would hold the process up for minutes, and all is written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_OK)


@app.command()
def status(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show everything at a glance; works while the daemon is down, too."""
    from cdcsync.status_json import dumps
    from cdcsync.status_text import to_text

    loaded = load(config)
    snapshot = snapshot_of(loaded)
    active = active_elsewhere(loaded)
    if active is not None and not json:
        typer.echo(f"Standing by: active is {active}; what follows is from the mirror.")
    typer.echo(dumps(snapshot) if json else to_text(snapshot))
    raise typer.Exit(EXIT_OK if snapshot.ready else EXIT_NOT_FINE)


app.command()(lag)
app.command()(wait)


@app.command()
def check(
    *,
    config: ConfigOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Look at the config file only.")] = False,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print what a DBA has to run: role, grants, publication, settings.")
    ] = False,
) -> None:
    """Prove the chain from the database to the CRMs, one line each; writes nothing."""
    from cdcsync import check as checks

    loaded = load(config)
    if print_sql:
        typer.echo(run_to_end(checks.privileges(loaded, ask=not offline)), nl=False)
        return
    findings = checks.offline(loaded) if offline else run_to_end(checks.online(loaded))
    for finding in findings:
        mark = "✗" if not finding.ok else "!" if finding.hint else "✓"
        typer.echo(f"{mark} {finding.subject}: {finding.message}")
        if finding.hint:
            typer.echo(f"    → {finding.hint}")
    raise typer.Exit(EXIT_OK if all(finding.ok for finding in findings) else EXIT_NOT_FINE)


@app.command()
def resync(
    mapping: str,
    *,
    config: ConfigOption = None,
    where: Annotated[str | None, typer.Option("--where", help="Only rows that meet this condition (SQL).")] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="Only the row with this key; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop there.")] = False,
    json: JsonOption = False,
) -> None:
    """Read a mapping's rows again and make the CRM equal to them; says first what that may cost."""
    from cdcsync import resync as resyncs
    from cdcsync.report import ask_daemon

    loaded = load(config)
    known_mapping(loaded, mapping)
    if where is not None and key:
        raise typer.BadParameter("give --where or --key, not both")
    wanted = resyncs.Request(mapping, where, tuple(key or ()))
    request, prediction = run_to_end(resyncs.predict(loaded, wanted, ask_daemon(loaded)))
    if not dry_run:
        resyncs.ask(loaded, request, prediction)
    as_json = resyncs.to_json(request, prediction, requested=not dry_run)
    typer.echo(as_json if json else resyncs.to_text(prediction, requested=not dry_run))


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


def _complain(error: CdcsyncError) -> None:
    typer.echo(f"cdcsync: error [{error.code}]: {error}", err=True)
