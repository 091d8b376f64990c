"""Compares a table of the live read model with its counterpart in another schema."""

from __future__ import annotations

from typing import Any

import msgspec

from infrastructure.postgres.pool import Connection
from infrastructure.read_model.tables import SCHEMA, metadata

TABLES = ("batches", "uploads", "attempts")


class Difference(msgspec.Struct, frozen=True):
    """One value that is not what the log says.

    `column` is None where the whole row is missing on one side, which is None then.
    """

    table: str
    key: str
    column: str | None
    live: Any
    replayed: Any


class Compared(msgspec.Struct, frozen=True):
    """A table: rows on either side, how many of them differ, and some of the differences."""

    name: str
    rows: int
    differing: int
    differences: list[Difference]


async def compare(connection: Connection, table: str, schema: str, most: int) -> Compared:
    """Compares every row and column; names the differences of up to `most` rows."""
    sides = _Sides(table, schema)
    counted = await (await connection.execute(sides.counts)).fetchone()
    assert counted is not None  # an aggregate always answers
    rows, differing = counted
    differences: list[Difference] = []
    if differing:
        cursor = await connection.execute(sides.differing, (most,))
        for key, live, replayed in await cursor.fetchall():
            differences += _differences(table, key, live, replayed)
    return Compared(table, rows, differing, differences)


class _Sides:
    """The statements over both sides of a table, joined by key."""

    def __init__(self, table: str, schema: str) -> None:
        model = metadata.tables[f"{SCHEMA}.{table}"]
        key = ", ".join(column.name for column in model.primary_key)
        live = ", ".join(f"live.{column.name}" for column in model.columns)
        replayed = ", ".join(f"replayed.{column.name}" for column in model.columns)
        joined = f"{SCHEMA}.{table} AS live FULL JOIN {schema}.{table} AS replayed USING ({key})"
        differ = f"ROW({live}) IS DISTINCT FROM ROW({replayed})"
        # Every name in here is ours.
        self.counts = f"SELECT count(*), count(*) FILTER (WHERE {differ}) FROM {joined}".encode()  # noqa: S608
        self.differing = (
            f"SELECT concat_ws('/', {key}), to_jsonb(live), to_jsonb(replayed)"  # noqa: S608
            f" FROM {joined} WHERE {differ} ORDER BY {key} LIMIT %s"
        ).encode()


def _differences(
    table: str, key: str, live: dict[str, Any] | None, replayed: dict[str, Any] | None
) -> list[Difference]:
    if live is None or replayed is None:
        return [Difference(table, key, None, live, replayed)]
    return [
        Difference(table, key, column, live[column], replayed[column])
        for column in live
        if live[column] != replayed[column]
    ]
