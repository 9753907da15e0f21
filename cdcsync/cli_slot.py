"""``cdcsync slot``: the replication slot's life on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cdcsync.cli_base import ConfigOption, ConfirmOption, JsonOption, confirm, load, lsn_of, run_to_end
from cdcsync.errors import EXIT_NOT_FINE, EXIT_OK

if TYPE_CHECKING:
    from cdcsync.config import Config
    from cdcsync.wal.health import Health, Note

slot_app = typer.Typer(help="The replication slot: show, create, advance, drop, reset.", no_args_is_help=True)

SIGNS = {"fine": "✓", "warning": "!", "lost": "✗"}


@slot_app.command("show")
def slot_show(
    *,
    config: ConfigOption = None,
    json: JsonOption = False,
    standby: Annotated[
        list[str] | None,
        typer.Option(help="Connection string of a standby, to see its copy of a failover slot; may be repeated."),
    ] = None,
) -> None:
    """Show the slot as PostgreSQL has it, its health in plain words, and its copies on standbys."""
    from cdcsync.status_json import fields_json
    from cdcsync.status_text import fields_text
    from cdcsync.wal.health import diagnose

    loaded = load(config)
    health = run_to_end(_examine(loaded, standby or []))
    notes = diagnose(health, loaded.postgres.warn_lag)
    flat = _fields(health)
    if json:
        typer.echo(fields_json(flat | _nested(health, notes)))
    else:
        typer.echo(fields_text(flat))
        for note in notes:
            typer.echo(f"{SIGNS[note.level]} {note.text}" + (f"\n    → {note.remedy}" if note.remedy else ""))
    raise typer.Exit(EXIT_OK if health.info.exists and not health.info.lost else EXIT_NOT_FINE)


@slot_app.command("create")
def slot_create(*, config: ConfigOption = None) -> None:
    """Create the publication and the slot, for the first start to take up."""
    from cdcsync.logs import set_up
    from cdcsync.slot_life import make_slot

    loaded = load(config)
    made = run_to_end(make_slot(loaded, set_up(loaded.log.level, loaded.log.format)))
    typer.echo(f"slot {loaded.postgres.slot} {'is made' if made else 'exists'}; `cdcsync run` starts from it")


@slot_app.command("advance")
def slot_advance(
    *,
    to: Annotated[str | None, typer.Option(help="An LSN (16/B374D848); else the server's present position.")] = None,
    config: ConfigOption = None,
    confirmed: ConfirmOption = None,
) -> None:
    """Skip what the slot holds, without reading it, and let every table be compared again at the next start."""
    from cdcsync.model import format_lsn
    from cdcsync.slot_life import advance_slot, look, sentences

    loaded = load(config)
    skip = run_to_end(look(loaded, lsn_of(to)))
    confirm("slot's name", loaded.postgres.slot, confirmed, sentences(loaded, skip))
    reached = run_to_end(advance_slot(loaded, skip.end))
    typer.echo(
        f"slot {loaded.postgres.slot} is at {format_lsn(reached)}; the next `cdcsync run` compares every table and goes"
        " on from there"
    )


@slot_app.command("drop")
def slot_drop(*, config: ConfigOption = None, confirmed: ConfirmOption = None) -> None:
    """Drop the slot. What is written afterwards is not seen; the next start copies every table anew."""
    from cdcsync.slot_life import forget_slot, look, sentences

    loaded = load(config)
    skip = run_to_end(look(loaded))
    confirm("slot's name", loaded.postgres.slot, confirmed, [*sentences(loaded, skip), "No slot is made in its place."])
    dropped = run_to_end(forget_slot(loaded))
    done = "is dropped" if dropped else "did not exist"
    typer.echo(f"slot {loaded.postgres.slot} {done}; the next start makes one and copies every table anew")


@slot_app.command("reset")
def slot_reset(*, config: ConfigOption = None, confirmed: ConfirmOption = None) -> None:
    """Drop and create the slot anew, and let every table be compared again at the next start."""
    from cdcsync.logs import set_up
    from cdcsync.slot_life import forget_slot, look, make_slot, sentences

    loaded = load(config)
    confirm("slot's name", loaded.postgres.slot, confirmed, sentences(loaded, run_to_end(look(loaded))))
    run_to_end(forget_slot(loaded))
    run_to_end(make_slot(loaded, set_up(loaded.log.level, loaded.log.format)))
    typer.echo(
        f"slot {loaded.postgres.slot} is new; the next `cdcsync run` copies every table anew and goes on from here"
    )


async def _examine(config: Config, standbys: list[str]) -> Health:
    from cdcsync.wal.connect import connect
    from cdcsync.wal.health import each_host, examine

    async with await connect(config.postgres.dsn) as connection:
        return await examine(connection, config.postgres.slot, [*each_host(config.postgres.dsn), *standbys])


def _fields(health: Health) -> dict[str, object]:
    import dataclasses

    fields = dataclasses.asdict(health.info)
    fields["holder"] = health.holder
    fields["synchronized_standby_slots"] = ", ".join(health.synchronized) or None
    return fields


def _nested(health: Health, notes: list[Note]) -> dict[str, object]:
    import dataclasses

    standbys = [
        {
            "host": copy.host,
            "ready": copy.ready,
            "exists": copy.info.exists if copy.info else None,
            "synced": copy.info.synced if copy.info else None,
            "temporary": copy.info.temporary if copy.info else None,
            "invalidation_reason": copy.info.invalidation_reason if copy.info else None,
            "error": copy.error,
        }
        for copy in health.copies
    ]
    return {"standbys": standbys, "health": [dataclasses.asdict(note) for note in notes]}
