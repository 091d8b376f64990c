"""Check of `uptrail doctor`: restrictions that the decoder sandbox has on this machine."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from infrastructure.processors.decoder_pool import DecoderLimits, DecoderLost, DecoderPool
from interfaces.cli.checks import Finding, Level

CHECK = "decoders"

_PROBE = "infrastructure.processors.sandbox_probe:probe"
_LIMITS = DecoderLimits(memory=512 * 1024 * 1024, seconds=5)
_PATIENCE = 30.0  # seconds


async def sandbox() -> Finding:
    """Try, from inside a decoder's sandbox, what a hostile file would want to do."""
    if sys.platform == "win32":
        detail = "no sandbox on this system"
        return Finding(Level.WARN, CHECK, detail, "let workers run on Linux")
    try:
        async with DecoderPool(most=1) as decoders, asyncio.timeout(_PATIENCE):
            answer = (await decoders.run(_PROBE, b"", {}, _LIMITS)).answer
        return describe(answer)
    except (DecoderLost, OSError, KeyError, TimeoutError) as error:
        detail = f"no decoder can be run: {error or type(error).__name__}"
        return Finding(Level.FAIL, CHECK, detail, "see the server's log for the reason")


def describe(answer: dict[str, Any]) -> Finding:
    """Return the finding for a probe's answer. Raises KeyError for what is none."""
    applied, attempts = answer["applied"], answer["attempts"]
    user = f"uid {answer['uid']}" + ("" if applied["user"] else " (the server's own user)")
    active = [user, "resource limits"]
    absent: list[str] = []
    for name, value in (("seccomp", applied["seccomp"]), ("Landlock", applied["landlock"])):
        version = f" {value}" if value and name == "Landlock" else ""
        (active if value else absent).append(name + version)
    detail = ", ".join(active) + (f"; not in this kernel: {', '.join(absent)}" if absent else "")
    possible = [name.replace("_", " ") for name, refused in attempts.items() if refused is None]
    if answer["uid"] == 0:
        advice = "run uptrail as another user than root, or with the capability to change users"
        return Finding(Level.WARN, CHECK, f"{detail}; decoders run as root", advice)
    if possible:
        advice = "a kernel with seccomp or Landlock (Linux 5.13) denies it; see docs/operating.md"
        return Finding(Level.WARN, CHECK, f"{detail}; can still {', '.join(possible)}", advice)
    return Finding(Level.OK, CHECK, f"{detail}; a probe could do nothing but decode")
