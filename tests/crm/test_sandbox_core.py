"""The sandbox's own machinery: books, fault rules, the admin API, the command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from cdcsync.sandbox.books import Action, Books, Write
from cdcsync.sandbox.faults import Faults, RuleError
from cdcsync.sandbox.server import SandboxThread, build
from tests.crm.salesforce_org import Org
from tests.polling import eventually


@pytest.fixture
def org(salesforce_sandbox: SandboxThread) -> Iterator[Org]:
    """Give a logged-in org."""
    org = Org(salesforce_sandbox)
    yield org
    org.close()


def write(
    action: Action, record: str, key: str, version: tuple[int | None, int | None] = (None, None), **more: Any
) -> Write:
    """Make one effect on a contact."""
    before = {} if action == "create" else {"K": more.pop("key_before", key)}
    after = {} if action == "delete" else {"K": key}
    low, high = (None if number is None else Decimal(number) for number in version)
    return Write(0.0, action, "Contact", record, before, after, low, high, more.pop("changed", ("A",)), **more)


def counts(*writes: Write) -> dict[str, int]:
    """Enter writes into new books; returns what is not zero."""
    books = Books()
    books.record_all(writes)
    summary = books.summary()
    names = ("creates", "updates", "deletes", "noop_writes", "double_creates", "steps_back")
    return {name: summary[name] for name in names if summary[name]}


def test_second_record_for_a_held_key_is_a_double_create() -> None:
    """Two live records with one key are seen, even where the CRM itself allows them."""
    assert counts(write("create", "1", "k"), write("create", "2", "k")) == {"creates": 2, "double_creates": 1}


def test_create_after_delete_is_no_double_create() -> None:
    """A key that was deleted may be created again."""
    assert counts(write("create", "1", "k"), write("delete", "1", "k"), write("create", "2", "k")) == {
        "creates": 2,
        "deletes": 1,
    }


def test_a_key_moves_with_its_record() -> None:
    """A record that changed its key leaves the old one free, and holds the new one."""
    moved = write("update", "1", "new", key_before="k")
    assert counts(write("create", "1", "k"), moved, write("create", "2", "k")) == {"creates": 2, "updates": 1}
    assert counts(write("create", "1", "k"), moved, write("create", "2", "new"))["double_creates"] == 1


def test_lower_version_is_a_step_back() -> None:
    """A write below the stored version, or below the highest that its key ever had, is seen."""
    assert counts(write("create", "1", "k", (None, 5)), write("update", "1", "k", (5, 4)))["steps_back"] == 1
    reborn = [
        write("create", "1", "k", (None, 5)),
        write("delete", "1", "k", (5, None)),
        write("create", "2", "k", (None, 4)),
    ]
    assert counts(*reborn)["steps_back"] == 1
    assert "steps_back" not in counts(*reborn[:2], write("create", "2", "k", (None, 5)))


def test_step_back_is_seen_after_a_correct_write_in_between() -> None:
    """The highest version counts, not the last."""
    history = [
        write("create", "1", "k", (None, 9)),
        write("update", "1", "k", (9, 3)),
        write("update", "1", "k", (3, 4)),
    ]
    assert counts(*history)["steps_back"] == 2


def test_write_that_changes_nothing_is_counted() -> None:
    """No-op writes are counted, with details."""
    books = Books()
    books.record_all([write("create", "1", "k"), write("update", "1", "k", changed=())])
    assert books.summary()["noop_writes"] == 1
    assert books.summary()["details"]["noop_writes"][0]["id"] == "1"


def test_writes_of_people_are_not_counted() -> None:
    """An edit in the CRM is not our write; the key it makes is known all the same."""
    by_hand = write("create", "1", "k", (None, 7), by_person=True)
    assert counts(by_hand) == {}
    assert counts(by_hand, write("create", "2", "k", (None, 6))) == {"creates": 1, "double_creates": 1, "steps_back": 1}


def test_details_are_bounded_and_counters_exact() -> None:
    """A long run keeps 100 details and counts everything."""
    books = Books()
    books.record_all(write("create", str(number), "k") for number in range(301))
    assert books.summary()["double_creates"] == 300
    assert len(books.summary()["details"]["double_creates"]) == 100


def test_rules_are_used_up_in_order() -> None:
    """The first matching rule strikes until its hits are used up; then the next does."""
    faults = Faults()
    faults.add([{"kind": "refuse", "status": 500, "times": 2}, {"kind": "slow", "times": None}])
    struck = [faults.strike({"refuse", "slow"}, "GET", "/x") for _ in range(4)]
    assert [rule.kind for rule in struck if rule] == ["refuse", "refuse", "slow", "slow"]


def test_rules_match_method_path_and_object() -> None:
    """All parts of a match must hold."""
    faults = Faults()
    faults.add([{"kind": "refuse", "match": {"method": "post", "path": "jobs/.*", "object": "Contact"}, "times": None}])
    asked = [
        ("POST", "/jobs/1", {"contact"}),
        ("GET", "/jobs/1", {"contact"}),
        ("POST", "/x", {"contact"}),
        ("POST", "/jobs/1", {"lead"}),
    ]
    assert [faults.strike({"refuse"}, *one) is not None for one in asked] == [True, False, False, False]


def test_probability_is_seeded() -> None:
    """The same seed gives the same strikes, about as many as asked for."""

    def strikes() -> list[bool]:
        faults = Faults()
        faults.reseed(7)
        faults.add([{"kind": "refuse", "probability": 0.3, "times": None}])
        return [faults.strike({"refuse"}, "GET", "/") is not None for _ in range(1000)]

    assert strikes() == strikes()
    assert 200 < sum(strikes()) < 400


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "explode"},
        {"kind": "slow", "when": "never"},
        {"kind": "slow", "speed": 1},
        {"kind": "slow", "match": {"path": "("}},
    ],
)
def test_bad_rules_are_refused(raw: dict[str, Any]) -> None:
    """A rule that cannot be understood is an error, and none of the list is added."""
    faults = Faults()
    with pytest.raises(RuleError):
        faults.add([{"kind": "slow"}, raw])
    assert faults.rules == []


def test_refuse_does_no_work(org: Org) -> None:
    """A refused request changes nothing, and the ledger names the fault."""
    org.fault(kind="refuse", status=503, match={"method": "PATCH"})
    answer = org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "text/html; charset=UTF-8")
    assert org.admin("GET", "/records") == []
    last = org.admin("GET", "/requests")[-1]
    assert (last["fault"], last["status"], last["method"]) == ("refuse before", 503, "PATCH")


def test_refusal_with_own_body_and_headers(org: Org) -> None:
    """A rule may say what is answered."""
    org.fault(kind="refuse", status=420, body={"why": "test"}, headers={"Retry-After": "7"})
    answer = org.call("GET", "/limits")
    assert (answer.status_code, answer.json(), answer.headers["Retry-After"]) == (420, {"why": "test"}, "7")


def test_do_then_fail_does_the_work(org: Org) -> None:
    """The answer says failure, the record is there."""
    org.fault(kind="do_then_fail", status=500)
    assert org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"}).status_code == 500
    assert org.contact("1")["LastName"] == "A"


@pytest.mark.parametrize(("when", "written"), [("before", 0), ("after", 1)])
def test_reset_cuts_the_connection(org: Org, when: str, written: int) -> None:
    """The client sees a broken connection, before or after the work."""
    org.fault(kind="reset", when=when)
    with pytest.raises(requests.ConnectionError):
        org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"})
    assert len(org.admin("GET", "/records")) == written
    last = org.admin("GET", "/requests")[-1]
    assert (last["fault"], last["status"]) == (f"reset {when}", 0)


@pytest.mark.parametrize(("when", "written"), [("before", 0), ("after", 1)])
def test_hold_keeps_the_request_until_released(org: Org, when: str, written: int) -> None:
    """A held request is visible, has or has not done its work, and goes on when released."""
    org.fault(kind="hold", when=when)
    answers = []

    def send() -> None:
        answers.append(org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"}).status_code)

    client = threading.Thread(target=send)
    client.start()
    held = eventually(lambda: requests.get(org.sandbox.admin_url + "/faults", timeout=30).json()["held"])
    assert (held[0]["method"], held[0]["when"]) == ("PATCH", when)
    assert len(requests.get(org.sandbox.admin_url + "/records", timeout=30).json()) == written
    assert requests.post(org.sandbox.admin_url + "/faults/release", timeout=30).json() == {"released": 1}
    client.join()
    assert answers == [201]


def test_released_by_dropping(org: Org) -> None:
    """A dropped request is never answered and, held before, never done."""
    org.fault(kind="hold", when="before")
    failed = threading.Event()

    def send() -> None:
        with pytest.raises(requests.ConnectionError):
            org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"})
        failed.set()

    client = threading.Thread(target=send)
    client.start()
    eventually(lambda: requests.get(org.sandbox.admin_url + "/faults", timeout=30).json()["held"])
    requests.post(org.sandbox.admin_url + "/faults/release", json={"drop": True}, timeout=30)
    client.join()
    assert failed.is_set()
    assert org.admin("GET", "/records") == []


def test_a_held_request_outlives_its_client(org: Org) -> None:
    """A client that gives up does not undo its request: released later, the work is done then."""
    org.fault(kind="hold", when="before")
    with pytest.raises(requests.Timeout):
        org.http.patch(
            f"{org.sandbox.url}/services/data/v60.0/sobjects/Contact/External_Id__c/1",
            json={"LastName": "A"},
            timeout=0.2,
        )
    assert org.admin("GET", "/records") == []
    org.admin("POST", "/faults/release", {})
    assert eventually(lambda: org.admin("GET", "/records"))[0]["key"] == {"External_Id__c": "1"}


def test_garbage_after_the_work(org: Org) -> None:
    """The status says 200, the body is no JSON, and the record is there."""
    org.fault(kind="garbage")
    answer = org.call("PATCH", "/sobjects/Contact/External_Id__c/1", json={"LastName": "A"})
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    assert org.contact("1")["LastName"] == "A"


def test_slow_answers_at_last(org: Org) -> None:
    """A slow answer is the right one, and the ledger shows how long it took."""
    org.fault(kind="slow", seconds=0.2)
    assert org.call("GET", "/limits").status_code == 200
    entry = eventually(lambda: next(one for one in org.admin("GET", "/requests") if one["fault"]))
    assert entry["duration"] >= 0.19


def test_edits_of_people(org: Org) -> None:
    """The admin API changes and deletes records without counting them as writes."""
    record_id = org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})[0]["id"]
    assert org.admin("PATCH", f"/records/Contact/{record_id}", {"LastName": "B", "Score__c": 1.5}) == {"ok": True}
    assert org.contact("1")["LastName"] == "B"
    assert org.admin("PATCH", f"/records/Contact/{record_id}", {"Nope": "B"})["error"].startswith("INVALID_FIELD")
    assert org.admin("DELETE", f"/records/Contact/{record_id}") == {"ok": True}
    assert org.admin("GET", "/records?object=Contact")[0]["archived"] is True
    books = org.admin("GET", "/books")
    assert (books["writes"], books["creates"], books["deletes"]) == (1, 1, 0)


def test_settings_are_checked(org: Org) -> None:
    """An unknown or senseless setting is refused and changes nothing."""
    before = org.admin("GET", "/settings")
    assert "unknown setting: speed" in org.admin("PUT", "/settings", {"speed": 1, "latency": 9})["error"]
    assert "rows_per_second" in org.admin("PUT", "/settings", {"rows_per_second": 0})["error"]
    assert org.admin("GET", "/settings") == before


def test_reset_forgets_records_and_books(org: Org) -> None:
    """After a reset nothing is left but the settings."""
    org.admin("PUT", "/settings", {"latency": 0.001})
    org.upsert("Contact", {"External_Id__c": "1", "LastName": "A"})
    org.admin("POST", "/reset")
    assert org.admin("GET", "/records") == []
    assert org.admin("GET", "/books")["writes"] == 0
    assert org.admin("GET", "/settings")["latency"] == 0.001


def test_ledger_counts_records(org: Org) -> None:
    """The ledger says how many records each request carried, and can be read from a number on."""
    org.upsert("Contact", *({"External_Id__c": str(n), "LastName": "A"} for n in range(3)))
    ledger = org.admin("GET", "/requests")
    assert (ledger[-1]["records"], ledger[-1]["status"]) == (3, 200)
    assert org.admin("GET", f"/requests?since={ledger[-1]['n'] - 1}") == ledger[-1:]


def test_thread_reports_a_taken_name() -> None:
    """There is no third CRM."""
    with pytest.raises(ValueError, match="no sandbox for 'dynamics'"):
        build("dynamics")


def test_command_announces_and_stops(tmp_path: Path) -> None:
    """The command prints one JSON line when it is ready, takes settings from a file, and ends on SIGTERM."""
    settings = tmp_path / "settings.json"
    settings.write_text('{"daily_requests": 5}')
    command = [sys.executable, "-m", "cdcsync.sandbox", "salesforce", "--settings", str(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        assert requests.get(ready["admin_url"] + "/settings", timeout=30).json()["daily_requests"] == 5
        assert requests.get(ready["url"] + "/services/data/", timeout=30).json()[0]["version"] == "31.0"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
