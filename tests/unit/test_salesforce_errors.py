"""What Salesforce's answers mean, by bodies as recorded or documented."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from cdcsync.apply.salesforce_errors import Answer, Fault, failed, faults, read_cell, refusal, result, row_outcome
from cdcsync.apply.salesforce_login import is_loopback, refused
from cdcsync.apply.salesforce_session import windows
from cdcsync.errors import (
    BatchRejectedError,
    CredentialsError,
    DestinationError,
    FatalError,
    RateLimitedError,
    TransientError,
)
from cdcsync.model import Applied, Missing, Op, Rejected, Retry, Window


def answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> Answer:
    """Give an answer; text stays as it is, all else is JSON."""
    return Answer(status, body.encode() if isinstance(body, str) else json.dumps(body).encode(), headers or {})


def error(code: str, message: str = "words", **more: object) -> list[dict[str, object]]:
    """Give an error body of the REST API."""
    return [{"errorCode": code, "message": message, **more}]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, error("INVALID_SESSION_ID", "Session expired or invalid"), CredentialsError),
        (403, error("API_DISABLED_FOR_ORG"), FatalError),
        (403, error("INSUFFICIENT_ACCESS"), FatalError),
        (404, error("NOT_FOUND", "The requested resource does not exist"), FatalError),
        (410, error("UNSUPPORTED_API_VERSION"), FatalError),
        (400, error("INVALID_TYPE", "sObject type 'Foo' is not supported."), FatalError),
        (400, error("INVALIDJOB", "InvalidJob : Unable to find object: X"), FatalError),
        (400, error("INVALID_FIELD", "No such column 'X' on sobject of type Y"), FatalError),
        (400, error("STORAGE_LIMIT_EXCEEDED", "storage limit exceeded"), FatalError),
        (400, error("FUNCTIONALITY_NOT_ENABLED"), FatalError),
        (405, error("METHOD_NOT_ALLOWED"), FatalError),
        (400, error("INVALID_SESSION_ID"), CredentialsError),
        (403, error("INVALID_SESSION_ID"), CredentialsError),
        (400, error("JSON_PARSER_ERROR"), BatchRejectedError),
        (413, error("REQUEST_TOO_LARGE"), BatchRejectedError),
        (413, "<html>Request Entity Too Large</html>", BatchRejectedError),
        (400, error("SOMETHING_NEW"), BatchRejectedError),
        (400, error("EXCEEDED_ID_LIMIT"), BatchRejectedError),
        (400, error("UNABLE_TO_LOCK_ROW"), TransientError),
        (400, error("QUERY_TIMEOUT"), TransientError),
        (400, error("UNKNOWN_EXCEPTION"), TransientError),
        (409, error("CONFLICT"), TransientError),
        (423, error("LOCKED"), TransientError),
        (503, error("SERVER_UNAVAILABLE"), TransientError),
        (500, error("UNKNOWN_EXCEPTION"), TransientError),
        (502, "<html>Bad Gateway</html>", TransientError),
        (420, "<html>Routing Error</html>", TransientError),
        (503, "<html>maintenance</html>", TransientError),
        (400, "<html>a proxy's</html>", TransientError),
        (403, "<html>a firewall's</html>", TransientError),
        (302, "", TransientError),
    ],
)
def test_refused_requests(status: int, body: object, kind: type[DestinationError]) -> None:
    """Each answer has one kind of error, which keeps Salesforce's words."""
    refusal_error = refusal(answer(status, body))
    assert type(refusal_error) is kind
    if isinstance(body, list):
        assert str(body[0]["message"]) in refusal_error.message


