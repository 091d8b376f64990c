"""Selection and batching of clients in one tick, without sockets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from application.ports.read_model import ChangePage
from interfaces.feed.hub import MAX_CPU_SHARE, MAX_PERIOD, adaptive_period
from interfaces.feed.registry import split_pages
from tests.interfaces.feed.test_client_position import ONE, TWO, attempt, batch, upload


def changed(uploads: int, batches: int, *, more: bool) -> ChangePage:
    rows = [upload(ONE, 11 + 2 * n) for n in range(uploads)]
    return ChangePage(
        epoch="e",
        since=3,
        after=10,
        to=200,
        head=900,
        more=more,
        batches=[batch(TWO, 12 + 2 * n) for n in range(batches)],
        uploads=rows,
        attempts=[attempt(row, row.position - 5) for row in rows[::2]],
    )


@given(st.integers(0, 40), st.integers(0, 10), st.integers(1, 12), st.booleans())
def test_parts_are_short_pages_that_follow_each_other(
    uploads: int, batches: int, most: int, more: bool
) -> None:
    whole = changed(uploads, batches, more=more)
    parts = list(split_pages(whole, [uploads, batches], most))

    for kind in ("batches", "uploads", "attempts"):
        sent = [row for part in parts for row in getattr(part, kind)]
        assert sent == list(getattr(whole, kind))
    assert [part.after for part in parts] == [10, *(part.to for part in parts[:-1])]
    assert parts[-1].to == 200
    assert all(part.after < part.to for part in parts)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [more]
    assert {(part.since, part.head, part.epoch) for part in parts} == {(3, 900, "e")}
    if max(uploads, batches) <= most:
        assert parts == [whole]
    else:
        assert max(len(part.batches) + len(part.uploads) for part in parts) <= most
    homes = [{row.id for row in part.uploads} for part in parts]
    for part, home in zip(parts, homes, strict=True):
        assert {row.upload for row in part.attempts} <= home


def test_a_tick_that_takes_more_than_its_share_comes_less_often() -> None:
    assert adaptive_period(0.1, 0.001) == 0.1
    assert adaptive_period(0.1, 0.05) == 0.05 / MAX_CPU_SHARE
    assert adaptive_period(0.1, 5.0) == MAX_PERIOD
    assert adaptive_period(2.0, 5.0) == 2.0
