"""What every CRM adapter must do: one suite for all, each with its vendor's client against its sandbox."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from cdcsync.apply.base import OpenGate, Wanted
from cdcsync.errors import CredentialsError, DestinationError, RateLimitedError, TransientError
from cdcsync.model import ABSENT, Absent, Applied, Batch, Missing, Op, Record, Rejected, Target
from cdcsync.sandbox.server import SandboxThread
from tests.crm.conformance import Adapter, Subject, ids
from tests.crm.conformance_hubspot import HUBSPOT
from tests.crm.conformance_salesforce import SALESFORCE

ADAPTERS = (SALESFORCE, HUBSPOT)

WAYS = [
    pytest.param(SALESFORCE, False, id="salesforce"),
    pytest.param(SALESFORCE, True, id="salesforce-bulk"),
    pytest.param(HUBSPOT, False, id="hubspot"),
]
"""Each adapter with each of its paths."""
on_every_path = pytest.mark.parametrize(("subject", "bulk"), WAYS, indirect=["subject"])

STATES: dict[str, str | Absent | None] = {"value": "new", "odd": "#N/A", "empty": "", "null": None, "absent": ABSENT}
"""What a record may say of a field; the odd value is one that CSV takes for null."""

ODD_KEYS = ("plain", "it's", "back\\slash", "100%", "a&b=c", "a,b", "sp ace", 'quo"te', "Zoë ☃ 𝄞", "x/y?z#+", "(1)")


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.crm)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Give an open adapter of each CRM, with a fresh sandbox."""
    adapter: Adapter = request.param
    with SandboxThread(adapter.crm, adapter.settings) as sandbox:
        opened = Subject(adapter, sandbox)
        yield opened
        opened.close()


def test_create_then_update(subject: Subject) -> None:
    """An upsert says whether it created; the second one changes the same record."""
    (first,) = subject.upsert(subject.record("1", text="Ada"))
    assert isinstance(first, Applied)
    assert first.created
    (second,) = subject.upsert(subject.record("1", text="Grace"))
    assert second == Applied(first.crm_id, created=False)
    assert subject.stored()["1"]["id"] == first.crm_id
    assert subject.value("1", subject.adapter.text) == "Grace"


def test_none_and_the_empty_text_clear(subject: Subject) -> None:
    """NULL clears a field; so does the empty text."""
    subject.upsert(subject.record("1", text="Ada", other="Maths"))
    ids(subject.upsert(subject.record("1", text=None, other="")))
    assert subject.value("1", subject.adapter.text) is None
    assert subject.value("1", subject.adapter.other) is None


