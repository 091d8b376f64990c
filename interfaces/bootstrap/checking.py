"""What is judged before a server starts: settings that cannot work are told at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infrastructure.settings import Settings
from infrastructure.settings_fields import BadSetting
from interfaces.bootstrap.role import Role


def check(settings: Settings, roles: Sequence[Role]) -> None:
    """Raises BadSetting for pipelines that the worker of this process could not run, and for
    several processes where none can inherit a socket."""
    if settings.processes > 1 and sys.platform == "win32":
        raise BadSetting("processes must be 1 on Windows")
    if Role.WORKER in roles:
        from infrastructure.processors.registry import check_pipelines, known_options

        check_pipelines(
            settings.pipelines,
            known_options(),
            allow_private_addresses=settings.allow_private_addresses,
        )
        steps = [step for pipeline in settings.pipelines.values() for step in pipeline.steps]
        if any(step.processor == "http" for step in steps) and not _reachable(settings, roles):
            raise BadSetting("public_url must be set: `http` steps tell services to answer there")


def _reachable(settings: Settings, roles: Sequence[Role]) -> bool:
    """Whether services can find the API: where we were told, or on this machine."""
    here = Role.API in roles and settings.port and settings.host in ("127.0.0.1", "localhost")
    return bool(settings.public_url or here)


def reach_us(settings: Settings, roles: Sequence[Role]) -> str:
    """Return the public URL outside of a request: for callbacks of services, and links in webhooks.

    Empty, for links without a host, where none is known. In answers to requests it is
    `interfaces.rest.forwarding.public_url`, which has the request to go by.
    """
    if settings.public_url:
        return settings.public_url.rstrip("/")
    return f"http://{settings.host}:{settings.port}" if _reachable(settings, roles) else ""
