"""What the command modules share: the options that many commands have, reading the config, and running coroutines."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cdcsync.errors import SourceError, SourceUnavailableError

if TYPE_CHECKING:
    from cdcsync.config import Config
    from cdcsync.status import Snapshot

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Config file; else CDCSYNC_CONFIG, ./cdcsync.toml, /etc/cdcsync/cdcsync.toml.",
        show_default=False,
    ),
]
ConfirmOption = Annotated[str | None, typer.Option("--confirm", help="The slot's name, instead of asking for it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]


def load(path: Path | None) -> Config:
    """Read the config that ``--config`` or the environment names. Raises ConfigError."""
    from cdcsync import config

    return config.load(config.find_config(path, os.environ), os.environ)


def known_mapping(config: Config, mapping: str) -> None:
    """See that the config has a mapping. Raises BadParameter."""
    names = [entry.name for entry in config.maps]
    if mapping not in names:
        raise typer.BadParameter(f"there is no mapping {mapping!r}; there are: {', '.join(names)}")


def confirm(what: str, name: str, given: str | None, warning: Sequence[str]) -> None:
    """Say what is about to be done, and have ``name`` typed where it was not given. Raises BadParameter for another."""
    for line in warning:
        typer.echo(line, err=True)
    if given is None:
        typer.echo(f"Type the {what} ({name}) to go on: ", err=True, nl=False)
        given = sys.stdin.readline().strip()
        if not sys.stdin.isatty():
            typer.echo(err=True)
    if given != name:
        raise typer.BadParameter(f"{given!r} is not the {what} ({name}); nothing was done")


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; what PostgreSQL says without our having foreseen it becomes one of our errors."""
    import asyncio

    import psycopg

    try:
        return asyncio.run(work)
    except psycopg.OperationalError as error:
        raise SourceUnavailableError(f"PostgreSQL broke off: {' '.join(str(error).split())}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise SourceError(
            f"PostgreSQL refused: {' '.join(str(error).split())}", hint="`cdcsync check` says which rights are missing."
        ) from error


def snapshot_of(config: Config, *, ask_server: bool = True) -> Snapshot:
    """Ask the daemon, or else the state file and, with ``ask_server``, PostgreSQL. Raises StateError."""
    from cdcsync.report import SlotWatch, ask_daemon, stored_snapshot
    from cdcsync.state import State

    live = ask_daemon(config)
    if live is not None:
        return live
    mirror = config.state.mirror if active_elsewhere(config) is not None else None
    state = State.read(mirror or config.state.path)
    watch = SlotWatch(config.postgres)
    if ask_server:
        run_to_end(watch.look())
    snapshot = stored_snapshot(state, config, watch)
    state.close()
    return snapshot


def active_elsewhere(config: Config) -> str | None:
    """Say which daemon has the mirror while none has this machine's state file, which then is an older copy."""
    from cdcsync.claim import held_by

    place = config.state
    return held_by(place.mirror) if place.mirror is not None and held_by(place.path) is None else None


def lsn_of(text: str | None) -> int | None:
    """Read an LSN that was given as an option. Raises BadParameter."""
    from cdcsync.model import parse_lsn

    try:
        return None if text is None else parse_lsn(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not an LSN, such as 16/B374D848") from error
