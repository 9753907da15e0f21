"""A Bulk 2.0 ingest job: its state, its CSV in and out (facts 3 and 4)."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cdcsync.sandbox.faults import Rule
from cdcsync.sandbox.salesforce_rows import Column, HeaderError
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_values import format_time

CHUNK: Final = 200  # rows of one transaction
BATCH: Final = 10_000  # rows of one batch; batches are in no order
DELIMITERS: Final = {
    "COMMA": ",",
    "TAB": "\t",
    "PIPE": "|",
    "SEMICOLON": ";",
    "CARET": "^",
    "BACKQUOTE": "`",
}
ENDINGS: Final = {"LF": "\n", "CRLF": "\r\n"}
FINISHED: Final = frozenset({"JobComplete", "Failed", "Aborted"})

State = Literal["Open", "UploadComplete", "InProgress", "JobComplete", "Failed", "Aborted"]

# Cells may be longer than the csv module's default limit; the field's own length is checked row by row.
csv.field_size_limit(1 << 28)


@dataclass(slots=True, eq=False)
class Job:
    """One job. ``clock`` is the Unix time at which its work began (moved on while it is stuck)."""

    id: str
    entity: Entity
    operation: str
    key_field: Field | None
    ending: str
    delimiter: str
    version: float
    user: str
    created: float
    state: State = "Open"
    modified: float = 0.0
    error: str | None = None
    data: bytes | None = None
    clock: float = 0.0
    stuck: Rule | None = None
    header: list[str] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    rows: list[list[str] | None] = field(default_factory=list)
    chunks: list[range] = field(default_factory=list)
    done: int = 0
    successes: list[tuple[str, bool, int]] = field(default_factory=list)
    failures: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The job's path, for fault rules."""
        return f"/services/data/v{self.version}/jobs/ingest/{self.id}"

    @property
    def processed(self) -> int:
        """Rows looked at so far, failed ones too."""
        return len(self.successes) + len(self.failures)

    def cut(self, dice: random.Random) -> None:
        """Cut the rows into chunks; the batches come in any order."""
        batches = [range(start, min(start + BATCH, len(self.rows))) for start in range(0, len(self.rows), BATCH)]
        dice.shuffle(batches)
        for batch in batches:
            self.chunks.extend(
                range(start, min(start + CHUNK, batch.stop)) for start in range(batch.start, batch.stop, CHUNK)
            )

    def as_json(self, *, full: bool) -> dict[str, Any]:
        """Show the job; ``full`` as GET does, else as POST and PATCH do."""
        shown: dict[str, Any] = {
            "id": self.id,
            "operation": self.operation,
            "object": self.entity.name,
            "createdById": self.user,
            "createdDate": format_time(self.created),
            "systemModstamp": format_time(self.modified or self.created),
            "state": self.state,
            "concurrencyMode": "Parallel",
            "contentType": "CSV",
            "apiVersion": self.version,
        }
        if self.key_field:
            shown["externalIdFieldName"] = self.key_field.name
        if not full:
            return shown
        shown |= self.format()
        shown["jobType"] = "V2Ingest"
        if self.state != "Open":
            milliseconds = int((self.modified - self.clock) * 1000) if self.state in FINISHED and self.clock else 0
            shown["numberRecordsProcessed"] = self.processed
            shown["numberRecordsFailed"] = len(self.failures)
            shown["retries"] = 0
            shown["totalProcessingTime"] = shown["apiActiveProcessingTime"] = milliseconds
            shown["apexProcessingTime"] = 0
        if self.error:
            shown["errorMessage"] = self.error
        return shown

    def format(self) -> dict[str, Any]:
        """Show how its CSV is written."""
        return {"lineEnding": self.ending, "columnDelimiter": self.delimiter, "contentUrl": f"{self.path[1:]}/batches"}

    def read(self) -> None:
        """Read the header and the rows of the upload. Raises HeaderError for what fails the whole job."""
        try:
            text = (self.data or b"").decode()
        except UnicodeDecodeError as error:
            raise HeaderError("ClientInputError : Failed to read data. The file must be UTF-8 encoded") from error
        other_ending = "\r" in text if self.ending == "LF" else "\n" in text.replace("\r\n", "")
        if other_ending:
            message = (
                f"ClientInputError : LineEnding is invalid on user data. Current LineEnding setting is {self.ending}"
            )
            raise HeaderError(message)
        rows = _parsed(text, DELIMITERS[self.delimiter])
        first: list[str] | None = next(rows, None)
        self.header = first or []
        self.rows = [row for row in rows if row != []]
        if not self.header:
            raise HeaderError("InvalidBatch : Field name not found : ")

    def results(self, kind: str, dice: random.Random) -> bytes:
        """Write ``successfulResults``, ``failedResults`` or ``unprocessedrecords``; the rows come in any order."""
        out = io.StringIO(newline="")
        separator, ending = DELIMITERS[self.delimiter], ENDINGS[self.ending]
        writer = csv.writer(out, delimiter=separator, lineterminator=ending, quoting=csv.QUOTE_ALL)
        added, rows = self._result_rows(kind)
        shuffled = list(rows)
        dice.shuffle(shuffled)
        out.write(separator.join([*(f'"{name}"' for name in added), *self.header]) + ending)
        writer.writerows(shuffled)
        return out.getvalue().encode()

    def _result_rows(self, kind: str) -> tuple[list[str], Iterable[list[str]]]:
        if kind == "successfulResults":
            return ["sf__Id", "sf__Created"], (
                [record_id, str(created).lower(), *self._cells(number)] for record_id, created, number in self.successes
            )
        if kind == "failedResults":
            return ["sf__Id", "sf__Error"], (
                [record_id, error, *self._cells(number)] for record_id, error, number in self.failures
            )
        if self.state == "JobComplete":
            return [], ()
        return [], (self._cells(number) for chunk in self.chunks[self.done :] for number in chunk)

    def _cells(self, number: int) -> list[str]:
        cells = self.rows[number]
        return [""] * len(self.header) if cells is None else cells[: len(self.header)]


def _parsed(text: str, delimiter: str) -> Iterator[list[str] | None]:
    """Read CSV rows; one that is not well formed is None."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        try:
            yield next(reader)
        except csv.Error:
            yield None
        except StopIteration:
            return
