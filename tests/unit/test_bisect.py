"""The record that a whole request is refused for is found by halving."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.apply.bisect import isolate
from cdcsync.errors import BatchRejectedError, DestinationError, FatalError, RateLimitedError, TransientError
from cdcsync.model import Applied, Batch, Link, Op, Outcome, Record, Rejected, Retry, Target


class Picky:
    """A CRM that refuses a whole request if it holds one of the bad keys; the n-th request fails with an error."""

    def __init__(self, bad: set[int], failures: dict[int, DestinationError] | None = None) -> None:
        self.bad = bad
        self.failures = failures or {}
        self.requests: list[tuple[Record, ...]] = []
        self.written: list[str] = []

    def send(self, batch: Batch) -> list[Outcome]:
        self.requests.append(batch.records)
        if len(self.requests) in self.failures:
            raise self.failures[len(self.requests)]
        if any(int(record.key) in self.bad for record in batch.records):
            raise BatchRejectedError("no", reason="BAD", field="f")
        self.written += [record.key for record in batch.records]
        return [Applied(record.key) for record in batch.records]


def batch(size: int) -> Batch:
    """Make a batch whose keys are numbers; each record has a link of its own."""
    records = (Record(str(number), links=(Link("o", "t", str(number)),)) for number in range(size))
    return Batch(Target("o", "k"), Op.UPSERT, tuple(records))


@given(st.integers(0, 200), st.data())
def test_the_bad_records_alone_are_rejected(size: int, data: st.DataObject) -> None:
    """Every other record is written once, in order; each bad one costs two requests a level at most."""
    bad = data.draw(st.sets(st.integers(0, max(0, size - 1)), max_size=5)) if size else set()
    crm = Picky(bad)
    outcomes = isolate(crm.send, batch(size))
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [number in bad for number in range(size)]
    assert crm.written == [str(number) for number in range(size) if number not in bad]
    assert len(crm.requests) <= bool(size) + 2 * len(bad) * size.bit_length()


def test_a_rejection_keeps_the_words_and_a_part_its_records() -> None:
    """Code, words and field are the refusal's; a record keeps its links when its part is sent on its own."""
    crm = Picky({1})
    assert isolate(crm.send, batch(2)) == [Applied("0"), Rejected("BAD", "no", "f")]
    assert crm.requests[1] == batch(2).records[:1]


@pytest.mark.parametrize("error", [TransientError("t"), RateLimitedError("r"), FatalError("f")])
def test_an_error_before_any_answer_is_raised(error: DestinationError) -> None:
    """Nothing was done, whether the request was the first or the first half of one that was refused."""
    for number in (1, 2):
        with pytest.raises(type(error)):
            isolate(Picky({0}, {number: error}).send, batch(4))


@pytest.mark.parametrize("error", [TransientError("t", shrink=True), RateLimitedError("r"), FatalError("f")])
def test_an_error_after_an_answer_leaves_the_answers(error: DestinationError) -> None:
    """What was answered counts; the rest may be sent again, and no more requests follow the error."""
    crm = Picky({0}, {4: error})
    rest = [Retry(error.code, error.message, shrink=isinstance(error, TransientError))] * 3
    assert isolate(crm.send, batch(4)) == [Rejected("BAD", "no", "f"), *rest]
    assert len(crm.requests) == 4
