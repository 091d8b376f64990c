from __future__ import annotations

from uuid import UUID

from msgspec.structs import replace

from application.orchestrator.members import Member
from application.orchestrator.suspecting import Suspects
from domain.upload.state import UploadState

LEFT = Member(
    upload=UUID(int=1), batch=UUID(int=9), owner="acme", state=UploadState.PROCESSING, version=4
)
GONE_ON = replace(LEFT, upload=UUID(int=2))


def test_who_is_found_for_the_first_time_may_just_have_been_done() -> None:
    assert Suspects().confirmed([LEFT, GONE_ON]) == []


def test_who_stands_where_it_stood_at_the_last_look_is_lost() -> None:
    suspects = Suspects()
    suspects.confirmed([LEFT, GONE_ON])

    assert suspects.confirmed([LEFT, replace(GONE_ON, version=5)]) == [LEFT]


def test_only_the_last_look_counts() -> None:
    suspects = Suspects()
    suspects.confirmed([LEFT])
    suspects.confirmed([])

    assert suspects.confirmed([LEFT]) == []