@pytest.mark.parametrize(
    ("status", "body", "shrink"),
    [
        (400, error("REQUEST_RUNNING_TOO_LONG"), True),
        (500, error("UNKNOWN_EXCEPTION", "System.LimitException: Too many SOQL queries: 101"), True),
        (504, "<html>Gateway Timeout</html>", True),
        (408, "", True),
        (500, error("UNKNOWN_EXCEPTION"), False),
        (503, error("SERVER_UNAVAILABLE"), False),
        (400, error("UNABLE_TO_LOCK_ROW"), False),
        (502, "<html>", False),
    ],
)
def test_requests_that_took_too_much_should_shrink(status: int, body: object, shrink: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Fewer records help against limits on time and work, not against what happens to any request."""
    failure = refusal(answer(status, body))
    assert isinstance(failure, TransientError)
    assert failure.shrink is shrink


@pytest.mark.parametrize(
    ("status", "body", "scope"),
    [
        (403, error("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded."), "daily"),
        (
            403,
            error("REQUEST_LIMIT_EXCEEDED", "ConcurrentRequests (Concurrent API Requests) Limit exceeded."),
            "concurrent",
        ),
        (400, error("ExceededQuota", "ApiBatchItems Limit exceeded."), "bulk"),
        (429, "<html>slow down</html>", "burst"),
        (503, "<html>later</html>", "burst"),
    ],
)
def test_quota_refusals_name_their_scope(status: int, body: object, scope: str) -> None:
    """Quotas are told by their words, with the time to wait where it is given."""
    limited = refusal(answer(status, body, {"Retry-After": "7"}))
    assert isinstance(limited, RateLimitedError)
    assert (limited.scope, limited.retry_after) == (scope, 7.0)


def test_a_retry_after_that_is_no_number_is_none() -> None:
    """A date, or nonsense, is no number of seconds; a 503 then is an ordinary failure."""
    assert type(refusal(answer(503, "x", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}))) is TransientError


def test_faults_of_a_page_are_none() -> None:
    """Only Salesforce's own JSON is believed."""
    assert faults(answer(400, "<html>")) == []
    assert faults(answer(400, {"error": "x"})) == []
    assert faults(answer(400, error("A", fields=["F"]))) == [Fault("A", "words", ("F",))]


@pytest.mark.parametrize("text", ["<html>ok</html>", '{"id": ', ""])
def test_a_success_that_is_no_json_is_transient(text: str) -> None:
    """A cut or foreign body says nothing about what was done."""
    with pytest.raises(TransientError):
        answer(200, text).json()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access to this record or 1 records: 001"),
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "T: execution of AfterUpdate caused by: UNABLE_TO_LOCK_ROW, ..."),
        ("SERVER_UNAVAILABLE", "try later"),
        ("QUERY_TIMEOUT", "Your query request was running for too long."),
        ("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded."),
        ("INVALID_SESSION_ID", "from a trigger's own call"),
        ("UNKNOWN_EXCEPTION", "An unexpected error occurred. Please include this ErrorId"),
        ("PROCESSING_HALTED", "halted"),
    ],
)
def test_locks_and_the_like_may_be_tried_again(code: str, message: str) -> None:
    """A lock met inside a trigger hides behind the trigger's code."""
    assert row_outcome(Fault(code, message)) == Retry(code, message)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "T: System.LimitException: Apex CPU time limit exceeded"),
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "T: System.LimitException: Too many SOQL queries: 101"),
        ("CANNOT_EXECUTE_FLOW_TRIGGER", "We can't save this record … Apex CPU time limit exceeded."),
        ("REQUEST_RUNNING_TOO_LONG", "Your request was running for too long, and has been stopped."),
    ],
)
def test_what_automation_ran_out_of_may_be_tried_with_fewer_records(code: str, message: str) -> None:
    """The limits are on the transaction: no row is to blame."""
    assert row_outcome(Fault(code, message)) == Retry(code, message, shrink=True)


def test_the_words_of_a_validation_rule_are_no_limit() -> None:
    """Its text is somebody's own, and may say anything."""
    fault = Fault("FIELD_CUSTOM_VALIDATION_EXCEPTION", "Too many SOQL queries in the description")
    assert isinstance(row_outcome(fault), Rejected)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (Fault("STORAGE_LIMIT_EXCEEDED", "storage limit exceeded"), "Storage Usage"),
        (Fault("INVALID_FIELD", "No such column 'X__c' on sobject of type Contact"), "cdcsync check"),
        (Fault("INVALID_TYPE", "sObject type 'X' is not supported."), "cdcsync check"),
    ],
)
def test_faults_of_the_setup_are_no_rejections_of_rows(fault: Fault, hint: str) -> None:
    """Somebody has to act, whatever row met the fault first, and whatever its neighbours carry."""
    with pytest.raises(FatalError) as refused_row:
        row_outcome(fault)
    assert hint in refused_row.value.hint


@pytest.mark.parametrize(
    "code", ["REQUIRED_FIELD_MISSING", "FIELD_CUSTOM_VALIDATION_EXCEPTION", "DUPLICATES_DETECTED", "SOMETHING_NEW"]
)
def test_other_row_errors_are_rejections(code: str) -> None:
    """The code, the words and the first field are kept."""
    assert row_outcome(Fault(code, "m", ("A", "B"))) == Rejected(code, "m", "A")


@pytest.mark.parametrize("code", ["ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY"])
def test_what_is_gone_means_three_things(code: str) -> None:
    """A delete is done; an update has no record; an upsert refers to something that is not there."""
    fault = Fault(code, "m")
    assert failed(Op.DELETE, fault) == Applied(None)
    assert failed(Op.UPDATE, fault) == Missing("m")
    assert failed(Op.UPSERT, fault) == Rejected(code, "m")


