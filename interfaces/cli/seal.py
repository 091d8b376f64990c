"""`uptrail seal`: the chain of signed seals over the log, and the keys that sign it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import App, Parameter

from application.audit.export import SealLine
from application.audit.seal import Seal
from application.ports.seals import SigningKey
from interfaces.cli import output
from interfaces.cli.client import Client, Page
from interfaces.cli.errors import CommandError
from interfaces.cli.options import Common
from interfaces.cli.records import with_parts
from interfaces.cli.running import PATIENCE, ask
from interfaces.cli.serve import Store

if TYPE_CHECKING:
    from interfaces.bootstrap.parts import Parts

app = App(name="seal", help="Read and make the signed seals over the log.")

_HEAD = ("number", "positions", "events", "when", "digest")


@app.command(name="list")
def list_(*, after: int = 0, common: Common | None = None) -> None:
    """Print the seals beyond this number; with --json one a line, to be kept elsewhere."""
    common = common or Common()

    async def run(client: Client) -> None:
        params = {"after": str(after)}
        if not common.json:
            output.say("  ".join(name.upper() for name in _HEAD))
        async for seal in client.pages("/v1/seals", Seal, params, cursor="after"):
            if common.json:
                output.emit(SealLine(seal=seal))
            else:
                output.say("  ".join(map(str, _row(seal))))

    ask(common, run, patience=PATIENCE)


@app.command
def keys(
    *, pem: Annotated[bool, Parameter(negative="")] = False, common: Common | None = None
) -> None:
    """Print the public keys; `--pem` the one that signs now, as `verify --public-key` reads it."""
    common = common or Common()

    async def run(client: Client) -> list[SigningKey]:
        page = await client.ask("GET", "/v1/seals/keys", Page)
        return [msgspec.json.decode(item, type=SigningKey) for item in page.items]

    found = ask(common, run)
    if common.json:
        output.emit(found)
    elif pem and not found:
        raise CommandError("no seal was made yet", "make one with: uptrail seal now")
    elif pem:
        print(found[-1].pem, end="", flush=True)
    else:
        for key in found:
            output.say(f"from seal {key.first_seal} on:")
            print(key.pem, end="", flush=True)


@app.command
def now(*, store: Store | None = None, common: Common | None = None) -> None:
    """Seal what was recorded since the last seal, without waiting for the next."""
    _seal(store, common or Common(), rotate=False)


@app.command
def rotate(*, store: Store | None = None, common: Common | None = None) -> None:
    """Make a new key, which the old one vouches for. Run it where the key file is."""
    _seal(store, common or Common(), rotate=True)


def _seal(store: Store | None, common: Common, *, rotate: bool) -> None:
    async def run(parts: Parts) -> None:
        from infrastructure.audit.sealing import MOST, sealer_of

        sealer = sealer_of(parts.services.settings, parts.services.now)
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
                output.say(f"from seal {first.number} on, a new key signs")
                return
            while seal := await sealer.seal(connection):
                events += seal.count
                if seal.count < MOST:
                    break
        output.say(f"{events} events sealed" if events else "everything is sealed already")

    with_parts(common, store, run)


def _row(seal: Seal) -> tuple[object, ...]:
    reach = f"{seal.after + 1}-{seal.through}"
    return seal.number, reach, seal.count, output.moment(seal.at), seal.digest.hex()
