"""Position algebra of a feed client, without sockets and without a database."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from application.ports.auth import Principal, Scope
from application.ports.read_model import ChangePage, FeedFilter
from application.views import AttemptView, BatchView, UploadView
from interfaces.feed.connection import (
    START,
    ClientPosition,
    Cursor,
    TokenBucket,
    advance,
    from_cursor,
    parse_cursor,
    reset_reason,
    resolve_subscription,
)
from interfaces.feed.hub import TickEncoder
from interfaces.feed.protocol import JSON, ChangesHead, Reset, SnapshotHead, Subscribe

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE, TWO = uuid4(), uuid4()
VIEWER = Principal(name="key:v", owner="acme", scope=Scope.VIEWER)


def batch(id: UUID, position: int, owner: str = "acme") -> BatchView:
    return BatchView(
        id=id,
        owner=owner,
        started_at=NOW,
        started_by="key:v",
        updated_at=NOW,
        version=1,
        position=position,
        active_at=NOW,
    )


def upload(of: UUID, position: int, owner: str = "acme") -> UploadView:
    return UploadView(
        id=uuid4(),
        batch=of,
        owner=owner,
        path=f"{position}.txt",
        blob="secret/place",
        registered_at=NOW,
        updated_at=NOW,
        version=1,
        position=position,
    )


def attempt(of: UploadView, position: int) -> AttemptView:
    return AttemptView(upload=of.id, number=1, worker="w", started_at=NOW, position=position)


def changes(to: int, *, after: int = 0, head: int | None = None, more: bool = False) -> ChangePage:
    return ChangePage(
        epoch="e", since=after, after=after, to=to, head=to if head is None else head, more=more
    )


@given(st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True), st.integers(0, 10**17))
def test_a_cursor_is_read_as_it_was_written(epoch: str, position: int) -> None:
    assert parse_cursor(str(Cursor(epoch, position))) == Cursor(epoch, position)


@given(st.text(max_size=80))
def test_any_text_is_a_cursor_or_none(text: str) -> None:
    cursor = parse_cursor(text)
    assert cursor is None or cursor.position >= 0


@pytest.mark.parametrize(
    "text", ["", ":", "e:", ":1", "e:1:2", "e:-1", "e:1.0", "é:1", "e:" + "9" * 30]
)
def test_a_cursor_that_was_never_issued_resets(text: str) -> None:
    assert from_cursor(text) == (START, Reset("unreadable"))


def test_a_snapshot_has_parts_and_a_cursor_once_it_is_whole() -> None:
    head, place = advance(START, changes(5, head=9, more=True))
    assert head == SnapshotHead(1, 5, True, None)
    head, place = advance(place, changes(9, after=5))
    assert head == SnapshotHead(2, 9, False, "e:9")
    head, place = advance(place, changes(12, after=9))
    assert head == ChangesHead(9, 12, False, "e:12")
    assert place == ClientPosition("e", 12, 12, None)


def test_a_client_cut_between_pages_of_changes_resumes_before_them() -> None:
    whole = ClientPosition("e", 9, 9, None)
    head, place = advance(whole, changes(12, after=9, head=20, more=True))
    assert (head.cursor, place.position) == ("e:9", 12)
    head, place = advance(place, changes(20, after=12))
    assert head.cursor == "e:20"


def test_rows_of_another_epoch_or_of_the_past_are_not_applied() -> None:
    assert reset_reason(START, changes(5)) is None
    assert reset_reason(ClientPosition("e", 5, 5, None), changes(5)) is None
    assert reset_reason(ClientPosition("other", 5, 5, None), changes(9)) == Reset("rebuilt")
    assert reset_reason(ClientPosition("e", 6, 6, None), changes(5)) == Reset("ahead")


def test_a_tick_gives_each_only_what_it_follows_and_may_see() -> None:
    mine, theirs = upload(ONE, 3), upload(TWO, 4, owner="rival")
    everything = ChangePage(
        epoch="e",
        since=0,
        after=0,
        to=6,
        head=6,
        more=False,
        batches=[batch(ONE, 5), batch(TWO, 6, owner="rival")],
        uploads=[mine, theirs],
        attempts=[attempt(mine, 2), attempt(theirs, 4)],
    )
    tick = TickEncoder(everything, JSON)
    start = ClientPosition("e", 0, 0, None)
    both = frozenset({ONE, TWO})

    star = tick.rows_for(FeedFilter("acme", None), start) or b""
    assert str(ONE).encode() in star
    assert str(TWO).encode() not in star
    assert mine.path.encode() not in star
    greedy = tick.rows_for(FeedFilter("acme", both, both), start) or b""
    assert mine.path.encode() in greedy
    assert theirs.path.encode() not in greedy
    assert str(theirs.id).encode() not in greedy
    assert b"secret" not in greedy
    admin = tick.rows_for(FeedFilter(None, both, both), start) or b""
    assert theirs.path.encode() in admin


def test_a_tick_repeats_no_change() -> None:
    row = upload(ONE, 3)
    following = FeedFilter("acme", frozenset({ONE}), frozenset({ONE}))
    tick = TickEncoder(ChangePage("e", 0, 0, 6, 6, False, [], [row], [attempt(row, 3)]), JSON)

    assert tick.rows_for(following, ClientPosition("e", 3, 3, None)) is None
    assert tick.rows_for(following, ClientPosition("e", 2, 2, None)) is not None
    first = tick.rows_for(following, ClientPosition("e", 0, 0, None))
    assert tick.rows_for(following, ClientPosition("e", 0, 0, None)) is first


def test_a_limited_key_follows_its_batch_whatever_it_asks() -> None:
    limited = Principal(name="key:l", owner="acme", scope=Scope.UPLOADER, batch=ONE)
    assert resolve_subscription(Subscribe("*"), limited).selection.batches == frozenset({ONE})
    asked = resolve_subscription(Subscribe([str(ONE), str(TWO)]), limited)
    assert asked.selection.uploads_of == frozenset({ONE})
    assert len(asked.initial_frames) == 1


@given(st.lists(st.one_of(st.uuids().map(str), st.text(max_size=40)), max_size=20))
def test_a_subscription_is_accepted_or_refused_by_name(names: list[str]) -> None:
    settled = resolve_subscription(Subscribe(names), VIEWER)
    assert len(settled.selection.uploads_of) + len(settled.initial_frames) <= len(names)
    assert settled.selection.owner == "acme"
    refused = {error.batch for error in settled.initial_frames}  # type: ignore[attr-defined]
    followed = settled.selection.uploads_of
    for name in names:
        assert name in refused or UUID(name) in followed


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    allowance = TokenBucket(burst=2, rate=0.5, now=0.0)
    assert [allowance.take(0.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(2.0), allowance.take(2.0)] == [True, False]
