"""`archive`: checks and lists the members of zip and tar files, with limits against bombs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from msgspec import Meta

from application.pipeline import PermanentError, StepContext, StepInput
from infrastructure.processors.archive_child import ZIP
from infrastructure.processors.archive_streams import format_of, zstd
from infrastructure.processors.archive_tar import is_header
from infrastructure.processors.decoder_pool import DecoderLimits, DecoderPool
from infrastructure.processors.input_file import copy_to_file
from infrastructure.processors.options import Options, parse_options

MIB = 1024 * 1024
INSPECT = "infrastructure.processors.archive_child:inspect"
HEAD_BYTES = 512  # bytes that tell what a file is

_TAR_NAMES = (
    *(".tar", ".tgz", ".tar.gz", ".tbz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz"),
    *((".tzst", ".tar.zst") if zstd() else ()),
)

Positive = Annotated[int, Meta(ge=1)]


class ArchiveOptions(Options, frozen=True, kw_only=True):
    """Limits of archives; sizes in bytes, `seconds` of processor time.

    `max_ratio` is how many times the file's own size it may unpack to, `max_nested` how many
    of its members may be archives themselves, `max_depth` how deep archives may be in archives.
    """

    max_members: Positive = 10_000
    max_bytes: Positive = 1024 * MIB
    max_ratio: Positive = 200
    max_nested: Annotated[int, Meta(ge=0)] = 100
    max_depth: Annotated[int, Meta(ge=0, le=50)] = 5
    allow_encrypted: bool = False
    memory: Positive = 512 * MIB
    seconds: Positive = 60


class ArchiveBroken(PermanentError):
    """The archive cannot be read: truncated, malformed, or not an archive at all."""


class ArchiveRuleViolation(PermanentError):
    """The archive is a bomb, leads outside of its folder, or has forbidden content."""

    error_type = "ArchiveRefused"


class ArchiveResourceLimit(PermanentError):
    """The inspection of the archive exceeds its limits of memory or time."""

    error_type = "ArchiveBeyondLimits"


class ArchiveFailed(Exception):
    """The decoder process ended for a reason other than the archive."""


class Archive:
    """The processor; the caller that opened the pool of decoders closes it."""

    def __init__(self, decoders: DecoderPool) -> None:
        self._decoders = decoders

    async def __call__(
        self, subject: StepInput, bench: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return `kind` and the counts of members, bytes, archives inside, links, encrypted
        members.

        A file that is no archive gives `{"skipped": reason}`. Raises the errors above, BadOption.
        """
        chosen = parse_options(ArchiveOptions, options)
        kind, unsure = await _kind(subject, bench)
        if kind is None:
            return {"skipped": "it is no archive"}
        with TemporaryDirectory(prefix="uptrail-archive-") as folder:
            source = Path(folder) / "source"
            await copy_to_file(bench, source)
            order = _order(kind, unsure, subject.size, chosen)
            limits = DecoderLimits(memory=chosen.memory, seconds=chosen.seconds)
            decoded = await self._decoders.run(INSPECT, source, order, limits)
        return _judged(kind, decoded.answer)


def _order(kind: str, unsure: bool, packed: int, chosen: ArchiveOptions) -> dict[str, Any]:
    limits = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    return {**limits, "kind": kind, "unsure": unsure, "packed": packed}


def _judged(kind: str, answer: dict[str, Any]) -> dict[str, Any]:
    if reason := answer.get("broken"):
        raise ArchiveBroken(f"this {kind} cannot be read: {reason}")
    if reason := answer.get("refused"):
        raise ArchiveRuleViolation(reason)
    if reason := answer.get("limit"):
        raise ArchiveResourceLimit(reason)
    if reason := answer.get("failed"):
        raise ArchiveFailed(reason)
    if reason := answer.get("skipped"):
        return {"skipped": reason}
    return {"kind": kind, **answer["found"]}


async def _kind(subject: StepInput, bench: StepContext) -> tuple[str | None, bool]:
    """Return the format of the file, by its bytes first, and whether it may be no archive."""
    head = b"".join([chunk async for chunk in bench.read(0, HEAD_BYTES)])
    name = subject.path.lower()
    if head.startswith(ZIP) or name.endswith(".zip"):
        return "zip", False
    if is_header(head) or head[257:262] == b"ustar" or name.endswith(_TAR_NAMES):
        return "tar", False
    return ("tar", True) if format_of(head) else (None, False)
