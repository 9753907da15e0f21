"""What a CRM adapter is: a ``Destination``, small enough that a new CRM is one file.

Adapters are blocking (the vendor clients are); the lane calls them from its own threads, several at a time. An
adapter holds no queue, no retry and no clock of its own: it sends what it is given once, and translates the answer:

* one ``model.Outcome`` per record, in the order of the batch's records, when the CRM looked at them one by one;
* ``TransientError``, ``RateLimitedError`` or ``FatalError`` when the request as a whole failed. A request that is
  refused for its content is halved until the bad record stands alone (``bisect.isolate``).

Anything else that escapes is a bug, and ends the process. No answer for a passing reason is ever ``Rejected``, and no
fault of the mapping or the CRM's setup: that is a ``FatalError``, even if other records of the request were written.

What a record says means the same on every path and for every operation, whatever fields its neighbours have:

* a field that is not in ``Record.fields`` is left alone, and when the record is created it gets the CRM's default;
* ``None`` and the empty text leave the field empty (no CRM here tells them apart), all else is written.

An adapter whose format cannot say one of these for some record sends that record another way.

An update creates nothing, since it carries only part of a row, and never touches another row's record:

* where an id means one record for ever, it goes by the id, and gives the key back to a record that somebody took it
  from;
* where the ids of merged records all name the survivor (``Limits.ids_merge``), one that is not ``rekeyed`` goes by the
  key, and what has another key by now is ``Missing``. One that is, and a delete, can only go by the id: the lane asks
  just before whether a record has the row's former key, and under which id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cdcsync.model import Batch, JobStatus, Op, Outcome, Target, Window


class Gate(Protocol):
    """Stands before every HTTP request of an adapter; implemented by the lane's limiter, thread-safe."""

    def wait(self, scope: str = "burst") -> None:
        """Block until one request may be sent."""

    def seen(self, windows: Sequence[Window]) -> None:
        """Report the quotas that an answer's headers showed."""

    def refused(self, scope: str, retry_after: float | None) -> None:
        """Report a refusal for rate or quota (before raising RateLimitedError)."""

    def spent(self, scope: str, units: int) -> None:
        """Report the use of a daily quota that is not one of requests, and that no header shows (``bulk``)."""


class OpenGate:
    """A gate that lets everything pass, for ``check`` and other single requests."""

    def wait(self, scope: str = "burst") -> None:
        """Pass."""

    def seen(self, windows: Sequence[Window]) -> None:
        """Ignore."""

    def refused(self, scope: str, retry_after: float | None) -> None:
        """Ignore."""

    def spent(self, scope: str, units: int) -> None:
        """Ignore."""


@dataclass(frozen=True, slots=True)
class Limits:
    """An adapter's sizes as data. ``batch`` by operation; ``bulk_from`` is None where there is no bulk path.

    ``bulk_records`` and ``bulk_bytes`` (of the rows as PostgreSQL sent them) bound a job, all of which is in memory.
    ``ids_merge``: when people merge records, the ids of those that went name the one that is left.
    """

    batch: Mapping[Op, int]
    max_parallel: int
    bulk_from: int | None = None
    bulk_records: int = 20_000
    bulk_bytes: int = 12 << 20
    ids_merge: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a mapping needs of an object, for ``Destination.check``.

    ``links`` are (to_object, type) pairs; ``refs`` give the (object, key field) that a field refers to;
    ``only_if_empty`` are the fields that ``read`` will be asked for.
    """

    mapping: str
    target: Target
    fields: Mapping[str, str]  # CRM field → its source, for messages
    links: Sequence[tuple[str, str]] = ()
    deletes: bool = True
    refs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    only_if_empty: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``cdcsync check``: a tick or a cross, and the remedy."""

    subject: str
    ok: bool
    message: str
    hint: str = ""


class Destination(Protocol):
    """One CRM. All methods block; all but ``open`` and ``close`` may run in several threads at once."""

    name: str
    limits: Limits

    def open(self) -> None:
        """Log in. Raises CredentialsError, FatalError or TransientError."""

    def close(self) -> None:
        """Drop connections."""

    def check(self, wanted: Sequence[Wanted]) -> list[Finding]:
        """Compare what the mappings need with the CRM's own description of its objects. Writes nothing."""

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Look up which of ``keys`` exist, strongly consistently; returns external key → CRM id. Any number of keys."""

    def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read fields by CRM id, strongly consistently; returns CRM id → field → value as the CRM prints it.

        An empty field's value is None. Any number of ids; a record that is not there (any more) is left out.
        """

    def send(self, batch: Batch) -> list[Outcome]:
        """Write one batch of at most ``limits.batch[batch.op]`` records. Does not raise BatchRejectedError."""


class BulkDestination(Destination, Protocol):
    """A CRM with asynchronous bulk jobs. The lane journals each step before it takes it.

    Every method may be repeated after a crash: a step that was taken already is recognised and is no error. Jobs carry
    any ``Op``; ``bulk_upload`` alone raises BatchRejectedError.
    """

    def bulk_create(self, target: Target, op: Op) -> str:
        """Create a job and return its CRM id."""

    def bulk_find(self, target: Target, op: Op, since: float) -> str | None:
        """Find an open job of ours, created at or after ``since`` (Unix time) by a step whose answer was lost."""

    def bulk_upload(self, job: str, batch: Batch) -> None:
        """Upload the records. Raises BatchRejectedError if they can never be uploaded so; ``send`` may take them."""

    def bulk_close(self, job: str) -> None:
        """Say that the upload is complete; the CRM starts to work."""

    def bulk_abort(self, job: str) -> None:
        """Give up a job that was not closed, so that nobody takes it for one to go on with."""

    def bulk_poll(self, job: str) -> JobStatus:
        """Ask for the job's state."""

    def bulk_results(self, job: str, batch: Batch) -> list[Outcome]:
        """Read the results of a finished job, matched by key (or id); a record that was not processed is ``Retry``."""