@on_every_path
def test_a_record_means_the_same_on_every_path_whatever_its_neighbours_have(
    subject: Subject,
    bulk: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """All states of two fields, in one batch, on records that are new and that exist: nothing absent is cleared."""
    pairs = list(itertools.product(STATES, STATES))
    names = {"text": subject.adapter.text, "other": subject.adapter.other}

    def record(kind: str, pair: tuple[str, str], crm_id: str | None = None) -> Record:
        said = {name: STATES[state] for name, state in zip(names, pair, strict=True)}
        fields = {name: value for name, value in said.items() if not isinstance(value, Absent)}
        return subject.record(f"{kind} {' '.join(pair)}", crm_id=crm_id, **fields)

    both = {"text": "t", "other": "o"}
    before = [subject.record(f"{kind} {' '.join(pair)}", **both) for kind in ("old", "id") for pair in pairs]
    crm_ids = ids(subject.upsert(*before))[len(pairs) :]
    written = subject.deliver(Op.UPSERT, *(record(kind, pair) for pair in pairs for kind in ("new", "old")), bulk=bulk)
    assert [outcome.created for outcome in written if isinstance(outcome, Applied)] == [True, False] * len(pairs)
    updates = [record("id", pair, crm_id) for pair, crm_id in zip(pairs, crm_ids, strict=True)]
    assert ids(subject.deliver(Op.UPDATE, *updates, bulk=bulk)) == crm_ids
    stored = subject.stored()
    for kind, pair in itertools.product(("new", "old", "id"), pairs):
        for name, state in zip(names, pair, strict=True):
            there = None if kind == "new" else both[name]
            held = stored[f"{kind} {' '.join(pair)}"]["fields"].get(names[name]) or None
            assert held == (there if state == "absent" else STATES[state] or None), (kind, pair, name)


def test_what_is_absent_stays(subject: Subject) -> None:
    """A field that is not in the record keeps its value."""
    subject.upsert(subject.record("1", text="Ada", other="Maths"))
    ids(subject.upsert(subject.record("1", text="Grace")))
    assert subject.value("1", subject.adapter.other) == "Maths"


def test_an_upsert_may_be_repeated(subject: Subject) -> None:
    """The same upsert twice gives the same record."""
    record = subject.record("1", text="Ada")
    assert ids(subject.upsert(record)) == ids(subject.upsert(record))
    assert len(subject.stored()) == 1


def test_texts_arrive_letter_by_letter(subject: Subject) -> None:
    """Quotes, separators, other scripts and line breaks are none of our business."""
    text = "a\"b'c\\d,e;f\tg\nh & <i> {j} 50% Zoë ☃ 𝄞 \u2028x #N/A"
    ids(subject.upsert(subject.record("1", text="x", other=text)))
    assert subject.value("1", subject.adapter.other) == text


@on_every_path
def test_update_by_id_changes_the_key_of_the_same_record(subject: Subject, bulk: bool) -> None:  # noqa: FBT001 - as above
    """A key change keeps the record and its id, and so does a key that somebody changed in the CRM."""
    (crm_id,) = subject.made("old")
    for key in ("new", "new", "somebody's"):
        subject.admin(
            "PATCH", f"/records/{subject.adapter.target.object}/{crm_id}", {subject.adapter.target.key_field: key}
        )
        update = subject.rekeyed("new", crm_id, key)
        assert ids(subject.deliver(Op.UPDATE, update, bulk=bulk)) == [crm_id]
        assert list(subject.stored()) == ["new"]
        assert subject.stored()["new"]["id"] == crm_id
        assert subject.value("new", subject.adapter.text) == key


@on_every_path
def test_an_update_of_a_record_that_is_not_there_says_so(subject: Subject, bulk: bool) -> None:  # noqa: FBT001 - as above
    """Deleted ids and ids that never were are missing; the others are updated."""
    here, gone = subject.made("1", "2")
    subject.send(Op.DELETE, Record("2", crm_id=gone))
    outcomes = subject.deliver(
        Op.UPDATE,
        subject.record("2", crm_id=gone, text="x"),
        subject.record("1", crm_id=here, text="y"),
        subject.record("3", crm_id=subject.adapter.unknown_id, text="z"),
        bulk=bulk,
    )
    assert isinstance(outcomes[0], Missing)
    assert outcomes[1] == Applied(here)
    assert isinstance(outcomes[2], Missing)
    assert list(subject.stored()) == ["1"]


@on_every_path
def test_an_update_tells_which_records_are_there(subject: Subject, bulk: bool) -> None:  # noqa: FBT001 - as above
    """Records whose key changes and others in one batch: each is answered in its place, and none is made."""
    first, second, third = subject.made("1", "2", "3")
    subject.send(Op.DELETE, Record("3", crm_id=third))
    outcomes = subject.deliver(
        Op.UPDATE,
        subject.record("1", crm_id=first, text="x"),
        subject.rekeyed("4b", subject.adapter.unknown_id, "x"),
        subject.rekeyed("2b", second, "x"),
        subject.record("3", crm_id=third, text="x"),
        bulk=bulk,
    )
    assert outcomes[::2] == [Applied(first), Applied(second)]
    assert all(isinstance(outcome, Missing) for outcome in outcomes[1::2]), outcomes
    assert {key: entry["id"] for key, entry in subject.stored().items()} == {"1": first, "2b": second}
    assert [subject.value(key, subject.adapter.text) for key in ("1", "2b")] == ["x", "x"]


@on_every_path
def test_an_update_of_a_record_that_somebody_gave_another_key(subject: Subject, bulk: bool) -> None:  # noqa: FBT001
    """It is given its key back where its id tells that it is the row's; else it is missing, and left alone."""
    target = subject.adapter.target
    (crm_id,) = subject.made("1")
    subject.admin("PATCH", f"/records/{target.object}/{crm_id}", {target.key_field: "somebody's"})
    (outcome,) = subject.deliver(Op.UPDATE, subject.record("1", crm_id=crm_id, text="x"), bulk=bulk)
    if subject.crm.limits.ids_merge:
        assert isinstance(outcome, Missing)
        assert (list(subject.stored()), subject.value("somebody's", subject.adapter.text)) == (["somebody's"], "made")
    else:
        assert outcome == Applied(crm_id)
        assert (list(subject.stored()), subject.value("1", subject.adapter.text)) == (["1"], "x")


def test_delete_and_delete_again(subject: Subject) -> None:
    """A record that is gone is deleted, whoever deleted it, and whether it ever was."""
    first, second = subject.made("1", "2")
    subject.admin("DELETE", f"/records/{subject.adapter.target.object}/{first}")
    records = [Record("1", crm_id=first), Record("2", crm_id=second), Record("3", crm_id=subject.adapter.unknown_id)]
    for _ in range(2):
        outcomes = subject.send(Op.DELETE, *records)
        assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
    assert subject.stored() == {}


def test_an_upsert_after_a_delete_makes_a_new_record(subject: Subject) -> None:
    """The key of a deleted record is free."""
    (first,) = subject.made("1")
    subject.send(Op.DELETE, Record("1", crm_id=first))
    (outcome,) = subject.upsert(subject.record("1", text="again"))
    assert isinstance(outcome, Applied)
    assert outcome.created
    assert outcome.crm_id != first


def test_find_knows_exactly_the_keys_that_exist(subject: Subject) -> None:
    """Any characters, repeated keys and the empty one may be asked for; case matters."""
    expected = dict(zip(ODD_KEYS, subject.made(*ODD_KEYS), strict=True))
    asked = [*ODD_KEYS, *ODD_KEYS, "PLAIN", "nobody", ""]
    assert subject.crm.find(subject.adapter.target, asked) == expected
    assert subject.crm.find(subject.adapter.target, []) == {}


def test_find_takes_any_number_of_keys(subject: Subject) -> None:
    """More keys than one request of any kind can carry."""
    (crm_id,) = subject.made("key number 1234")
    asked = [f"key number {number}" for number in range(1500)]
    assert subject.crm.find(subject.adapter.target, asked) == {"key number 1234": crm_id}


def test_read_tells_what_is_empty(subject: Subject) -> None:
    """What was cleared is as empty as what was never set; records that are not there are left out."""
    text, other, target = subject.adapter.text, subject.adapter.other, subject.adapter.target
    first, second, gone = subject.made("1", "2", "3")
    ids(subject.upsert(subject.record("2", text=None, other="x")))
    subject.send(Op.DELETE, Record("3", crm_id=gone))
    asked = [second, gone, first, subject.adapter.unknown_id]
    assert subject.crm.read(target, asked, [other, text]) == {
        first: {text: "made", other: None},
        second: {text: None, other: "x"},
    }
    assert subject.crm.read(target, [], [text]) == {}


def test_read_sees_what_was_written_a_moment_ago(subject: Subject) -> None:
    """It is no search: a value of the last write is there at once, also one that a person wrote."""
    text, target = subject.adapter.text, subject.adapter.target
    (crm_id,) = subject.made("1")
    for value in ("by us", "by somebody"):
        if value == "by us":
            subject.upsert(subject.record("1", text=value))
        else:
            subject.admin("PATCH", f"/records/{target.object}/{crm_id}", {text: value})
        assert subject.crm.read(target, [crm_id], [text]) == {crm_id: {text: value}}


def test_read_takes_any_number_of_ids(subject: Subject) -> None:
    """More ids than one request of any kind can carry."""
    (crm_id,) = subject.made("1")
    unknown = [f"{subject.adapter.unknown_id[:9]}9{number:05}" for number in range(2500)]
    text = subject.adapter.text
    assert subject.crm.read(subject.adapter.target, [*unknown, crm_id], [text]) == {crm_id: {text: "made"}}


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        pytest.param({"kind": "reset", "when": "after"}, TransientError, id="cut"),
        pytest.param({"kind": "garbage"}, TransientError, id="garbage"),
        pytest.param({"kind": "refuse", "status": 502}, TransientError, id="502"),
        pytest.param({"kind": "refuse", "status": 400, "body": [{"errorCode": "X"}]}, TransientError, id="unknown"),
        pytest.param({"kind": "refuse", "status": 429}, RateLimitedError, id="429"),
    ],
)
def test_a_failed_read_says_nothing_about_records(
    subject: Subject, rule: dict[str, Any], kind: type[DestinationError]
) -> None:
    """Whatever goes wrong, also what we do not know: no record is refused for it, and reading again works."""
    (crm_id,) = subject.made("1")
    subject.fault(match={"path": subject.adapter.read_path}, **rule)
    with pytest.raises(kind):
        subject.crm.read(subject.adapter.target, [crm_id], [subject.adapter.text])
    assert subject.crm.read(subject.adapter.target, [crm_id], [subject.adapter.text]).keys() == {crm_id}


