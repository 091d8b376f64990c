"""Parsed database URL: where to connect, and the settings to apply to each session."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as BadFile
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

# Defaults of parameters that neither URL nor environment sets. That a server vanished is detected
# within about 25 s by an idle connection, and within 10 s by one that has sent something.
DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "connect_timeout": "5",  # seconds, for each host
        "tcp_user_timeout": "10000",  # milliseconds
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
    }
)
SEVERAL_HOSTS: Mapping[str, str] = MappingProxyType({"target_session_attrs": "primary"})

# Every session states these, whatever the server, the database or the role has set. Names are
# matched without regard to case, as PostgreSQL does.
REQUIRED: Mapping[str, str] = MappingProxyType(
    {
        "client_encoding": "UTF8",
        "DateStyle": "ISO, MDY",
        "TimeZone": "UTC",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "transform_null_equals": "off",
        "exit_on_error": "off",
        # With `off`, a policy that would hide rows is an error instead of missing rows.
        "row_security": "off",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "default_table_access_method": "heap",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
    }
)
SINCE_17: Mapping[str, str] = MappingProxyType({"transaction_timeout": "0"})

# Commits are never weaker than `on`; `remote_apply` is stronger, and the operator's choice.
DURABLE = ("on", "remote_apply")

_OPTIONS = "options of database_url or PGOPTIONS"
_OF_URL = "a database URL such as postgresql://user@host:5432/name"
_ENVIRONMENT = {
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


class BadDatabaseUrl(ValueError):
    """The database URL, or something in it, cannot be used; the text holds no password."""

    hint = "check UPTRAIL_DATABASE_URL or --database-url"


class DatabaseUrl(msgspec.Struct, frozen=True):
    """A parsed URL: `parameters` are libpq's without `options`, `session` is what those set."""

    parameters: dict[str, str]
    session: dict[str, str]

    @property
    def hosts(self) -> list[tuple[str, str, str]]:
        """Host, address and port of each server, in the order of the URL."""
        columns = [self.parameters.get(name, "").split(",") for name in _PLACE]
        most = max(map(len, columns))
        filled = [column * most if len(column) == 1 else column for column in columns]
        return list(zip(*filled, strict=True))

    def conninfo(self, name: str, first: tuple[str, str, str] | None = None) -> str:
        """Return the connection string for libpq; `name` becomes the application_name.

        `first` is tried before the other hosts, if it is one of several.
        """
        defaults = {**DEFAULTS, "application_name": f"uptrail-{name}"}
        hosts = self.hosts
        if len(hosts) > 1:
            defaults |= SEVERAL_HOSTS
        given = self.parameters
        chosen = {key: value for key, value in defaults.items() if not _is_set(given, key)} | given
        if len(hosts) > 1 and first in hosts and "load_balance_hosts" not in given:
            rest = [host for host in hosts if host != first]
            columns = zip(*[first, *rest], strict=True)
            for key, column in zip(_PLACE, columns, strict=True):
                if any(column):
                    chosen[key] = ",".join(column)
        # An empty value keeps libpq from sending PGOPTIONS when it connects: see `session`.
        return make_conninfo("", **(chosen | {"options": ""}))


_PLACE = ("host", "hostaddr", "port")


@lru_cache(maxsize=64)
def parse_database_url(url: str) -> DatabaseUrl:
    """Read a URL or connection string, the service that it names, and its `options`.

    Options are not sent when connecting, which poolers refuse: each session sets them by `SET`.
    Raises BadDatabaseUrl.
    """
    try:
        parameters = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    except psycopg.Error as error:
        reason = re.sub(r'"[^"]*"', '"..."', str(error).strip())  # it may quote the password
        raise BadDatabaseUrl(f"database_url is not {_OF_URL}: {reason}") from None
    service = parameters.pop("service", None) or os.environ.get("PGSERVICE")
    if service:
        parameters = _service(service) | parameters
    options = parameters.pop("options", None)
    if options is None:
        options = os.environ.get("PGOPTIONS", "")
    parsed = DatabaseUrl(parameters, dict(_settings(options)))
    lengths = {len(parsed.parameters.get(name, "").split(",")) for name in _PLACE}
    if len(lengths - {1}) > 1:
        raise BadDatabaseUrl("database_url names as many ports as hosts, or one port for all")
    return parsed


def _is_set(given: Mapping[str, str], key: str) -> bool:
    return key in given or bool(os.environ.get(_ENVIRONMENT.get(key, ""), ""))


def _settings(options: str) -> Iterator[tuple[str, str]]:
    """Return the settings in PostgreSQL's command line options. Raises BadDatabaseUrl."""
    words = iter(_words(options))
    for word in words:
        if word == "-c":
            pair = next(words, "")
        elif word.startswith(("-c", "--")):
            pair = word[2:]
        else:
            raise BadDatabaseUrl(f"{_OPTIONS}: {word!r} cannot be applied")
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadDatabaseUrl(f"{_OPTIONS}: {pair!r} is not name=value")
        name = name.replace("-", "_")
        _require_compatible(name, value)
        yield name, value


def _words(options: str) -> list[str]:
    """Split options as PostgreSQL does (pg_split_opts): at spaces without a backslash."""
    return [re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|[^\s\\])+", options)]


def _require_compatible(name: str, value: str) -> None:
    required = {key.lower(): wanted for key, wanted in {**REQUIRED, **SINCE_17}.items()}
    lower = name.lower()
    if lower == "synchronous_commit":
        fits, wanted = value in DURABLE, " or ".join(DURABLE)
    else:
        wanted = required.get(lower, value)
        fits = value.lower() == wanted.lower()
    if not fits:
        raise BadDatabaseUrl(
            f"{_OPTIONS}: {name}={value} contradicts {name}={wanted}, which Uptrail"
            " relies on: leave it out"
        )


def _service(name: str) -> dict[str, str]:
    """Return the parameters of a service (PostgreSQL manual, 34.17). Raises BadDatabaseUrl."""
    system = Path(os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common")) / "pg_service.conf"
    own = Path(os.environ.get("PGSERVICEFILE", Path.home() / ".pg_service.conf"))
    for file in (own, system):
        parser = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        try:
            parser.read(file)
        except (BadFile, UnicodeDecodeError):
            raise BadDatabaseUrl(f"the service file {file} cannot be read") from None
        if parser.has_section(name):
            return dict(parser.items(name))
    raise BadDatabaseUrl(f"database_url names the service {name!r}, which is in no service file")
