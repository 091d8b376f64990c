"""One setting at a time: what its field allows, and its value out of text or TOML."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
from msgspec import inspect

from infrastructure.settings import Settings, default_pipelines

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {None: 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


class BadSetting(Exception):
    """Invalid setting; the message names its source, its field and the allowed values."""


class SourcedValue(NamedTuple):
    """Value of a setting and its source."""

    value: Any
    source: str


class Field(msgspec.Struct, frozen=True):
    """One setting: its type with constraints, for msgspec and for people."""

    name: str
    annotation: Any
    allowed: str
    description: str
    unit: str | None
    default: Any


@cache
def fields() -> Mapping[str, Field]:
    """Return every setting, in the order of the Struct."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    known = {}
    for field in inspect.type_info(Settings).fields:  # type: ignore[attr-defined]
        outer = field.type
        described = (outer.extra_json_schema or {}).get("description", "")
        unit = (outer.extra or {}).get("unit")
        known[field.name] = Field(
            field.name,
            hints[field.name],
            _allowed(outer.type, unit),
            described,
            unit,
            getattr(defaults, field.name),
        )
    return known


def read_text(name: str, text: str, source: str) -> Any:
    """The value out of an environment variable or an option.

    Lists are separated by commas, tables are JSON. Raises BadSetting.
    """
    field = fields()[name]
    if field.unit:
        return read_value(name, text, source)
    value: Any = text
    if field.allowed == LIST:
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif field.allowed == TABLE:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise _bad(field, source, f"is not valid JSON: {error}") from None
    return read_value(name, value, source, strict=False)


def read_value(name: str, value: Any, source: str, *, strict: bool = True) -> Any:
    """The value out of TOML types; sizes and times may carry a unit. Raises BadSetting."""
    field = fields()[name]
    if field.unit and isinstance(value, str):
        value, strict = _with_unit(value, field.unit), False
    try:
        return msgspec.convert(value, field.annotation, strict=strict, dec_hook=_decode)
    except msgspec.ValidationError as error:
        if field.allowed == TABLE:
            raise _bad(field, source, f"is not as it must be: {error}") from None
        raise _bad(field, source, f"must be {field.allowed}, not {value!r}") from None


def did_you_mean(name: str, prefix: str) -> str | None:
    """Return the setting with the most similar name."""
    close = get_close_matches(name.lower().replace("-", "_"), fields(), n=1)
    if not close:
        return None
    return f"{prefix}{close[0].upper()}" if prefix else close[0]


LIST = "a list of texts"
TABLE = "a table"


def _allowed(type: inspect.Type, unit: str | None) -> str:
    match type:
        case inspect.UnionType(types=types):
            return _allowed(next(t for t in types if not isinstance(t, inspect.NoneType)), unit)
        case inspect.LiteralType(values=values):
            return " or ".join(map(str, values))
        case inspect.IntType():
            least, most = type.ge, type.le
            number = "a size such as 16MiB" if unit == "bytes" else "a whole number"
            if unit == "bytes":
                return number
            return f"{number} from {least}" + (f" to {most}" if most is not None else " on")
        case inspect.StrType(pattern=str(pattern)):
            if pattern.startswith("^http"):
                return "an address such as https://example.com"
            return "a path such as /files/ that is not one of our own, or empty"
        case inspect.BoolType():
            return "true or false"
        case inspect.FloatType():
            return "a time above 0 such as 0.5 or 2s" if unit else "a number"
        case inspect.VarTupleType():
            return LIST
        case inspect.DictType() | inspect.StructType():
            return TABLE
        case inspect.CustomType():
            return "a folder"
    return "a text"


def _with_unit(text: str, unit: str) -> Any:
    """A size in bytes or a time in seconds; the text itself where it is neither."""
    if unit == "bytes" and (size := _SIZE.fullmatch(text.strip())):
        letter = (size[2] or "").lower().removesuffix("i")
        return int(float(size[1]) * 1024 ** _POWERS[letter])
    if unit == "seconds" and (time := _TIME.fullmatch(text.strip())):
        return float(time[1]) * _SECONDS[time[2]]
    return text


