"""`antivirus`: asks clamd; what it finds infected goes to quarantine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from application.pipeline import Permanent, Quarantine, Subject, Workbench
from infrastructure.processors.clamd import BeyondScanner, is_address, scan
from infrastructure.processors.options import Options, parse_options

DEBIAN = "unix:/var/run/clamav/clamd.ctl"  # where Debian's clamd listens


class AntivirusOptions(Options, frozen=True, kw_only=True):
    """Where clamd listens (`unix:/path` or `tcp://host:port`), and how long it may be silent.

    `silence` is in seconds. `too_large` says what becomes of a file that clamd does not take:
    it fails, or the step is skipped.
    """

    address: str = DEBIAN
    silence: Annotated[float, Meta(gt=0)] = 60.0
    too_large: Literal["fail", "skip"] = "fail"

    def __post_init__(self) -> None:
        if not is_address(self.address):
            raise ValueError("`address` must be unix:/path or tcp://host:port")


class Infected(Quarantine):
    """clamd knows this file by a signature."""


class TooLargeToScan(Permanent):
    """clamd does not take a file this large."""


async def antivirus(subject: Subject, bench: Workbench, options: dict[str, Any]) -> dict[str, Any]:
    """Returns `{"clean": True}`, or `{"skipped": why}`.

    Raises Infected with the signature's name, TooLargeToScan, ScannerUnavailable, BadOption.
    """
    chosen = parse_options(AntivirusOptions, options)
    try:
        signature = await scan(chosen.address, _told(subject, bench), chosen.silence)
    except BeyondScanner as error:
        told = f"{subject.size} bytes are more than the virus scanner takes ({error})"
        if chosen.too_large == "skip":
            return {"skipped": told}
        raise TooLargeToScan(f"{told}: raise its StreamMaxLength") from None
    if signature is not None:
        raise Infected(f"{signature} was found")
    return {"clean": True}


async def _told(subject: Subject, bench: Workbench) -> AsyncIterator[bytes]:
    """The bytes, with how far they are."""
    done = 0
    async for chunk in bench.read():
        yield chunk
        done += len(chunk)
        await bench.progress(min(done, subject.size), subject.size)
