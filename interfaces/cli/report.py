"""`uptrail batch report`: what became of every file of a batch, for a program or a spreadsheet."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from interfaces.cli.client import Client
from interfaces.cli.options import Common
from interfaces.cli.running import ask


def report(
    id: str,
    *,
    format: Literal["json", "ndjson", "csv"] = "csv",
    only: Literal["failed"] | None = None,
    to: Path | None = None,
    common: Common | None = None,
) -> None:
    """Write what became of every file of a batch.

    Parameters
    ----------
    format
        How: csv for spreadsheets, json with a summary of the reasons, ndjson for programs.
    only
        Only the files that failed, were held back or rejected.
    to
        A file; by default standard output.
    """
    common = common or Common()
    format = "json" if common.json else format
    params = {"only": only} if only else {}

    async def run(client: Client) -> None:
        with nullcontext(sys.stdout.buffer) if to is None else to.open("wb") as file:
            async for piece in client.download(f"/v1/batches/{id}/report.{format}", params):
                file.write(piece)
            file.flush()

    ask(common, run)
