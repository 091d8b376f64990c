"""`uptrail seal`: the chain of signed seals over the log, and the keys that sign it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from application.audit.export import ExportedSeal
from application.audit.seals import AuditSeal
from application.ports.audit import SigningKey
from interfaces.cli import console
from interfaces.cli.client import SILENCE_TIMEOUT, Client, run_with_client
from interfaces.cli.console import ClientOptions, CommandError
from interfaces.cli.projection import run_with_container
from interfaces.cli.serve import StorageOptions
from interfaces.common.api_types import PageResponse

if TYPE_CHECKING:
    from interfaces.bootstrap.container import Container

app = App(name="seal", help="Read and make the signed seals over the log.")

_HEAD = ("number", "positions", "events", "when", "digest")


@app.command(name="list")
def list_(*, after: int = 0, common: ClientOptions | None = None) -> None:
    """Print the seals beyond this number; with --json one per line, to keep outside."""
    common = common or ClientOptions()

    async def run(client: Client) -> None:
        params = {"after": str(after)}
        if not common.json:
            console.print_line("  ".join(name.upper() for name in _HEAD))
        async for seal in client.pages("/v1/seals", AuditSeal, params, cursor="after"):
            if common.json:
                console.emit(ExportedSeal(seal=seal))
            else:
                console.print_line("  ".join(map(str, _row(seal))))

    run_with_client(common, run, patience=SILENCE_TIMEOUT)


@app.command
def keys(
    *, pem: Annotated[bool, Parameter(negative="")] = False, common: ClientOptions | None = None
) -> None:
    """Print the public keys; `--pem` the one that signs now, as `verify --public-key` reads it."""
    common = common or ClientOptions()

    async def run(client: Client) -> list[SigningKey]:
        return (await client.ask("GET", "/v1/seals/keys", PageResponse[SigningKey])).items

    found = run_with_client(common, run)
    if common.json:
        console.emit(found)
    elif pem and not found:
        raise CommandError("no seal was made yet", "make one with: uptrail seal now")
    elif pem:
        print(found[-1].pem, end="", flush=True)
    else:
        for key in found:
            console.print_line(f"from seal {key.first_seal} on:")
            print(key.pem, end="", flush=True)


@app.command
def now(*, store: StorageOptions | None = None, common: ClientOptions | None = None) -> None:
    """Seal the events recorded since the last seal now."""
    _seal(store, common or ClientOptions(), rotate=False)


@app.command
def rotate(*, store: StorageOptions | None = None, common: ClientOptions | None = None) -> None:
    """Create a new signing key, signed by the old one. Run it where the key file is."""
    _seal(store, common or ClientOptions(), rotate=True)


def _seal(store: StorageOptions | None, common: ClientOptions, *, rotate: bool) -> None:
    async def run(parts: Container) -> None:
        from infrastructure.audit.sealer import MAX_SEAL_EVENTS, make_sealer

        sealer = make_sealer(parts.services.settings, parts.services.now)
        file = parts.services.settings.seal_key_file
        if not file.exists() and await parts.services.seals.page(0, 1):
            raise CommandError(
                f"the key that seals is not on this machine: there is no {file}",
                "run it where the orchestrator runs, or name the file: UPTRAIL_SEAL_KEY",
            )
        events = 0
        async with parts.pool.connection() as connection:
            if rotate:
                first = await sealer.rotate(connection)
                console.print_line(f"from seal {first.number} on, a new key signs")
                return
            while seal := await sealer.seal(connection):
                events += seal.count
                if seal.count < MAX_SEAL_EVENTS:
                    break
        console.print_line(f"{events} events sealed" if events else "everything is sealed already")

    run_with_container(common, store, run)


def _row(seal: AuditSeal) -> tuple[object, ...]:
    reach = f"{seal.after + 1}-{seal.through}"
    return seal.number, reach, seal.count, console.format_time(seal.at), seal.digest.hex()
