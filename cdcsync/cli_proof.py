"""``cdcsync lag`` and ``cdcsync wait``: how far the CRMs are, for monitors and scripts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cdcsync.cli_base import ConfigOption, JsonOption, load, lsn_of, run_to_end, snapshot_of
from cdcsync.errors import EXIT_NOT_FINE, EXIT_OK, EXIT_TRY_LATER, SourceUnavailableError, StateAbsentError

if TYPE_CHECKING:
    from cdcsync.config import Config
    from cdcsync.proof import Proof
    from cdcsync.status import LaneStatus, SourceStatus

POLL_SECONDS: Final = 0.2


def lag(
    *,
    config: ConfigOption = None,
    fail_above: Annotated[
        str | None, typer.Option("--fail-above", help='End with 1 if a CRM is further behind: "5m", or "1GB".')
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print one line per CRM: how far it is behind, in bytes, seconds and rows."""
    from cdcsync.status_json import lag_json
    from cdcsync.status_text import lag_text

    limits = _limits(fail_above)
    snapshot = snapshot_of(load(config))
    for lane in snapshot.lanes:
        typer.echo(lag_json(snapshot.source, lane) if json else lag_text(snapshot.source, lane))
    if snapshot.source.server_lsn is None:
        raise SourceUnavailableError(snapshot.source.last_error or "PostgreSQL has not been asked yet")
    above = [lane.name for lane in snapshot.lanes if _is_above(snapshot.source, lane, *limits)]
    if above:
        typer.echo(f"cdcsync: further behind than {fail_above}: {', '.join(above)}", err=True)
        raise typer.Exit(EXIT_NOT_FINE)


def wait(
    *,
    config: ConfigOption = None,
    lsn: Annotated[str | None, typer.Option(help="An LSN (16/B374D848); else the server's present position.")] = None,
    crm: Annotated[list[str] | None, typer.Option(help="Only this CRM; may be repeated.")] = None,
    timeout: Annotated[str, typer.Option(help='How long to wait: "500ms", "60s", "5m".')] = "60s",
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 if rows are excepted, because parked.")] = False,
    json: JsonOption = False,
) -> None:
    """Wait until the CRMs are current as of an LSN: what was committed before is there, parked rows aside."""
    from cdcsync.status_json import wait_json

    loaded = load(config)
    names = _known(loaded, crm)
    seconds, target = _seconds(timeout), _target(loaded, lsn)
    proofs = _wait(loaded, names, target, seconds)
    for proof in proofs:
        typer.echo(wait_json(proof, target) if json else f"{proof.crm} is {proof.sentence}")
        if proof.excepted:
            typer.echo(f"cdcsync: {proof.crm}: except {proof.exceptions}; `cdcsync status` shows why", err=True)
    raise typer.Exit(_verdict(proofs, target, timeout, strict=strict))


def _wait(config: Config, names: Sequence[str], target: int, seconds: float) -> list[Proof]:
    """Look again and again until all are current, or that cannot come true, or time is up; returns the last look.

    Raises StateAbsentError if there is nothing to look at by then.
    """
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() >= deadline
        try:
            proofs = _look(config, names)
        except StateAbsentError:  # the daemon may be about to start
            if late:
                raise
        else:
            settled = [proof for proof in proofs if proof.covers(target) or proof.unaccounted]
            if late or len(settled) == len(names):
                return proofs
        time.sleep(POLL_SECONDS)


def _look(config: Config, names: Sequence[str]) -> list[Proof]:
    from cdcsync.proof import prove

    snapshot = snapshot_of(config, ask_server=False)
    return [prove(snapshot, lane) for lane in snapshot.lanes if lane.name in names]


def _verdict(proofs: Sequence[Proof], target: int, timeout: str, *, strict: bool) -> int:
    from cdcsync.model import format_lsn

    if any(proof.unaccounted for proof in proofs):
        return EXIT_NOT_FINE
    behind = [proof for proof in proofs if not proof.covers(target)]
    for proof in behind:
        typer.echo(
            f"cdcsync: {proof.crm} is not current as of {format_lsn(target)} after {timeout}: {proof.obstacles}",
            err=True,
        )
    if behind:
        return EXIT_TRY_LATER
    return EXIT_NOT_FINE if strict and any(proof.excepted for proof in proofs) else EXIT_OK


def _target(config: Config, lsn: str | None) -> int:
    from cdcsync.report import SlotWatch

    given = lsn_of(lsn)
    return run_to_end(SlotWatch(config.postgres).current_lsn()) if given is None else given


def _known(config: Config, names: Sequence[str] | None) -> list[str]:
    mapped = list(dict.fromkeys(entry.crm for entry in config.maps))
    for name in names or ():
        if name not in mapped:
            raise typer.BadParameter(f"there is no mapping to a CRM {name!r}; there are: {', '.join(mapped)}")
    return list(names or mapped)


def _seconds(text: str) -> float:
    from cdcsync.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _limits(text: str | None) -> tuple[float | None, int | None]:
    """Read a limit in seconds, or one in bytes."""
    from cdcsync.config.units import parse_duration, parse_size

    if text is None:
        return None, None
    try:
        return parse_duration(text), None
    except ValueError:
        pass
    try:
        return None, parse_size(text)
    except ValueError as error:
        raise typer.BadParameter('expected a duration such as "5m", or a size such as "1GB"') from error


def _is_above(source: SourceStatus, lane: LaneStatus, seconds: float | None, size: int | None) -> bool:
    """Whether a CRM is further behind; one of which that is not known is."""
    if seconds is not None:
        behind = source.seconds_behind(lane)
        return behind is None or behind > seconds
    if size is not None:
        return (source.bytes_behind(lane) or 0) > size
    return False