def test_a_refused_record_does_no_harm_to_its_neighbours(subject: Subject) -> None:
    """Outcomes are in the records' order; the refusal names the field and keeps the CRM's words."""
    name, value = subject.adapter.bad
    bad = subject.record("2", text="b")
    outcomes = subject.upsert(
        subject.record("1", text="a"), Record("2", {**bad.fields, name: value}), subject.record("3", text="c")
    )
    assert isinstance(outcomes[0], Applied)
    assert isinstance(outcomes[1], Rejected)
    assert outcomes[1].field == name
    assert outcomes[1].code
    assert outcomes[1].message
    assert isinstance(outcomes[2], Applied)
    stored = subject.stored()
    assert [stored[key]["id"] for key in ("1", "3")] == [outcomes[0].crm_id, outcomes[2].crm_id]
    assert "2" not in stored


def test_a_full_batch_goes_at_once(subject: Subject) -> None:
    """The adapter's own limit is one that the CRM takes, for every operation."""
    keys = [f"k{number}" for number in range(max(subject.crm.limits.batch.values()))]
    created = ids(
        subject.upsert(*(subject.record(key, text=key) for key in keys[: subject.crm.limits.batch[Op.UPSERT]]))
    )
    pairs = list(zip(keys, created, strict=False))
    updates = [
        subject.record(key, crm_id=crm_id, text="x") for key, crm_id in pairs[: subject.crm.limits.batch[Op.UPDATE]]
    ]
    assert ids(subject.send(Op.UPDATE, *updates)) == created
    subject.send(
        Op.DELETE, *(Record(key, crm_id=crm_id) for key, crm_id in pairs[: subject.crm.limits.batch[Op.DELETE]])
    )
    assert subject.stored() == {}


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param({"kind": "reset", "when": "before"}, id="cut-before"),
        pytest.param({"kind": "reset", "when": "after"}, id="cut-after"),
        pytest.param({"kind": "do_then_fail", "status": 502}, id="done-then-502"),
        pytest.param({"kind": "garbage", "when": "after"}, id="garbage-after"),
        pytest.param({"kind": "refuse", "status": 503}, id="503"),
        pytest.param({"kind": "refuse", "status": 500}, id="500"),
    ],
)
def test_after_a_lost_answer_a_repeat_doubles_nothing(subject: Subject, op: Op, rule: dict[str, Any]) -> None:
    """Whether the work was done or not: the failure is transient, and the same batch again leads to the same end."""
    first, second = subject.made("1", "2")
    batch = {
        Op.UPSERT: [subject.record("1", text="new"), subject.record("3", text="new")],
        Op.UPDATE: [
            subject.record("1", crm_id=first, text="new"),
            subject.rekeyed("3", second, "new"),
        ],
        Op.DELETE: [Record("1", crm_id=first), Record("2", crm_id=second)],
    }[op]
    subject.fault(**rule)
    with pytest.raises(TransientError):
        subject.send(op, *batch)
    outcomes = subject.send(op, *batch)
    assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
    left = {Op.UPSERT: {"1", "2", "3"}, Op.UPDATE: {"1", "3"}, Op.DELETE: set[str]()}[op]
    assert set(subject.stored()) == left
    assert subject.books()["double_creates"] == 0


