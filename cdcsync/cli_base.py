"""What the command modules share: the options that many commands have, reading the config, and running coroutines."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cdcsync.errors import SourceError, SourceUnavailableError

if TYPE_CHECKING:
    from cdcsync.config import Config

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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]


def load(path: Path | None) -> Config:
    """Read the config that ``--config`` or the environment names. Raises ConfigError."""
    from cdcsync import config

    return config.load(config.find_config(path, os.environ), os.environ)


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
