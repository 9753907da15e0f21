"""What HubSpot's answers mean, by bodies as recorded or documented."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from cdcsync.apply.hubspot_answers import Answer, faults, read, refusal, rejection, scope, windows
from cdcsync.errors import BatchRejectedError, CredentialsError, FatalError, RateLimitedError, TransientError
from cdcsync.model import Window


def answer(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    """Give an answer with a JSON body."""
    return read(status, json.dumps(body), headers or {})


def by_property(*entries: tuple[str, str, str], listed: int = 10) -> dict[str, Any]:
    """Give a 400 as recorded: details as JSON in the message, the first ``listed`` also in ``errors``."""
    inner = [{"isValid": False, "message": words, "error": code, "name": name} for code, words, name in entries]
    return {
        "status": "error",
        "message": "Property values were not valid: " + json.dumps(inner),
        "errors": [
            {"message": words, "code": code, "context": {"propertyName": [name]}}
            for code, words, name in entries[:listed]
        ],
        "category": "VALIDATION_ERROR",
    }


def test_windows_of_a_private_app() -> None:
    """An ordinary answer shows the burst and the daily quota."""
    headers = {
        "X-HubSpot-RateLimit-Max": "190",
        "X-HubSpot-RateLimit-Remaining": "188",
        "X-HubSpot-RateLimit-Interval-Milliseconds": "10000",
        "X-HubSpot-RateLimit-Daily": "650000",
        "X-HubSpot-RateLimit-Daily-Remaining": "649000",
    }
    assert windows(headers) == [Window("burst", 190, 188, 10.0), Window("daily", 650000, 649000, 86400.0)]


def test_windows_leave_out_what_is_missing_or_broken() -> None:
    """Public apps have no daily headers, search answers no burst headers; nonsense is not believed."""
    assert windows({}) == []
    assert windows({"X-HubSpot-RateLimit-Daily": "10", "X-HubSpot-RateLimit-Daily-Remaining": "3"}) == [
        Window("daily", 10, 3, 86400.0)
    ]
    assert windows({"X-HubSpot-RateLimit-Max": "lots", "X-HubSpot-RateLimit-Remaining": "1"}) == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (
            {"message": "You have reached your ten_secondly_rolling limit.", "policyName": "TEN_SECONDLY_ROLLING"},
            "burst",
        ),
        ({"message": "You have reached your daily limit.", "policyName": "DAILY"}, "daily"),
        ({"message": "You have reached your secondly limit.", "category": "RATE_LIMITS"}, "search"),
        ({"message": "something new", "category": "RATE_LIMITS"}, "burst"),
    ],
)
def test_scope_is_told_by_policy_or_words(body: Mapping[str, Any], named: str) -> None:
    """The category is the same for burst and search; the policy name or the message tells them apart."""
    refused = answer(429, body)
    assert scope(refused) == named
    error = refusal(refused)
    assert isinstance(error, RateLimitedError)
    assert error.scope == named


@pytest.mark.parametrize("status", [302, 408, 423, 477, 500, 502, 503, 504, 521, 524])
def test_passing_statuses_are_transient(status: int) -> None:
    """Locks, moves, timeouts and gateways pass."""
    assert isinstance(refusal(answer(status, {"message": "x"})), TransientError)


@pytest.mark.parametrize(("status", "shrink"), [(408, True), (504, True), (524, True), (423, False), (502, False)])
def test_requests_that_took_too_long_should_shrink(status: int, shrink: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Fewer records take less time; they do not open locks."""
    failure = refusal(read(status, "<html>", {}))
    assert isinstance(failure, TransientError)
    assert failure.shrink is shrink


@pytest.mark.parametrize("category", ["RATE_LIMITS", "LOCKED", "INTERNAL_ERROR", "TIMEOUT"])
def test_passing_categories_are_transient_whatever_the_status(category: str) -> None:
    """No record is refused for them."""
    for status in (400, 409):
        assert isinstance(refusal(answer(status, {"message": "x", "category": category})), TransientError)


@pytest.mark.parametrize("status", [402, 405, 415, 451])
def test_statuses_that_are_not_about_content_are_no_rejections(status: int) -> None:
    """A plan without the API, say, is no fault of the records: somebody has to act."""
    assert isinstance(refusal(answer(status, {"message": "x"})), FatalError)


