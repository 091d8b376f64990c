"""What a server tells when it is up: where it answers, and how to sign in."""

from __future__ import annotations

import msgspec

from infrastructure.auth.admin_key import ensure_admin_key
from infrastructure.auth.keys import PostgresKeys
from infrastructure.settings import Settings
from interfaces.bootstrap.door import Door
from interfaces.bootstrap.role import Role

LOGIN_LIFETIME = 600.0  # seconds for which the printed link can be used, once


class Ready(msgspec.Struct, frozen=True):
    """A server that answers: where, and how to sign in. `url` is None without the role api."""

    url: str | None
    login: str | None
    roles: tuple[Role, ...]


async def invite(keys: PostgresKeys, settings: Settings, door: Door) -> str | None:
    """A link that signs a browser in, once; None where the admin key was revoked."""
    text = await ensure_admin_key(keys, settings.admin_key_file)
    principal = await keys.authenticate(text)
    if principal is None:
        return None
    code = await keys.issue_login(principal, lifetime=LOGIN_LIFETIME)
    base_url = (settings.public_url or door.url).rstrip("/")
    return f"{base_url}/login?code={code}"
