"""Options that many commands share, and how they find the settings, the server and the key."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from infrastructure.settings import Settings
from infrastructure.settings_sources import Sourced, load
from interfaces.cli.errors import CommandError, Unreachable, UsageError

CONNECT_TIMEOUT = 10.0  # seconds

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.%]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[^\s?#]*)?")
_COMMON = Group("Common options", sort_key=100)


class Server(msgspec.Struct, frozen=True):
    """Where a server answers, and the key to ask it with."""

    url: str
    key: str


class Running(msgspec.Struct, frozen=True):
    """`server.json` in the data directory: the server that runs there."""

    url: str
    pid: int


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where Uptrail keeps its things on this machine."""

    data_dir: Annotated[Path | None, Parameter(help="Folder for everything Uptrail keeps.")] = None
    config: Annotated[Path | None, Parameter(help="Settings in a TOML file.")] = None

    def sourced(self, **options: Any) -> Sourced:
        """The settings with their origins; `options` are those of the command. BadSetting."""
        return load({"data_dir": self.data_dir, **options}, config=self.config)

    def settings(self, **options: Any) -> Settings:
        return self.sourced(**options).settings


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class Common(Place):
    """Where the server is, and how to print."""

    url: Annotated[
        str | None, Parameter(help="Address of the server; by default the one that runs here.")
    ] = None
    key: Annotated[str | None, Parameter(help="API key; by default the admin key made here.")] = (
        None
    )
    json: Annotated[bool, Parameter(help="Print JSON.", negative="")] = False
    connect_timeout: Annotated[
        float, Parameter(help="Seconds for the server to answer first.", validator=Number(gt=0))
    ] = CONNECT_TIMEOUT

    def server(self) -> Server:
        """The server to ask. Raises Unreachable, UsageError, CommandError."""
        settings = self.settings()
        url = self.url or os.environ.get("UPTRAIL_URL")
        key = self.key or os.environ.get("UPTRAIL_KEY")
        running = running_in(settings.data_dir)
        if url is None and running is None:
            raise Unreachable(
                f"no server runs in {settings.data_dir}",
                "start one with: uptrail serve (or name one with --url)",
            )
        if url is None and running is not None:
            url = running.url
        assert url is not None
        if not _ADDRESS.fullmatch(url):
            raise UsageError(f"{url!r} is no address of a server", "it is like http://host:8080")
        if key is None:
            # The admin key goes to our own server only, never to an address somebody typed.
            if running is None or url.rstrip("/") != running.url:
                raise UsageError(f"{url} needs a key", "pass it with --key or UPTRAIL_KEY")
            key = _admin_key(settings)
        return Server(url.rstrip("/"), key)


def running_in(data_dir: Path) -> Running | None:
    """The server of this data directory, if its process is alive."""
    try:
        running = msgspec.json.decode((data_dir / "server.json").read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None
    return running if is_alive(running.pid) else None


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _admin_key(settings: Settings) -> str:
    try:
        return settings.admin_key_file.read_text().strip()
    except OSError as error:
        raise CommandError(
            f"{settings.admin_key_file} cannot be read: {error.strerror}",
            "pass a key with --key or UPTRAIL_KEY",
        ) from None
