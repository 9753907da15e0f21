"""The two ways in which Salesforce says no: to one row, or to the whole request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdcsync.sandbox.crm import Response, json_response


class RowError(Exception):
    """One record was not written. The codes and wordings are those of the API (facts 10)."""

    def __init__(self, code: str, message: str, fields: Sequence[str] = ()) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.fields = tuple(fields)

    def as_result(self) -> dict[str, Any]:
        """Show it as a member of ``errors`` in a Collections result."""
        return {"statusCode": self.code, "message": self.message, "fields": list(self.fields)}

    def as_cell(self) -> str:
        """Show it as an ``sf__Error`` cell of Bulk 2.0."""
        fields = f"{','.join(self.fields)} " if self.fields else ""
        return f"{self.code}:{self.message}:{fields}--"

    def as_api_error(self) -> ApiError:
        """Turn it into the answer of a single-row REST call, where the row is the request."""
        gone = self.code in {"ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY", "NOT_FOUND"}
        return ApiError(404 if gone else 400, self.code, self.message, self.fields)


class ApiError(Exception):
    """The request failed as a whole."""

    def __init__(self, status: int, code: str, message: str, fields: Sequence[str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.fields = fields

    def as_response(self) -> Response:
        """Build the answer: a list with one error."""
        error: dict[str, Any] = {"message": self.message, "errorCode": self.code}
        if self.fields is not None:
            error["fields"] = list(self.fields)
        return json_response(self.status, [error], limited=self.code == "REQUEST_LIMIT_EXCEEDED")


def not_found() -> ApiError:
    """Give the answer for a resource or record that is not there."""
    return ApiError(404, "NOT_FOUND", "The requested resource does not exist")
