"""A ``Snapshot`` as one HTML page: no build step, nothing loaded from elsewhere, readable without scripts.

Everything that is not a literal of this module goes through ``html.escape``. Bars are SVG, since the page's content
security policy allows no inline styles. A script of a few lines swaps in a fresh copy; without it the page reloads.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterable, Sequence
from html import escape

from cdcsync.model import format_lsn
from cdcsync.status import (
    Job,
    LaneStatus,
    MapStatus,
    Quota,
    Snapshot,
    SourceStatus,
    breaker_words,
    clock_time,
    count,
    duration,
    size,
)

REFRESH_SECONDS = 2
BRANDS = {"salesforce": "Salesforce", "hubspot": "HubSpot"}

SCRIPT = """
setInterval(async () => {
  if (document.hidden || String(getSelection())) return;
  try {
    const answer = await fetch(location.href, {cache: "no-store"});
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    document.body.classList.remove("gone");
  } catch { document.body.classList.add("gone"); }
}, %d);
"""


def to_html(snapshot: Snapshot, nonce: str) -> str:
    """Render the page; ``nonce`` is the one that the Content-Security-Policy header names."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(snapshot.sentence)} · cdcsync</title>
<link rel="icon" href="data:,">
<noscript><meta http-equiv="refresh" content="{REFRESH_SECONDS * 5}"></noscript>
<style nonce="{escape(nonce)}">{_css()}</style>
</head>
<body>
<div id="gone" role="alert">The daemon does not answer; this is what it said last.</div>
<main>
{_main(snapshot)}
</main>
<script nonce="{escape(nonce)}">{SCRIPT % (REFRESH_SECONDS * 1000)}</script>
</body>
</html>
"""


@functools.cache
def _css() -> str:
    return importlib.resources.files("cdcsync").joinpath("page.css").read_text(encoding="utf-8")


def _main(snapshot: Snapshot) -> str:
    sections = [_header(snapshot), _flow(snapshot), _maps(snapshot.maps), _rejects(snapshot.maps)]
    sections += [_bars(snapshot), _jobs(snapshot.lanes), _events(snapshot), _footer(snapshot)]
    return "\n".join(section for section in sections if section)


def _header(snapshot: Snapshot) -> str:
    tone = "good" if snapshot.in_step and snapshot.balanced else "warn" if snapshot.ready else "bad"
    alarms = "".join(f'<p class="alarm">{escape(text)}</p>' for text in _alarms(snapshot))
    return (
        f'<header><h1><span class="mark {tone}"></span>{escape(snapshot.sentence)}</h1>'
        f'<p class="soft">{snapshot.generated:%Y-%m-%d %H:%M:%S} UTC</p>{alarms}</header>'
    )


def _alarms(snapshot: Snapshot) -> Iterable[str]:
    if snapshot.source.last_error and not snapshot.source.connected:
        yield f"Postgres: {snapshot.source.last_error}"
    for lane in snapshot.lanes:
        if not lane.balanced:
            yield f"{lane.name}: the books do not balance, {lane.missing:+,} changes are unaccounted for"
        if lane.breaker != "closed":
            yield f"{lane.name}: {breaker_words(lane)}"
        if lane.last_error and lane.state != "running":
            yield f"{lane.name}: {lane.last_error}"


def _flow(snapshot: Snapshot) -> str:
    lanes = "".join(_lane(lane) for lane in snapshot.lanes)
    behind = snapshot.source.lag_bytes
    arrow = _arrow("?" if behind is None else size(behind), "to read")
    return (
        f'<section class="flow" aria-label="Flow">{_source_box(snapshot.source)}{arrow}'
        f'<div class="box"><h3>Journal</h3><p class="small soft">durable up to</p>'
        f'<code>{format_lsn(snapshot.source.durable_lsn)}</code></div><div class="lanes">{lanes}</div></section>'
    )


def _source_box(source: SourceStatus) -> str:
    tone, word = ("good", "connected") if source.connected else ("bad", "not connected")
    edge = "" if source.connected else " bad-edge"
    return (
        f'<div class="box{edge}"><h3>Postgres</h3><p><span class="pill {tone}">{word}</span></p>'
        f'<p class="small soft">slot {escape(source.slot)}</p></div>'
    )


def _lane(lane: LaneStatus) -> str:
    books = lane.counters
    saved = f"{books.coalesced:,} folded, {books.suppressed:,} no-ops"
    return (
        f'<div class="lane">{_arrow(f"{books.changes_in:,}", "changes in")}'
        f'<div class="box"><h3>{escape(lane.name)} lane</h3><p><b>{lane.pending:,}</b> pending</p>'
        f'<p class="small soft">{lane.in_flight:,} being sent, {lane.held:,} wait for parents</p>'
        f'<p class="small soft">saved: {saved}</p></div>'
        f"{_arrow(f'{books.applied:,}', 'applied')}{_crm_box(lane)}</div>"
    )


def _crm_box(lane: LaneStatus) -> str:
    tone = {"running": "good", "stopped": "bad"}.get(lane.state, "warn")
    edge = {"good": "", "warn": " warn-edge", "bad": " bad-edge"}[tone]
    rejected = f'<p class="small bad">{lane.rejected:,} rejected</p>' if lane.rejected else ""
    return (
        f'<div class="box{edge}"><h3>{escape(BRANDS.get(lane.kind, lane.kind))}</h3>'
        f'<p><span class="pill {tone}">{lane.state}</span></p>'
        f'<p class="small soft">{duration(lane.lag_seconds)} behind</p>'
        f'<p class="small soft">{count(lane.counters.requests, "request")}</p>{rejected}</div>'
    )


def _arrow(figure: str, caption: str) -> str:
    return f'<div class="arrow"><b>{escape(figure)}</b> {escape(caption)}</div>'


def _maps(maps: Sequence[MapStatus]) -> str:
    header = ("Mapping", "Table", "To", "#Pending", "#Rejected", "#Applied", "Copy")
    rows = [
        (entry.name, entry.table, entry.target, entry.pending, entry.rejected, entry.applied, _copied(entry))
        for entry in maps
    ]
    return _table("Mappings", header, rows)


def _copied(entry: MapStatus) -> str:
    copy = entry.backfill
    if copy.state != "copying":
        return copy.state if copy.waits_for is None else f"{copy.state} for {copy.waits_for}"
    words = [] if copy.fraction is None else [f"{copy.fraction:.0%}"]
    words.append(f"{copy.rows:,} rows")
    if copy.seconds_left is not None:
        words.append(f"{duration(copy.seconds_left)} left")
    return ", ".join(words)


def _rejects(maps: Sequence[MapStatus]) -> str:
    header = ("Rejected in", "Code", "Field", "#Rows")
    rows = [(entry.name, group.code, group.field or "", group.rows) for entry in maps for group in entry.rejects]
    return _table("Rejects by reason", header, rows)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    """Lay out a table; a title that starts with ``#`` is of a column of numbers."""
    if not rows:
        return ""
    head = "".join(map(_title, header))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _title(title: str) -> str:
    numeric = ' class="n"' if title.startswith("#") else ""
    return f'<th scope="col"{numeric}>{escape(title.removeprefix("#"))}</th>'