def test_a_refusal_for_the_rate_is_reported_to_the_gate(subject: Subject) -> None:
    """The request was not carried out, the gate knows, and the error says which quota it was."""
    subject.fault(kind="refuse", status=429)
    with pytest.raises(RateLimitedError) as refused:
        subject.upsert(subject.record("1", text="a"))
    assert subject.gate.refusals == [(refused.value.scope, refused.value.retry_after)]
    assert subject.stored() == {}


def test_answers_tell_the_gate_of_a_quota(subject: Subject) -> None:
    """An ordinary answer shows a limit, and that it is not quite untouched."""
    subject.made("1")
    assert subject.gate.windows
    for window in subject.gate.windows.values():
        assert 0 < window.remaining < window.limit
        assert window.seconds > 0


def test_every_request_passes_the_gate(subject: Subject) -> None:
    """No request of any kind, logins included, goes past the gate."""
    crm_id, _ = subject.made("1", "2")
    subject.crm.find(subject.adapter.target, ["1", "2", "3"])
    subject.crm.read(subject.adapter.target, [crm_id] * 300, [subject.adapter.text])
    subject.crm.check([Wanted("map", subject.adapter.target, {subject.adapter.text: "a"})])
    subject.send(Op.DELETE, Record("1", crm_id=crm_id))
    assert subject.gate.passed == subject.requests()


