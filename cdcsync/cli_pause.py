"""``cdcsync pause`` and ``resume``: a mapping or a whole CRM, beside a running daemon or while it is down."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from cdcsync.cli_base import ConfigOption, load

if TYPE_CHECKING:
    from cdcsync.config import Config
    from cdcsync.state import State

Kind: TypeAlias = Literal["crm", "mapping"]

NameArgument = Annotated[str, typer.Argument(help="The name of a mapping or of a CRM.")]
CrmOption = Annotated[bool, typer.Option("--crm", help="NAME is a CRM.")]
MapOption = Annotated[bool, typer.Option("--map", help="NAME is a mapping.")]


def pause(
    name: NameArgument,
    *,
    config: ConfigOption = None,
    crm: CrmOption = False,
    mapping: MapOption = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever looks at the status.")] = "",
) -> None:
    """Pause a mapping or a CRM: changes are kept, and not sent until it is resumed."""
    import time

    from cdcsync.entries import Pause
    from cdcsync.state import State
    from cdcsync.state_pauses import BY_HAND

    loaded = load(config)
    kind = _kind(loaded, name, crm=crm, mapping=mapping)
    state = State.beside(loaded.state.path, loaded.state.mirror)
    wanted = Pause(reason or BY_HAND, time.time(), "person", _who())
    new = state.pauses.pause_crm(name, wanted) if kind == "crm" else state.pauses.pause(name, wanted)
    state.close()
    flag = " --crm" if kind == "crm" and _is_mapping(loaded, name) else ""
    typer.echo(f"{name} {'is paused' if new else 'was paused already'}; `cdcsync resume {name}{flag}` lets it go on")


def resume(
    name: NameArgument, *, config: ConfigOption = None, crm: CrmOption = False, mapping: MapOption = False
) -> None:
    """Let a paused mapping or CRM go on; says how many rows go then."""
    from cdcsync.state import State

    loaded = load(config)
    kind = _kind(loaded, name, crm=crm, mapping=mapping)
    state = State.beside(loaded.state.path, loaded.state.mirror)
    was = state.pauses.resume_crm(name) if kind == "crm" else state.pauses.resume(name)
    typer.echo(f"{name} goes on: {_waiting(state, loaded, name, kind)}" if was else f"{name} was not paused")
    for line in _still_paused(state, loaded, name, kind):
        typer.echo(line)
    state.close()


def _kind(config: Config, name: str, *, crm: bool, mapping: bool) -> Kind:
    """Say what is meant by a name. Raises BadParameter for none, or for two without a word which."""
    found: list[Kind] = []
    if name in config.crm and not (mapping and not crm):
        found.append("crm")
    if _is_mapping(config, name) and not (crm and not mapping):
        found.append("mapping")
    if len(found) > 1:
        raise typer.BadParameter(f"{name!r} is a CRM and a mapping: say --crm or --map")
    if not found:
        maps = f"mappings: {', '.join(entry.name for entry in config.maps)}"
        raise typer.BadParameter(f"there is no such mapping or CRM as {name!r}; {maps}; CRMs: {', '.join(config.crm)}")
    return found[0]


def _is_mapping(config: Config, name: str) -> bool:
    return any(entry.name == name for entry in config.maps)


def _who() -> str:
    """Name the person: behind sudo, the one who called it."""
    import getpass
    import socket

    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _waiting(state: State, config: Config, name: str, kind: Kind) -> str:
    """Say what goes now, as the state file knows it."""
    from cdcsync.status import count

    names = [entry.name for entry in config.maps if (entry.crm if kind == "crm" else entry.name) == name]
    counts = [state.deletes.waiting(one) for one in names]
    rows, deletes = sum(rows for rows, _ in counts), sum(deletes for _, deletes in counts)
    return f"{count(rows, 'row')} waiting" + (f", of which {count(deletes, 'delete')}" if deletes else "")


def _still_paused(state: State, config: Config, name: str, kind: Kind) -> list[str]:
    """Say what is still in the way of what was resumed."""
    standing = state.pauses.standing()
    if kind == "crm":
        mine = [entry.name for entry in config.maps if entry.crm == name and entry.name in standing.maps]
        return [f"{one} is still paused: {standing.maps[one].reason}" for one in mine]
    crm = next(entry.crm for entry in config.maps if entry.name == name)
    return [f"but {crm} is paused: {standing.crms[crm].reason}"] if crm in standing.crms else []
