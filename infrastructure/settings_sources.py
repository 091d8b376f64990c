"""Settings out of a TOML file, the environment and the command line, each value with its source.

What is named later wins: defaults, file, environment, command line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from infrastructure.settings import Settings, default_pipelines
from infrastructure.settings_fields import BadSetting, Given, fields, read_text, read_value, similar

PREFIX = "UPTRAIL_"
NOT_SETTINGS = frozenset({"CONFIG", "URL", "KEY", "REQUIRE_ALL", "TEST_DATABASE_URL"})
FILE_NAME = "uptrail.toml"

REMOVED = {"feed_deflate": "the feed no longer compresses WebSocket frames"}
"""Settings of earlier versions, and why they are gone."""

DEFAULT = "default"

_SECRET = re.compile("secret|password|token", re.IGNORECASE)
COMMAND_LINE = "command line"


class Sourced(msgspec.Struct, frozen=True):
    """The settings, and for each field where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load(
    command_line: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Sourced:
    """Reads every source once; `command_line` holds options by field name, None where not given.

    The file is `config`, else `UPTRAIL_CONFIG`, else `uptrail.toml` in the data directory if
    there is one. Raises BadSetting, which names source, field and what is allowed.
    """
    options = {name: value for name, value in (command_line or {}).items() if value is not None}
    given = _from_environment(environ) | _from_command_line(options)
    path = config or (Path(environ["UPTRAIL_CONFIG"]) if environ.get("UPTRAIL_CONFIG") else None)
    if path is not None:
        given = _from_file(path.expanduser()) | given
    else:
        given = _from_data_dir(given) | given
    values = {name: one.value for name, one in given.items()}
    if "pipelines" in values:
        values["pipelines"] = default_pipelines() | values["pipelines"]
    values["data_dir"] = values.get("data_dir", Settings().data_dir).expanduser().absolute()
    origins = {name: given[name].source if name in given else DEFAULT for name in fields()}
    return Sourced(Settings(**values), origins)


def _from_data_dir(given: Mapping[str, Given]) -> dict[str, Given]:
    data_dir = given["data_dir"].value if "data_dir" in given else Settings().data_dir
    path = data_dir.expanduser() / FILE_NAME
    if not path.is_file():
        return {}
    found = _from_file(path)
    if "data_dir" in found:
        raise BadSetting(f"{path}: data_dir cannot be set by the file inside it; use --config")
    return found


def _from_file(path: Path) -> dict[str, Given]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path}: is not valid TOML: {error}") from None
    _refuse_unknown(str(path), content, "")
    return {
        name: Given(read_value(name, value, str(path)), str(path))
        for name, value in content.items()
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    names = {
        variable.removeprefix(PREFIX).lower(): variable
        for variable in environ
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX) not in NOT_SETTINGS
    }
    _refuse_unknown("environment", names, PREFIX)
    return {
        name: Given(read_text(name, environ[variable], variable), variable)
        for name, variable in names.items()
    }


def _from_command_line(options: Mapping[str, Any]) -> dict[str, Given]:
    found = {}
    for name, value in options.items():
        source = f"--{name.replace('_', '-')}"
        text = str(value) if isinstance(value, Path) else value
        read = read_text if isinstance(text, str) else read_value
        found[name] = Given(read(name, text, source), COMMAND_LINE)
    return found


def _refuse_unknown(source: str, names: Mapping[str, Any], prefix: str) -> None:
    for name in names:
        if name not in fields():
            shown = f"{prefix}{name.upper()}" if prefix else name
            if reason := REMOVED.get(name):
                raise BadSetting(f"{source}: {shown} was removed: {reason}. Delete it to start")
            hint = f"; did you mean {similar(name, prefix)}?" if similar(name, prefix) else ""
            raise BadSetting(f"{source}: there is no setting {shown}{hint}")


def shown(value: Any) -> Any:
    """A value as `config show` prints it: plain JSON types, no password and no secret."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    return _without_secrets(msgspec.to_builtins(value, enc_hook=str))


def _without_secrets(plain: Any) -> Any:
    """Tables and lists with what is secret hidden, however deep it lies."""
    match plain:
        case dict():
            return {
                name: "***" if _SECRET.search(name) and value else _without_secrets(value)
                for name, value in plain.items()
            }
        case list() | tuple():
            return [_without_secrets(value) for value in plain]
        case str():
            return _without_password(plain)
    return plain


def _without_password(text: str) -> str:
    """Hides the password of a URL, or of libpq's `key=value` form."""
    text = re.sub(r"(\bpassword\s*=\s*)('[^']*'|\S+)", r"\1***", text)
    scheme, separator, rest = text.partition("://")
    credentials, at, host = rest.rpartition("@")
    if not (separator and at):
        return text
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}@{host}"
