"""Cursors that clients hold while a server is upgraded, as `docs/formats.md` states them.

The expected texts were computed from that page with `base64`, never with the product.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from infrastructure.read_model.queries import AfterBatch, AfterUpload, from_cursor, to_cursor
from interfaces.feed.connection import ClientPosition, Cursor, parse_cursor

ID = UUID("019b0000-0000-7000-8000-00000000000b")

PAGE_CURSORS: list[tuple[AfterBatch | AfterUpload, str]] = [
    (
        AfterBatch(datetime(2026, 1, 1, 12, tzinfo=UTC), ID),
        "WyJiIiwiMjAyNi0wMS0wMVQxMjowMDowMFoiLCIwMTliMDAwMC0wMDAwLTcwMDAtODAwMC0wMDAwMDAwMDAwMGIiXQ",
    ),
    (
        AfterBatch(datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC), ID),
        "WyJiIiwiMjAyNi0wMS0wMVQxMjowMDowMC4yNTAwMDBaIiwiMDE5YjAwMDAtMDAwMC03MDAwLTgwMDAtMDAwMDAwMDAw"
        "MDBiIl0",
    ),
    (
        AfterUpload("R\u00f6mer/~.jpg", ID),
        "WyJ1IiwiUsO2bWVyL34uanBnIiwiMDE5YjAwMDAtMDAwMC03MDAwLTgwMDAtMDAwMDAwMDAwMDBiIl0",
    ),
]


@pytest.mark.parametrize(
    ("place", "text"), PAGE_CURSORS, ids=["batch", "batch with a fraction", "upload"]
)
def test_a_cursor_of_a_page_is_that_of_the_manual(
    place: AfterBatch | AfterUpload, text: str
) -> None:
    assert to_cursor(place) == text
    assert from_cursor(text, type(place)) == place


@pytest.mark.parametrize(
    ("cursor", "text"),
    [
        (
            Cursor("c221f1f1-688c-42d8-b60e-98c573c409df", 12),
            "c221f1f1-688c-42d8-b60e-98c573c409df:12",
        ),
        (Cursor("0", 999_999_999_999_999_999), "0:999999999999999999"),
    ],
)
def test_a_cursor_of_the_feed_is_that_of_the_manual(cursor: Cursor, text: str) -> None:
    assert str(cursor) == text
    assert parse_cursor(text) == cursor


def test_a_client_resumes_from_the_end_of_its_last_complete_frame() -> None:
    """Attempts are behind the rows while a frame is cut: they would be lost beyond `position`."""
    progress = ClientPosition("c221", position=20, attempts_position=12, part=None)

    assert progress.cursor == "c221:12"


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "c221", "c221:", "c221:-1", "c221:1.0", "c221:1\n"),
        *("c 1:1", "\u00e9:1", "c:\u0661", "c" * 65 + ":1", "c221:" + "9" * 19),
    ],
)
def test_a_text_that_no_server_sent_is_no_cursor(text: str) -> None:
    assert parse_cursor(text) is None
