from __future__ import annotations

from hashlib import sha256

import pytest

from application.pipeline import PermanentError
from tests.infrastructure.processors.step_context import perform

BIG = bytes(range(256)) * 4000


@pytest.mark.parametrize("content", [b"", b"short", BIG])
def test_the_checksum_is_that_of_the_bytes(content: bytes) -> None:
    result, _ = perform("checksum", content)

    assert result == {"sha256": sha256(content).hexdigest()}


def test_a_big_file_reports_how_far_it_is() -> None:
    _, table = perform("checksum", BIG)

    done = [done for done, _ in table.reported]
    assert done == sorted(done)
    assert table.reported[-1] == (len(BIG), len(BIG))


def test_the_declared_checksum_must_be_met() -> None:
    declared = f"sha256:{sha256(b'what was meant').hexdigest()}"

    perform("checksum", b"what was meant", checksum=declared)
    with pytest.raises(PermanentError, match="declared as sha256:"):
        perform("checksum", b"what arrived", checksum=declared)


def test_bytes_that_went_missing_are_never_taken_for_the_file() -> None:
    with pytest.raises(PermanentError, match="5 bytes are stored, 9 were received"):
        perform("checksum", b"short", size=9)
