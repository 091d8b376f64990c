"""Array parameters in PostgreSQL's binary format, joined at once instead of item by item.

Format: `array_send` in PostgreSQL's src/backend/utils/adt/arrayfuncs.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import ClassVar
from uuid import UUID

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = Struct("!iiIii").pack  # dimensions, has nulls, type of items, length, lower bound
_LENGTH = Struct("!i").pack
_BIGINT = Struct("!iq").pack


class Array(bytes):
    """An array as it travels; `oid` is its type."""

    oid: ClassVar[int]


class Uuids(Array):
    """A `uuid[]`."""

    oid = 2951


class Bigints(Array):
    """A `bigint[]`."""

    oid = 1016


class Texts(Array):
    """A `text[]`."""

    oid = 1009


class Byteas(Array):
    """A `bytea[]`."""

    oid = 1001


def uuids(items: Iterable[UUID]) -> Uuids:
    return Uuids(_array(2950, [b"\0\0\0\x10" + item.bytes for item in items]))


def bigints(items: Iterable[int]) -> Bigints:
    return Bigints(_array(20, [_BIGINT(8, item) for item in items]))


def texts(items: Iterable[str]) -> Texts:
    return Texts(_array(25, [_sized(item.encode()) for item in items]))


def byteas(items: Iterable[bytes]) -> Byteas:
    return Byteas(_array(17, [_sized(item) for item in items]))


def _sized(item: bytes) -> bytes:
    return _LENGTH(len(item)) + item


def _array(item_type: int, items: list[bytes]) -> bytes:
    if not items:
        return _LENGTH(0) + _LENGTH(0) + _LENGTH(item_type)
    return _HEADER(1, 0, item_type, len(items), 1) + b"".join(items)


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return obj


for _array_type in (Uuids, Bigints, Texts, Byteas):
    _dumper = type(f"{_array_type.__name__}Dumper", (_AsItIs,), {"oid": _array_type.oid})
    psycopg.adapters.register_dumper(_array_type, _dumper)
