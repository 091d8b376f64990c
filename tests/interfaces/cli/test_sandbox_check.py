from __future__ import annotations

from typing import Any

import pytest

from interfaces.cli.doctor import Level, describe


def answer(
    uid: int = 65534, *, user: bool = True, landlock: int = 7, seccomp: bool = True, **attempts: Any
) -> dict[str, Any]:
    applied = {"user": user, "landlock": landlock, "seccomp": seccomp}
    return {"uid": uid, "applied": applied, "attempts": {"read_file": "OSError", **attempts}}


@pytest.mark.parametrize(
    ("found", "level", "detail"),
    [
        (answer(), Level.OK, "uid 65534, resource limits, seccomp, Landlock 7; a probe could do"),
        (answer(1000, user=False), Level.OK, "uid 1000 (the server's own user)"),
        (answer(landlock=0), Level.OK, "not in this kernel: Landlock"),
        (answer(0, user=False), Level.WARN, "decoders run as root"),
        (
            answer(seccomp=False, landlock=0, read_file=None, open_socket=None),
            Level.WARN,
            "not in this kernel: seccomp, Landlock; can still read file, open socket",
        ),
    ],
)
def test_a_finding_names_what_is_active_and_what_a_decoder_could_still_do(
    found: dict[str, Any], level: Level, detail: str
) -> None:
    finding = describe(found)

    assert (finding.level, bool(finding.advice)) == (level, level is Level.WARN)
    assert detail in finding.detail
