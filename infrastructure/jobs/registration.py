"""Whether the queue still knows a worker, which it forgets when it takes it for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException

_KNOWN = "SELECT EXISTS (SELECT FROM procrastinate_workers WHERE id = %(id)s) AS known"


class Forgotten(Exception):
    """This worker was silent for too long, as on a machine that slept: others have its work."""


async def stay_known(
    app: procrastinate.App, worker: Callable[[], int | None], interval: float
) -> None:
    """Looks every `interval` seconds until cancelled; `worker` gives its id, once it has one.

    Raises Forgotten. A server that cannot be reached says nothing about that.
    """
    while True:
        await asyncio.sleep(interval)
        if (id := worker()) is None:
            continue
        with suppress(ConnectorException, psycopg.Error, OSError):
            row = await app.connector.execute_query_one_async(_KNOWN, id=id)
            if not row["known"]:
                raise Forgotten(f"the queue has forgotten worker {id}")
