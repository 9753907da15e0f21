"""A client of the sandbox Salesforce org for tests: raw HTTP with ``requests``, logged in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter

from cdcsync.sandbox.server import SandboxThread
from tests.polling import eventually

ROOT = "/services/data/v60.0"
FINISHED = {"JobComplete", "Failed", "Aborted"}


class PlainAdapter(HTTPAdapter):
    """Sends what a client addresses to https:// over plain http: the sandbox speaks no TLS."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request by http."""
        request.url = urlunsplit(urlsplit(str(request.url))._replace(scheme="http"))
        return super().send(request, *args, **kwargs)


class Org:
    """A logged-in session."""

    def __init__(self, sandbox: SandboxThread) -> None:
        self.sandbox = sandbox
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.mount("https://", PlainAdapter())
        self.token = self.login()

    def close(self) -> None:
        """Drop connections."""
        self.http.close()

    def login(self, client_id: str = "app") -> str:
        """Log in by client credentials; later requests use the token."""
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": "s3cret"}
        answer = self.http.post(f"{self.sandbox.url}/services/oauth2/token", data=form, timeout=30)
        token = str(answer.json()["access_token"])
        self.http.headers["Authorization"] = f"Bearer {token}"
        return token

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send one request; ``path`` starts after ``/services/data/v60.0`` unless it starts with that."""
        where = path if path.startswith("/services") else ROOT + path
        return self.http.request(method, self.sandbox.url + where, timeout=30, **more)

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """Call the admin API; returns the JSON of its answer."""
        answer = self.http.request(method, self.sandbox.admin_url + path, json=body, timeout=30)
        return answer.json()

    def fault(self, **rule: Any) -> None:
        """Add one fault rule."""
        shown = self.admin("POST", "/faults", [rule])
        assert "error" not in shown, shown

    def upsert(self, object_name: str, *records: Mapping[str, Any], all_or_none: bool = False) -> list[dict[str, Any]]:
        """Upsert records by ``External_Id__c`` with one Collections request."""
        body = {
            "allOrNone": all_or_none,
            "records": [{"attributes": {"type": object_name}, **record} for record in records],
        }
        answer = self.call("PATCH", f"/composite/sobjects/{object_name}/External_Id__c", json=body)
        assert answer.status_code == 200, answer.text
        results: list[dict[str, Any]] = answer.json()
        return results

    def query(self, soql: str) -> list[dict[str, Any]]:
        """Run a query; returns the first page's records without their attributes."""
        answer = self.call("GET", "/query", params={"q": soql})
        assert answer.status_code == 200, answer.text
        return [
            {name: value for name, value in record.items() if name != "attributes"}
            for record in answer.json()["records"]
        ]

    def contact(self, key: str) -> dict[str, Any]:
        """Read the contact with an external key."""
        answer = self.call("GET", f"/sobjects/Contact/External_Id__c/{key}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def open_job(self, operation: str = "upsert", object_name: str = "Contact", **more: Any) -> str:
        """Create an ingest job; returns its id."""
        job = {"object": object_name, "operation": operation, "contentType": "CSV", "lineEnding": "LF", **more}
        if operation == "upsert":
            job.setdefault("externalIdFieldName", "External_Id__c")
        answer = self.call("POST", "/jobs/ingest", json=job)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def upload(self, job: str, content: str | bytes, **headers: str) -> requests.Response:
        """Send a job's CSV."""
        body = content.encode() if isinstance(content, str) else content
        return self.call(
            "PUT", f"/jobs/ingest/{job}/batches", data=body, headers={"Content-Type": "text/csv", **headers}
        )

    def close_job(self, job: str) -> requests.Response:
        """Say that the upload is complete."""
        return self.call("PATCH", f"/jobs/ingest/{job}", json={"state": "UploadComplete"})

    def job(self, job: str) -> dict[str, Any]:
        """Read a job."""
        shown: dict[str, Any] = self.call("GET", f"/jobs/ingest/{job}").json()
        return shown

    def finished(self, job: str) -> dict[str, Any]:
        """Poll a job until it has ended."""

        def ended() -> dict[str, Any]:
            shown = self.job(job)
            return shown if shown["state"] in FINISHED else {}

        return eventually(ended, what=f"job {job} has not ended")

    def load(self, content: str, operation: str = "upsert", object_name: str = "Contact", **more: Any) -> str:
        """Run a job from start to end; returns its id."""
        job = self.open_job(operation, object_name, **more)
        assert self.upload(job, content).status_code == 201
        assert self.close_job(job).status_code == 200
        self.finished(job)
        return job

    def results(self, job: str, kind: str) -> list[dict[str, str]]:
        """Read a result file."""
        answer = self.call("GET", f"/jobs/ingest/{job}/{kind}")
        assert answer.status_code == 200, answer.text
        return list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))


def errors(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the first error of each Collections result as ``CODE: message``, empty for a success."""
    return [
        "" if result["success"] else f"{result['errors'][0]['statusCode']}: {result['errors'][0]['message']}"
        for result in results
    ]
