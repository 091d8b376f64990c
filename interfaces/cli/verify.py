"""`uptrail verify`: the log against its seals, the read model against the log, or an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from application.audit.derived import DerivedCheck
from application.audit.export import ExportedSeal, ExportVerification, verify_export
from application.audit.seals import AuditSeal, Finding
from interfaces.cli import console
from interfaces.cli.console import ClientOptions, CommandError, Exit, UsageError
from interfaces.cli.projection import run_with_container
from interfaces.cli.serve import StorageOptions

if TYPE_CHECKING:
    from infrastructure.audit.verifier import SealVerification
    from infrastructure.read_model.rebuild import Verification
    from interfaces.bootstrap.container import Container


def verify(
    *,
    export: Annotated[Path | None, Parameter(name=["--export"])] = None,
    public: Annotated[tuple[Path, ...], Parameter(name=["--public-key"], negative="")] = (),
    seals: Path | None = None,
    store: StorageOptions | None = None,
    common: ClientOptions | None = None,
) -> int:
    """Check that no event was altered, and that derived rows follow from the events.

    Parameters
    ----------
    export
        Check this export by itself, without any database; needs --public-key.
    public
        File with a public key to trust (PEM), as `uptrail seal keys --pem` prints it.
    seals
        File of seals kept outside (`uptrail seal list --json`, or an export): each must
        exist unchanged. With --export, those that the export contains are compared.
    """
    common = common or ClientOptions()
    if export is not None:
        if not public:
            raise UsageError(
                "an export is checked against a public key", "name it with --public-key FILE"
            )
        return _verify_export(export, public, seals, common)

    return run_with_container(
        common, store, lambda parts: _verify_here(parts, public, seals, common)
    )


async def _verify_here(
    parts: Container, public: Sequence[Path], seals: Path | None, common: ClientOptions
) -> int:
    """Verify the seals first: an altered event may be unreadable."""
    from infrastructure.audit.derived import check_derived
    from infrastructure.event_store.codec import UnreadableEvent
    from infrastructure.read_model.rebuild import verify as compare

    sealed = await _check_seals(parts, _keys(public), seals)
    if not common.json:
        _tell_seals(sealed)
    told: dict[str, object] = {"seals": sealed}
    try:
        found = await compare(parts.database.url, parts.log)
        retention = parts.services.settings.webhook_retention
        derived = await check_derived(parts.database.url, parts.codec, retention=retention)
    except UnreadableEvent as error:
        sound, told = False, {**told, "unreadable": str(error)}
        if not common.json:
            console.print_line(f"the log cannot be replayed: {error}")
    else:
        sound = found.sound and derived.sound
        told = {**msgspec.to_builtins(found, enc_hook=str), "derived": derived, **told}
        if not common.json:
            _tell(found)
            _print_derived(derived)
    if common.json:
        console.emit(told)
    return Exit.OK if sound and sealed.sound else Exit.ERROR


def _verify_export(
    export: Path, public: Sequence[Path], seals: Path | None, common: ClientOptions
) -> int:
    from infrastructure.audit.sealer import verify_signature

    try:
        with export.open("rb") as lines:
            kept = () if seals is None else _kept(seals)
            found = verify_export(lines, _keys(public), verify_signature, kept)
    except OSError as error:
        raise CommandError(f"{export} cannot be read: {error.strerror}") from None
    if common.json:
        console.emit(found)
    else:
        _tell_export(found)
    return Exit.OK if found.sound else Exit.ERROR


async def _check_seals(
    parts: Container, trusted: list[bytes], seals: Path | None
) -> SealVerification:
    """Verify the seals with the given public keys and the key of this machine."""
    from infrastructure.audit.sealer import make_last_seal_file, read_key
    from infrastructure.audit.verifier import verify_seals

    settings = parts.services.settings
    with suppress(FileNotFoundError, PermissionError):
        trusted.append(read_key(settings.seal_key_file).public)
    async with parts.pool.connection() as connection:
        return await verify_seals(
            connection,
            trusted,
            seen=make_last_seal_file(settings).seen(),
            published=() if seals is None else _kept(seals),
        )


def _kept(file: Path) -> Iterator[AuditSeal]:
    """Return the seals in the lines of a file. Raises CommandError."""
    try:
        with file.open("rb") as lines:
            for line in lines:
                if b'"type":"seal"' in line[:20]:
                    yield msgspec.json.decode(line, type=ExportedSeal).seal
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{file} holds no seals: {error}") from None


def _keys(files: Sequence[Path]) -> list[bytes]:
    from infrastructure.audit.sealer import InvalidKeyFile, read_public

    try:
        return [read_public(file.read_bytes()) for file in files]
    except (OSError, InvalidKeyFile) as error:
        raise CommandError(f"the public key cannot be read: {error}") from None


def _tell(found: Verification) -> None:
    rows = ", ".join(f"{count} {table}" for table, count in found.compared.items())
    verdict = "the read model is what the log says" if found.sound else "they do not agree"
    console.print_line(f"position {found.position}: compared {rows}; {verdict}")
    for one in found.differences:
        console.print_line(
            f"  {one.table} {one.key}: {one.column} is {one.live}, the log says {one.replayed}"
        )
    for gap in found.breaks:
        console.print_line(f"  {gap}")


def _print_derived(found: DerivedCheck) -> None:
    rows = ", ".join(f"{count} {table}" for table, count in found.checked.items())
    verdict = "they follow from the log" if found.sound else "they do not follow from the log"
    console.print_line(f"position {found.head}: checked {rows}; {verdict}")
    for one in found.findings:
        console.print_line(f"  {one.table} {one.key}: {one.kind.replace('_', ' ')}: {one.detail}")


def _tell_seals(found: SealVerification) -> None:
    verdict = "the log is as it was sealed" if found.sound else "the log is not as it was sealed"
    later = f"; {found.unsealed} later events are under no seal yet" if found.unsealed else ""
    console.print_line(f"{found.seals} seals over {found.events} events: {verdict}{later}")
    _tell_findings(found.findings)


def _tell_export(found: ExportVerification) -> None:
    verdict = "nothing was altered" if found.sound else "this is not as it was sealed"
    whole = "all" if found.whole else "some"
    console.print_line(
        f"{found.of}: {found.events} events ({whole} of seals {found.first_seal} to"
        f" {found.last_seal}, {found.unsealed} under no seal yet); {verdict}"
    )
    if found.at is not None:
        console.print_line(
            f"the last seal is of {found.at.isoformat()}, up to position {found.through};"
            " what came later is not proven"
        )
    _tell_findings(found.findings)


def _tell_findings(findings: Sequence[Finding]) -> None:
    for one in findings:
        console.print_line(f"  position {one.position}: {one.kind.replace('_', ' ')}: {one.detail}")
