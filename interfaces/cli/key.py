"""`uptrail key`: create, list and revoke API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from cyclopts import App

from application.ports.auth import Key
from interfaces.cli import console
from interfaces.cli.client import Client, run_with_client
from interfaces.cli.console import ClientOptions
from interfaces.common.api_types import NewKeyResponse, PageResponse

app = App(name="key", help="Create, list and revoke API keys.")


@app.command
def create(
    *,
    scope: Literal["admin", "operator", "uploader", "viewer"] = "uploader",
    owner: str = "default",
    label: str = "",
    batch: UUID | None = None,
    expires_in: float | None = None,
    common: ClientOptions | None = None,
) -> None:
    """Create a key and print it, once.

    Parameters
    ----------
    scope
        admin: everything; operator: its owner's batches; uploader: send files; viewer: read.
    owner
        The tenant whose batches the key may touch.
    label
        A note for people.
    batch
        Limit the key to this batch.
    expires_in
        Seconds after which it ends.
    """
    common = common or ClientOptions()
    body: dict[str, Any] = {"owner": owner, "scope": scope, "label": label}
    if batch is not None:
        body["batch"] = batch
    if expires_in is not None:
        body["expires_in"] = expires_in

    async def run(client: Client) -> NewKeyResponse:
        return await client.ask("POST", "/v1/keys", NewKeyResponse, json=body)

    created = run_with_client(common, run)
    if common.json:
        console.emit(created)
    else:
        console.print_line(created.text)
        console.print_stderr("keep it: it is shown this once")


@app.command(name="list")
def list_(*, common: ClientOptions | None = None) -> None:
    """List keys; secrets are not kept and cannot be shown."""
    common = common or ClientOptions()

    async def run(client: Client) -> list[Key]:
        return (await client.ask("GET", "/v1/keys", PageResponse[Key])).items

    keys = run_with_client(common, run)
    if common.json:
        console.emit(keys)
        return
    rows = (
        (k.id, k.owner, k.scope, _standing(k), console.format_time(k.created_at), k.label)
        for k in keys
    )
    console.table(("id", "owner", "scope", "state", "created", "label"), rows)


@app.command
def revoke(id: str, *, common: ClientOptions | None = None) -> None:
    """Revoke a key, with immediate effect."""
    common = common or ClientOptions()

    async def run(client: Client) -> None:
        await client.ask("DELETE", f"/v1/keys/{id}", msgspec.Raw)

    run_with_client(common, run)
    if common.json:
        console.emit({"id": id, "revoked": True})
    else:
        console.print_line(f"key {id} is revoked")


def _row(key: Key) -> tuple[str, ...]:
    made = console.format_time(key.created_at)
    return key.id, key.owner, key.scope, _standing(key), made, key.label


def _standing(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None:
        expired = key.expires_at <= datetime.now(key.expires_at.tzinfo)
        return "expired" if expired else f"until {console.format_time(key.expires_at)}"
    return "valid"
