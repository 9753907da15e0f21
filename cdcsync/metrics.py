"""A ``Snapshot`` as Prometheus text: ``cdcsync_`` names, base units, lag split into received, durable and applied.

Values are read from the snapshot at each scrape, so nothing is counted twice and nothing is kept between scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from cdcsync.status import LaneState, Snapshot

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# (name without prefix, attribute, help). An attribute that is None gives no sample.
DAEMON_GAUGES = (
    ("uptime_seconds", "uptime", "Time since the daemon started."),
    ("source_connected", "source.connected", "1 while the replication connection is up."),
    ("source_server_lsn_bytes", "source.server_lsn", "The server's WAL position."),
    ("source_received_lsn_bytes", "source.received_lsn", "The WAL position up to which we have read."),
    ("source_durable_lsn_bytes", "source.durable_lsn", "The WAL position confirmed to the server."),
    ("source_lag_bytes", "source.lag_bytes", "WAL that the server has written and is not durable here."),
    ("source_lag_seconds", "source.lag_seconds", "How far behind the server the reader is."),
    ("slot_retained_bytes", "source.retained_bytes", "WAL that the server keeps for the slot."),
)
LANE_GAUGES = (
    ("applied_lsn_bytes", "applied_lsn", "Everything before this WAL position is settled."),
    ("lag_seconds", "lag_seconds", "Age of the oldest commit that is not settled."),
    ("pending_rows", "pending", "Rows that are not settled."),
    ("in_flight_rows", "in_flight", "Pending rows that are being sent."),
    ("held_rows", "held", "Pending rows that wait for a parent."),
    ("rejected_rows", "rejected", "Rows that the CRM refused, parked."),
    ("unbalanced_changes", "missing", "Changes that the books cannot account for; alarm if it is not 0."),
    ("rate_limit_requests_per_second", "rate", "The pace that the limiter allows now."),
)
LANE_COUNTERS = (
    ("changes_in", "counters.changes_in", "Row changes taken in."),
    ("changes_applied", "counters.applied", "Row changes that the CRM holds."),
    ("changes_suppressed", "counters.suppressed", "Row changes that would have changed nothing."),
    ("changes_coalesced", "counters.coalesced", "Row changes folded into another of the same row."),
    ("changes_discarded", "counters.discarded", "Row changes that were refused and that a person gave up."),
    ("records_created", "counters.created", "Records created in the CRM."),
    ("records_deleted", "counters.deleted", "Records deleted or archived in the CRM."),
    ("requests", "counters.requests", "HTTP requests sent."),
    ("retries", "counters.retries", "Records sent again after a passing failure."),
)
QUOTA_GAUGES = (
    ("quota_limit_requests", "limit", "The CRM's quota."),
    ("quota_remaining_requests", "remaining", "What is left of the CRM's quota, for all its clients."),
    ("quota_budget_requests", "budget", "Our own share of the CRM's quota."),
    ("quota_used_requests", "ours", "Our own requests in the quota's window."),
    ("quota_window_seconds", "seconds", "The window that the quota is for."),
)
MAP_GAUGES = (
    ("map_pending_rows", "pending", "Rows of the mapping that are not settled."),
    ("map_rejected_rows", "rejected", "Rows of the mapping that are parked."),
    ("map_backfill_rows", "backfill.rows", "Rows that the mapping's last copy has read."),
    ("map_backfill_estimated_rows", "backfill.estimate", "Rows that the copy is expected to read."),
    ("map_backfill_left_seconds", "backfill.seconds_left", "Time that the rest of the copy will take."),
)
MAP_COUNTERS = (("map_changes_applied", "applied", "Row changes of the mapping that the CRM holds."),)

Table = Sequence[tuple[str, str, str]]
Labelled = Sequence[tuple[tuple[str, ...], Any]]


def to_prometheus(snapshot: Snapshot) -> bytes:
    """Render a snapshot in the text exposition format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        lanes = [((lane.name,), lane) for lane in self._snapshot.lanes]
        quotas = [((lane.name, quota.name), quota) for lane in self._snapshot.lanes for quota in lane.quotas]
        maps = [((entry.lane, entry.name), entry) for entry in self._snapshot.maps]
        yield InfoMetricFamily("cdcsync", "The running daemon.", {"version": self._snapshot.version})
        yield from _families(GaugeMetricFamily, DAEMON_GAUGES, (), [((), self._snapshot)])
        yield _states(lanes)
        yield _breakers(lanes)
        yield from _families(GaugeMetricFamily, LANE_GAUGES, ("crm",), lanes)
        yield from _families(CounterMetricFamily, LANE_COUNTERS, ("crm",), lanes)
        yield from _families(GaugeMetricFamily, QUOTA_GAUGES, ("crm", "quota"), quotas)
        yield from _families(GaugeMetricFamily, MAP_GAUGES, ("crm", "map"), maps)
        yield from _families(CounterMetricFamily, MAP_COUNTERS, ("crm", "map"), maps)


def _states(lanes: Labelled) -> Metric:
    family = GaugeMetricFamily("cdcsync_lane_state", "1 for the state that the lane is in.", labels=("crm", "state"))
    for labels, lane in lanes:
        for state in get_args(LaneState):
            family.add_metric((*labels, state), float(lane.state == state))
    return family


def _breakers(lanes: Labelled) -> Metric:
    text = "1 while nothing is sent after failures in a row."
    family = GaugeMetricFamily("cdcsync_breaker_open", text, labels=("crm",))
    for labels, lane in lanes:
        family.add_metric(labels, float(lane.breaker != "closed"))
    return family


def _families(
    kind: type[GaugeMetricFamily | CounterMetricFamily], table: Table, labels: Sequence[str], subjects: Labelled
) -> Iterable[Metric]:
    for name, attribute, text in table:
        family = kind(f"cdcsync_{name}", text, labels=labels)
        for values, subject in subjects:
            value = attrgetter(attribute)(subject)
            if value is not None:
                family.add_metric(values, float(value))
        yield family