def _cell(value: str | int) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="n{"" if value else " zero"}">{value:,}</td>'


def _bars(snapshot: Snapshot) -> str:
    bars = [_slot_bar(snapshot.source)]
    bars += [_quota_bar(lane, quota) for lane in snapshot.lanes for quota in lane.quotas]
    shown = "".join(bars)
    return f'<section><h2>Head-room</h2><div class="bars">{shown}</div></section>' if shown else ""


def _slot_bar(source: SourceStatus) -> str:
    if source.retained_bytes is None:
        return ""
    limit = source.warn_bytes or max(source.retained_bytes, 1)
    of = f" of {size(source.warn_bytes)} before the alarm" if source.warn_bytes else ""
    words = f"{size(source.retained_bytes)}{of}, {source.wal_status or 'status unknown'}"
    return _bar("WAL kept by the slot", words, source.retained_bytes / limit)


def _quota_bar(lane: LaneStatus, quota: Quota) -> str:
    share = None if quota.budget is None or not quota.limit else quota.budget / quota.limit
    ours = "" if quota.budget is None else f", our share {quota.budget:,}"
    ours += "" if quota.ours is None else f", of it used {quota.ours:,}"
    if quota.ours is not None and lane.quota_lasts_until is not None:
        ours += f", lasts until {clock_time(lane.quota_lasts_until)}"
    words = f"{quota.used:,} of {quota.limit:,} in {duration(quota.seconds)}{ours}"
    return _bar(f"{lane.name} {quota.name} quota", words, quota.used / max(quota.limit, 1), share)


def _bar(title: str, words: str, fraction: float, mark: float | None = None) -> str:
    tone = "over" if fraction > (1.0 if mark is None else mark) else ""
    line = "" if mark is None else f'<line x1="{mark * 100:.1f}" x2="{mark * 100:.1f}" y1="0" y2="1"/>'
    return (
        f'<div class="bar"><p><span>{escape(title)}</span><span class="soft">{escape(words)}</span></p>'
        f'<svg viewBox="0 0 100 1" preserveAspectRatio="none" role="img" aria-label="{escape(words)}">'
        f'<rect class="{tone}" width="{min(fraction, 1.0) * 100:.1f}" height="1"/>{line}</svg></div>'
    )


def _jobs(lanes: Sequence[LaneStatus]) -> str:
    def row(lane: LaneStatus, job: Job) -> tuple[str | int, ...]:
        return (lane.name, job.id, f"{job.op} {job.object}", job.state, job.records, job.processed)

    header = ("CRM", "Job", "Work", "State", "#Records", "#Processed")
    return _table("Bulk jobs", header, [row(lane, job) for lane in lanes for job in lane.jobs])


def _events(snapshot: Snapshot) -> str:
    if not snapshot.events:
        return ""
    tones = {"info": "soft", "warning": "warn", "error": "bad"}
    lines = "".join(
        f'<li><span class="small {tones[event.level]}">{event.time:%H:%M:%S}</span> {escape(event.text)}</li>'
        for event in snapshot.events
    )
    return f'<section><h2>Recent events</h2><div class="scroll"><ol>{lines}</ol></div></section>'


def _footer(snapshot: Snapshot) -> str:
    pid = "" if snapshot.pid is None else f", process {snapshot.pid}"
    return (
        f"<footer>cdcsync {escape(snapshot.version)}{pid}, up {duration(snapshot.uptime)} · "
        '<a href="/status.json">status.json</a> · <a href="/metrics">metrics</a></footer>'
    )
