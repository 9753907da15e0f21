"""Secrets by reference: a systemd credential, a file or an environment variable; never in the config itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationInfo, model_validator

from cdcsync.errors import ConfigError

FORMS = '{ credential = "name" }, { file = "/path" } or { env = "NAME" }'


class Secret(BaseModel):
    """Where a secret is kept. Exactly one of the three is set; the value itself is never held nor shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    credential: str | None = None
    """The name of a systemd credential (LoadCredential=): a file in $CREDENTIALS_DIRECTORY."""
    file: str | None = None
    """The path of a file."""
    env: str | None = None
    """The name of an environment variable."""

    _environ: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _refuse_literal(cls, given: Any) -> Any:
        if isinstance(given, str):
            msg = f"a secret does not stand in the config: use {FORMS}"
            raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueError only
        return given

    @model_validator(mode="after")
    def _bind(self, info: ValidationInfo) -> Secret:
        if sum(part is not None for part in (self.credential, self.file, self.env)) != 1:
            msg = f"expected one of {FORMS}"
            raise ValueError(msg)
        self._environ = (info.context or {}).get("environ", {})
        return self

    def read(self) -> str:
        """Fetch the secret, without a final line break. Raises ConfigError, with the remedy, if it is not there."""
        if self.env is not None:
            return self._read_env(self.env)
        if self.credential is not None:
            return self._read_file(self._credential_path(self.credential))
        return self._read_file(Path(self.file or ""))

    def _read_env(self, name: str) -> str:
        value = self._environ.get(name)
        if not value:
            raise ConfigError(
                f"the environment variable {name} is {'not set' if value is None else 'empty'}",
                hint=f"set {name}, or refer to the secret by credential or file",
            )
        return value

    def _credential_path(self, name: str) -> Path:
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise ConfigError(
                f"the credential {name} cannot be read: CREDENTIALS_DIRECTORY is not set",
                hint=f"start cdcsync as a systemd service with LoadCredential={name}:/path/of/the/secret, "
                "or set CREDENTIALS_DIRECTORY to a directory that holds it",
            )
        if "/" in name or name in {"", ".", ".."}:
            raise ConfigError(f"{name!r} is not the name of a credential", hint="give a plain file name")
        return Path(directory) / name

    @staticmethod
    def _read_file(path: Path) -> str:
        try:
            value = path.read_text("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"the secret in {path} is not UTF-8 text", hint="store it as text") from error
        except OSError as error:
            raise ConfigError(
                f"the secret in {path} cannot be read: {error.strerror or error}",
                hint="create the file, readable for the user that cdcsync runs as",
            ) from error
        if not value:
            raise ConfigError(f"the secret in {path} is empty", hint="write the secret into it")
        return value


def form_of(given: object) -> str:
    """Tell a reference to a secret from a text that stands in the config itself, as pydantic's tags."""
    return "<reference>" if isinstance(given, dict | Secret) else "<text>"