def test_an_expired_login_is_renewed_once_for_all_threads(subject: Subject) -> None:
    """Threads that are refused together log in once; no caller notices."""
    subject.made("warm")
    logins = subject.requests(subject.adapter.login_path)
    subject.admin("POST", "/faults", [{"kind": "expire_token", "when": "before", "times": 1}])
    with ThreadPoolExecutor(4) as threads:
        batches = [[subject.record(f"{number}", text="a")] for number in range(8)]
        outcomes = list(threads.map(lambda records: subject.upsert(*records), batches))
    ids([outcome for answers in outcomes for outcome in answers])
    assert subject.requests(subject.adapter.login_path) == logins + 1
    assert len(subject.stored()) == 9


def test_a_refused_login_is_about_credentials(subject: Subject) -> None:
    """The error is of the kind that needs a person, and says what to do."""
    crm = subject.adapter.connect_wrongly(subject.sandbox.url, OpenGate())
    with pytest.raises(CredentialsError) as refused:
        crm.open()
    crm.close()
    assert refused.value.hint


def test_no_connection_is_transient(subject: Subject, free_port: int) -> None:
    """A CRM that is not reachable is waited for."""
    crm = subject.adapter.connect(f"http://127.0.0.1:{free_port}", OpenGate())
    with pytest.raises(TransientError):
        crm.open()
    crm.close()


@contextmanager
def answering(content: bytes) -> Iterator[str]:
    """Serve an address that answers each request with these bytes, and then cuts the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # closed under it when the test is over
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(content)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"access_token": "x',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"access_token": "',
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"access_token": "',
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 500\r\n\r\n<html>",
        b"nonsense\r\n\r\n",
    ],
    ids=["length", "chunks", "gzip", "json", "502", "nonsense"],
)
def test_an_answer_that_ends_in_its_middle_is_transient(subject: Subject, answer: bytes) -> None:
    """Whether the cut shows in the connection, in its coding or in its JSON: it says nothing about what was done."""
    with answering(answer) as url:
        crm = subject.adapter.connect(url, OpenGate())
        with pytest.raises(TransientError):
            crm.open()
        crm.close()


def test_references_follow_the_record(subject: Subject) -> None:
    """A record refers to its parent, then to another, then to none."""
    first, second = subject.parents("p1", "p2")
    for key, crm_id, was in (("p1", first, ()), ("p2", second, (first,)), (None, None, (second,))):
        fields, links = subject.adapter.refer(key, crm_id, was)
        child = subject.record("1", text="child")
        ids(subject.upsert(Record("1", {**child.fields, **fields}, links=links)))
        assert subject.adapter.parent_of(subject, "1") == crm_id


def test_check_is_content_with_a_mapping_that_works(subject: Subject) -> None:
    """No cross, and nothing is written."""
    fields = {name: name.lower() for name in (*subject.adapter.required, subject.adapter.text, subject.adapter.other)}
    findings = subject.crm.check([Wanted("people", subject.adapter.target, fields)])
    assert findings
    assert all(finding.ok for finding in findings), findings
    assert all("people" in finding.subject for finding in findings)
    assert subject.stored() == {}


def test_check_names_what_is_missing_with_a_remedy(subject: Subject) -> None:
    """A field, a key and an object that are not there: each has its line and its hint."""
    target = subject.adapter.target
    wanted = [
        Wanted("fields", target, {**dict.fromkeys(subject.adapter.required, "a"), "no_such_field": "b"}),
        Wanted("keys", Target(target.object, "no_such_key"), dict.fromkeys(subject.adapter.required, "a")),
        Wanted("objects", Target("no_such_object", "id"), {}),
    ]
    wrong = [finding for finding in subject.crm.check(wanted) if not finding.ok]
    assert [finding.subject.partition(":")[0] for finding in wrong] == ["fields", "keys", "objects"]
    assert all(finding.hint for finding in wrong)
    assert [
        name in f"{finding.subject} {finding.message}"
        for finding, name in zip(wrong, ("no_such_field", "no_such_key", "no_such_object"), strict=True)
    ] == [True] * 3


def test_batches_of_several_threads_do_not_mix(subject: Subject) -> None:
    """Outcomes go to the batch that they belong to."""

    def upsert(prefix: str) -> dict[str, str]:
        keys = [f"{prefix}{number}" for number in range(20)]
        batch = Batch(subject.adapter.target, Op.UPSERT, tuple(subject.record(key, text=key) for key in keys))
        return dict(zip(keys, ids(subject.crm.send(batch)), strict=True))

    with ThreadPoolExecutor(5) as threads:
        answered = {key: crm_id for part in threads.map(upsert, "abcdefghij") for key, crm_id in part.items()}
    assert answered == {key: entry["id"] for key, entry in subject.stored().items()}