def _decode(type: type, value: Any) -> Any:
    if type is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("a folder is wanted")


def _bad(field: Field, source: str, problem: str) -> BadSetting:
    return BadSetting(f"{source}: {field.name} {problem}")


# Settings out of a TOML file, the environment and the command line, each value with its source.
#
# What is named later wins: defaults, file, environment, command line.

PREFIX = "UPTRAIL_"
NOT_SETTINGS = frozenset({"CONFIG", "URL", "KEY", "REQUIRE_ALL", "TEST_DATABASE_URL"})
FILE_NAME = "uptrail.toml"

REMOVED = {"feed_deflate": "the feed no longer compresses WebSocket frames"}
"""Settings of earlier versions, and why they are gone."""

DEFAULT = "default"

_SECRET = re.compile("secret|password|token", re.IGNORECASE)
COMMAND_LINE = "command line"


class LoadedSettings(msgspec.Struct, frozen=True):
    """The settings, and for each field where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load(
    command_line: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> LoadedSettings:
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
    return LoadedSettings(Settings(**values), origins)


def _from_data_dir(given: Mapping[str, SourcedValue]) -> dict[str, SourcedValue]:
    data_dir = given["data_dir"].value if "data_dir" in given else Settings().data_dir
    path = data_dir.expanduser() / FILE_NAME
    if not path.is_file():
        return {}
    found = _from_file(path)
    if "data_dir" in found:
        raise BadSetting(f"{path}: data_dir cannot be set by the file inside it; use --config")
    return found


def _from_file(path: Path) -> dict[str, SourcedValue]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path}: is not valid TOML: {error}") from None
    _refuse_unknown(str(path), content, "")
    return {
        name: SourcedValue(read_value(name, value, str(path)), str(path))
        for name, value in content.items()
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, SourcedValue]:
    names = {
        variable.removeprefix(PREFIX).lower(): variable
        for variable in environ
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX) not in NOT_SETTINGS
    }
    _refuse_unknown("environment", names, PREFIX)
    return {
        name: SourcedValue(read_text(name, environ[variable], variable), variable)
        for name, variable in names.items()
    }


def _from_command_line(options: Mapping[str, Any]) -> dict[str, SourcedValue]:
    found = {}
    for name, value in options.items():
        source = f"--{name.replace('_', '-')}"
        text = str(value) if isinstance(value, Path) else value
        read = read_text if isinstance(text, str) else read_value
        found[name] = SourcedValue(read(name, text, source), COMMAND_LINE)
    return found


def _refuse_unknown(source: str, names: Mapping[str, Any], prefix: str) -> None:
    for name in names:
        if name not in fields():
            shown = f"{prefix}{name.upper()}" if prefix else name
            if reason := REMOVED.get(name):
                raise BadSetting(f"{source}: {shown} was removed: {reason}. Delete it to start")
            hint = (
                f"; did you mean {did_you_mean(name, prefix)}?"
                if did_you_mean(name, prefix)
                else ""
            )
            raise BadSetting(f"{source}: there is no setting {shown}{hint}")


def redacted(value: Any) -> Any:
    """Return a value as `config show` prints it: plain JSON types without secrets."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    return _without_secrets(msgspec.to_builtins(value, enc_hook=str))


def _without_secrets(plain: Any) -> Any:
    """Return tables and lists with secrets hidden at any depth."""
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
    """Hide the password of a URL, or of a connection string in `key=value` form."""
    text = re.sub(r"(\bpassword\s*=\s*)('[^']*'|\S+)", r"\1***", text)
    scheme, separator, rest = text.partition("://")
    credentials, at, host = rest.rpartition("@")
    if not (separator and at):
        return text
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}@{host}"