def test_collections_results() -> None:
    """An entry tells success, creation, or what is wrong; something else is no answer."""
    assert result(Op.UPSERT, {"id": "003", "success": True, "errors": [], "created": True}) == Applied(
        "003", created=True
    )
    assert result(Op.DELETE, {"id": "003", "success": True, "errors": []}) == Applied("003")
    refused_row = {
        "success": False,
        "errors": [{"statusCode": "STRING_TOO_LONG", "message": "m", "fields": ["LastName"]}],
    }
    assert result(Op.UPSERT, refused_row) == Rejected("STRING_TOO_LONG", "m", "LastName")
    assert result(Op.UPSERT, {"success": False, "errors": []}) == Rejected(
        "UNKNOWN", "Salesforce refused the record without saying why"
    )
    for entry in (None, "x", {}, {"success": "true"}):
        with pytest.raises(TransientError):
            result(Op.UPSERT, entry)


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (
            "REQUIRED_FIELD_MISSING:Required fields are missing: [LastName]:LastName --",
            Fault("REQUIRED_FIELD_MISSING", "Required fields are missing: [LastName]", ("LastName",)),
        ),
        (
            "DUPLICATE_VALUE:duplicate value found: K__c duplicates value on record with id: 001:--",
            Fault("DUPLICATE_VALUE", "duplicate value found: K__c duplicates value on record with id: 001"),
        ),
        (
            'STRING_TOO_LONG:A: data value too large: x:y,\n"z" (max length=8):A,B__c --',
            Fault("STRING_TOO_LONG", 'A: data value too large: x:y,\n"z" (max length=8)', ("A", "B__c")),
        ),
        ("INVALID_FIELD:no end: here", Fault("INVALID_FIELD", "no end: here")),
        ("something else", Fault("UNKNOWN", "something else")),
        ("Something: else", Fault("UNKNOWN", "Something: else")),
        ("", Fault("UNKNOWN", "")),
    ],
)
def test_error_cells(cell: str, fault: Fault) -> None:
    """The code is before the first colon, the fields after the last one; the message may hold anything."""
    assert read_cell(cell) == fault


def test_the_days_allowance() -> None:
    """The org's usage is read, the app's own is not mistaken for it, and more used than allowed is none left."""
    assert windows({"Sforce-Limit-Info": "api-usage=18/5000"}) == [Window("daily", 5000, 4982, 86400.0)]
    both = "api-usage=25/5000; per-app-api-usage=17/250(appName=sample-connected-app)"
    assert windows({"Sforce-Limit-Info": both}) == [Window("daily", 5000, 4975, 86400.0)]
    assert windows({"Sforce-Limit-Info": "api-usage=5100/5000"}) == [Window("daily", 5000, 0, 86400.0)]
    assert windows({}) == []
    assert windows({"Sforce-Limit-Info": "nonsense"}) == []


@pytest.mark.parametrize(
    ("code", "description", "hint"),
    [
        ("invalid_client_id", "client identifier invalid", "Consumer Key"),
        ("invalid_client", "invalid client credentials", "Consumer Secret"),
        ("invalid_grant", "user hasn't approved this consumer", "pre-authorize"),
        ("invalid_grant", "no client credentials user enabled", "run as"),
        ("invalid_grant", "request not supported on this domain", "My Domain"),
        ("invalid_grant", "audience is invalid", "login_url"),
        ("invalid_grant", "invalid assertion", "certificate"),
        ("invalid_grant", "something new", "login_url"),
    ],
)
def test_refused_logins_come_with_a_remedy(code: str, description: str, hint: str) -> None:
    """Each of Salesforce's refusals points at the page or key to look at."""
    refused_login = refused(answer(400, {"error": code, "error_description": description}))
    assert isinstance(refused_login, CredentialsError)
    assert hint in refused_login.hint
    assert description in refused_login.message


def test_logins_that_fail_for_a_passing_reason() -> None:
    """A page, a server error or nothing to go by is waited out; too many logins are a matter of rate."""
    assert type(refused(answer(500, {"error": "server_error"}))) is TransientError
    assert type(refused(answer(502, "<html>"))) is TransientError
    assert type(refused(answer(400, []))) is TransientError
    limited = refused(answer(400, {"error": "invalid_grant", "error_description": "login rate exceeded"}))
    assert type(limited) is RateLimitedError


def test_loopback() -> None:
    """Only this machine is spoken to without TLS."""
    for url in ("http://127.0.0.1:80", "http://localhost:1", "http://[::1]:2", "http://127.9.9.9"):
        assert is_loopback(url)
    for url in ("http://127.evil.example", "http://10.0.0.1", "https://acme.my.salesforce.com", "nonsense"):
        assert not is_loopback(url)
