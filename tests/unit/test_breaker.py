"""The breaker and the sizes of batches, on a virtual clock."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.apply.breaker import IN_A_ROW, LADDER, Breaker, BreakerState
from cdcsync.apply.sizing import BatchSizes
from cdcsync.model import Op

NOW = 1_700_000_000.0


def opened(now: float = NOW) -> Breaker:
    """Give a breaker that has just opened."""
    breaker = Breaker()
    for _ in range(IN_A_ROW):
        assert breaker.take(now)
        breaker.refused(now)
    return breaker


def again(breaker: Breaker) -> Breaker:
    """Give what a restart makes of a breaker."""
    restored = Breaker()
    restored.restore(BreakerState(**json.loads(json.dumps(dataclasses.asdict(breaker.remember())))))
    return restored


@given(restarts=st.sets(st.integers(0, 12)), late=st.lists(st.floats(0, 50), min_size=12, max_size=12))
def test_the_ladder_is_followed(restarts: set[int], late: list[float]) -> None:
    """Five failures in a row, then one probe after 1, 2, 4, 8, 16, 30, 30 … minutes; restarts change nothing."""
    breaker, now = opened(), NOW
    for step in range(12):
        if step in restarts:
            breaker = again(breaker)
        rung = LADDER[min(step, len(LADDER) - 1)]
        assert breaker.until(now) == now + rung
        assert not breaker.take(now + rung - 0.001)
        now += rung + late[step]
        assert breaker.take(now)
        assert not breaker.take(now)
        breaker.refused(now)


@given(st.lists(st.sampled_from(["ok", "refused"]), max_size=40))
def test_it_opens_only_after_five_in_a_row(answers: list[str]) -> None:
    """An answer in between starts the count over."""
    breaker, row = Breaker(), 0
    for answer in answers:
        if answer == "ok":
            breaker.ok()
            row = 0
        else:
            breaker.refused(NOW)
            row += 1
        assert (breaker.word(NOW) == "open") == (row >= IN_A_ROW)


@given(
    st.lists(
        st.tuples(st.floats(0, 3_000), st.sampled_from(["take", "ok", "refused", "give back", "restart", "set back"])),
        max_size=60,
    )
)
def test_it_is_never_open_for_longer_than_its_rung(steps: list[tuple[float, str]]) -> None:
    """Whatever happens, with clocks set back too, a probe may go when the present time is over."""
    breaker, now = Breaker(), NOW
    for seconds, step in steps:
        now += -seconds if step == "set back" else seconds
        match step:
            case "take":
                breaker.take(now)
            case "ok":
                breaker.ok()
            case "refused":
                breaker.refused(now)
            case "give back":
                breaker.give_back()
            case "restart":
                breaker = again(breaker)
        until = breaker.until(now)
        assert until is None or until <= now + LADDER[-1]
        assert (breaker.word(now) == "closed") == (until is None)


def test_a_success_of_the_probe_closes_it_and_starts_the_ladder_over() -> None:
    """After an outage of an hour, the next one begins with a minute."""
    breaker, now = opened(), NOW
    for rung in LADDER[:3]:
        now += rung
        assert breaker.take(now)
        breaker.refused(now)
    now += LADDER[3]
    assert breaker.take(now)
    assert breaker.word(now) == "probing"
    breaker.ok()
    assert breaker.word(now) == "closed"
    for _ in range(IN_A_ROW):
        breaker.refused(now)
    assert breaker.until(now) == now + LADDER[0]


def test_failures_of_requests_that_were_under_way_do_not_lengthen_it() -> None:
    """Only the probe's failure leads to the next rung."""
    breaker = opened()
    breaker.refused(NOW + 30)
    assert breaker.until(NOW + 30) == NOW + LADDER[0]


def test_a_probe_that_was_not_sent_is_replaced() -> None:
    """There were no rows to send after all, or the process was stopped: another request goes as the probe."""
    breaker = opened()
    assert breaker.take(NOW + 60)
    breaker.give_back()
    assert breaker.take(NOW + 60)
    assert again(breaker).take(NOW + 60)


def test_batches_are_halved_and_grow_step_by_step() -> None:
    """Five batches that failed together halve the size once; ten full ones that pass bring it back."""
    sizes = BatchSizes({Op.UPSERT: 200, Op.DELETE: 100})
    for _ in range(5):
        sizes.shrink("Contact", Op.UPSERT, 200)
    assert sizes.size("Contact", Op.UPSERT) == 100
    assert (sizes.size("Contact", Op.DELETE), sizes.size("Account", Op.UPSERT)) == (100, 200)
    for _ in range(10):
        sizes.grow("Contact", Op.UPSERT, sizes.size("Contact", Op.UPSERT))
    assert sizes.size("Contact", Op.UPSERT) == 200


def test_a_batch_that_is_not_full_says_nothing_about_larger_ones() -> None:
    """Single rows that pass do not bring the large batches back that failed."""
    sizes = BatchSizes({Op.UPSERT: 200})
    sizes.shrink("Contact", Op.UPSERT, 200)
    sizes.grow("Contact", Op.UPSERT, 1)
    assert sizes.size("Contact", Op.UPSERT) == 100


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=80), st.integers(1, 200))
def test_sizes_keep_their_bounds_and_survive_a_restart(steps: list[tuple[bool, int]], limit: int) -> None:
    """From 1 to the adapter's limit, whatever fails; a limit that has become smaller holds."""
    sizes = BatchSizes({Op.UPSERT: limit})
    for shrinks, sent in steps:
        (sizes.shrink if shrinks else sizes.grow)("Order Item", Op.UPSERT, sent)
        assert 1 <= sizes.size("Order Item", Op.UPSERT) <= limit
    restored, smaller = BatchSizes({Op.UPSERT: limit}), BatchSizes({Op.UPSERT: 1})
    restored.restore(sizes.remember())
    smaller.restore(sizes.remember())
    assert restored.size("Order Item", Op.UPSERT) == sizes.size("Order Item", Op.UPSERT)
    assert smaller.size("Order Item", Op.UPSERT) == 1


@pytest.mark.parametrize("kept", [{"merge Contact": 5}, {"upsert Contact": 500}])
def test_what_does_not_fit_any_more_is_dropped(kept: dict[str, int]) -> None:
    """An operation that is not there, or a size that is no smaller than the limit."""
    sizes = BatchSizes({Op.UPSERT: 200})
    sizes.restore(kept)
    assert sizes.size("Contact", Op.UPSERT) == 200