def test_a_request_that_is_too_large_is_about_content() -> None:
    """Whoever says so: halved, it fits."""
    assert isinstance(refusal(read(413, "<html>Request Entity Too Large</html>", {})), BatchRejectedError)


def test_pages_of_something_in_between_are_transient() -> None:
    """A 403 or 400 that is HTML comes from a proxy or firewall, not from HubSpot; an HTML 404 is HubSpot's."""
    for status in (400, 403, 409):
        assert isinstance(refusal(read(status, "<html>no</html>", {})), TransientError)
    assert isinstance(refusal(read(404, "<html>no</html>", {})), FatalError)


@pytest.mark.parametrize("text", ["<html>ok</html>", '{"results": [', "[]", "7"])
def test_a_success_that_is_no_json_object_is_transient(text: str) -> None:
    """A cut or foreign body in a 200 says nothing about what was done."""
    with pytest.raises(TransientError):
        read(200, text, {})


def test_no_content_is_a_success() -> None:
    """An archive answers 204 without a body."""
    assert read(204, "", {}).body == {}


def test_missing_scopes_name_the_scope() -> None:
    """A 403 stops and says which scope to add."""
    error = refusal(
        answer(
            403,
            {
                "message": "One or more of the following scopes are required.",
                "context": {"requiredGranularScopes": ["crm.objects.contacts.write"]},
                "category": "MISSING_SCOPES",
            },
        )
    )
    assert isinstance(error, FatalError)
    assert not isinstance(error, CredentialsError)
    assert "crm.objects.contacts.write" in error.hint


def test_a_bad_token_is_about_credentials() -> None:
    """A 401 is refused credentials."""
    assert isinstance(refusal(answer(401, {"category": "INVALID_AUTHENTICATION", "message": "no"})), CredentialsError)


@pytest.mark.parametrize(
    "body",
    [
        by_property(("PROPERTY_DOESNT_EXIST", 'Property "x" does not exist', "x")),
        by_property(("INVALID_EMAIL", "bad", "email"), ("READ_ONLY_VALUE", "no", "createdate"), listed=1),
        {"message": "Unable to perform upsert by non-unique 0-3 property dealname", "category": "VALIDATION_ERROR"},
        {"message": "Unable to infer object type from: butterflies"},
    ],
)
def test_faults_of_the_mapping_are_fatal(body: Mapping[str, Any]) -> None:
    """What would fail for every record stops the mapping instead of rejecting each record."""
    assert isinstance(refusal(answer(400, body)), FatalError)


def test_other_refusals_reject_the_batch_with_code_field_and_words() -> None:
    """A bad value is named by code and property in HubSpot's words."""
    error = refusal(answer(400, by_property(("INVALID_EMAIL", "Email address x is invalid", "email"))))
    assert isinstance(error, BatchRejectedError)
    assert (error.reason, error.field, error.message) == ("INVALID_EMAIL", "email", "Email address x is invalid")


def test_all_details_are_found_once() -> None:
    """``errors`` may be shorter than the list in the message; what stands in both counts once."""
    body = by_property(("INVALID_EMAIL", "a", "email"), ("INVALID_DATE", "b", "born"), listed=1)
    assert [(fault.code, fault.field) for fault in faults(body)] == [
        ("INVALID_EMAIL", "email"),
        ("INVALID_DATE", "born"),
    ]


def test_rejections_without_details_use_category_and_context() -> None:
    """Conflicts and missing required properties have no list of details."""
    conflict = rejection({"category": "CONFLICT", "message": "Contact already exists. Existing ID: 12"})
    assert (conflict.code, conflict.field) == ("CONFLICT", None)
    required = rejection(
        {
            "category": "VALIDATION_ERROR",
            "message": "Error creating DEAL. Some required properties were not set.",
            "context": {"properties": ["dealname", "dealstage"]},
        }
    )
    assert (required.code, required.field) == ("VALIDATION_ERROR", "dealname")
    link = rejection({"category": "VALIDATION_ERROR", "subCategory": "crm.associations.INVALID_IDENTIFIER"})
    assert link.code == "INVALID_IDENTIFIER"


@pytest.mark.parametrize("broken", ["[{", "{}", "[7]", ""])
def test_a_message_that_only_looks_like_details_is_kept(broken: str) -> None:
    """The words survive when the JSON in them is broken."""
    error = {"message": f"Property values were not valid: {broken}", "category": "VALIDATION_ERROR", "errors": [3]}
    assert rejection(error).code == "VALIDATION_ERROR"
