"""The record that a whole request was refused for, found by halving. Pure; one piece of code for all adapters.

A CRM that refuses a request for its content does not say which record is to blame, and has done nothing. Each half of
the batch is then sent on its own, until the record stands alone: some ``2 * log2(n)`` more requests for each such one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cdcsync.errors import BatchRejectedError, DestinationError, TransientError
from cdcsync.model import Batch, Outcome, Rejected, Retry


def isolate(send: Callable[[Batch], list[Outcome]], batch: Batch) -> list[Outcome]:
    """Send a batch, in parts where it is refused whole; outcomes are in the order of its records.

    ``send`` raises BatchRejectedError only if it has done nothing. An error before any part was answered is raised;
    after that the answers count, and what was not answered may be sent again.
    """
    outcomes: list[Outcome] = []
    parts = [batch] if batch.records else []
    while parts:
        part = parts.pop()
        try:
            outcomes += send(part)
        except BatchRejectedError as refusal:
            if len(part.records) == 1:
                outcomes.append(Rejected(refusal.reason, refusal.message, refusal.field))
            else:
                parts += reversed(_halves(part))
        except DestinationError as error:
            if not outcomes:
                raise
            again = Retry(error.code, error.message, shrink=isinstance(error, TransientError) and error.shrink)
            return [*outcomes, *[again] * (len(batch.records) - len(outcomes))]
    return outcomes


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    middle = len(batch.records) // 2
    return replace(batch, records=batch.records[:middle]), replace(batch, records=batch.records[middle:])
