"""A bundle: one request with many files of one batch in it, as a tar archive."""

from __future__ import annotations

import msgspec
from aiohttp import web

from application.handlers.uploads import FileResult
from application.transfer.intake import Intake
from domain.file import FileDeclaration
from interfaces.rest.access import batch_of, require
from interfaces.rest.answers import json_answer
from interfaces.rest.params import Query, id_in
from interfaces.rest.routes import SENDERS
from interfaces.services import SERVICES
from interfaces.uploads.body import require_plain
from interfaces.uploads.bundles.tar import Kind, Member, TarReader
from interfaces.uploads.bytestream import stream_of
from interfaces.uploads.intakes import intake_into, require_few

TYPES = frozenset({"application/x-tar", "application/tar"})


class TakenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each file of a request that carried their bytes, in its order.

    A file is `received`, `known` (all of it was there), or `rejected` for what its `code` says.
    """

    files: tuple[FileResult, ...]
    received: int
    known: int
    rejected: int
    position: int


def is_bundle(request: web.Request) -> bool:
    return request.content_type in TYPES


async def unpack(request: web.Request) -> web.Response:
    """Each member is judged by itself; none is answered before it is durable and on record."""
    principal = require(request, *SENDERS)
    Query(request, ())
    require_plain(request)
    batch = (await batch_of(request, id_in(request))).id
    stream = stream_of(request)
    reader = TarReader(stream)
    async with intake_into(request, batch, principal) as intake:
        while (member := await reader.next()) is not None:
            if member.kind is not Kind.FOLDER:
                require_few(request, intake)
                await _take(intake, member, reader)
        files = await intake.close()
    return await answer(request, files, intake.position)


async def answer(
    request: web.Request, files: tuple[FileResult, ...], position: int
) -> web.Response:
    position = position or await request.app[SERVICES].log.head()
    return json_answer(taken(files, position), position=position)


def taken(files: tuple[FileResult, ...], position: int) -> TakenAnswer:
    statuses = [file.status for file in files]
    return TakenAnswer(
        files=files,
        received=statuses.count("received"),
        known=statuses.count("known"),
        rejected=statuses.count("rejected"),
        position=position,
    )


async def _take(intake: Intake, member: Member, reader: TarReader) -> None:
    file = FileDeclaration(path=member.name, size=member.size)
    if member.kind is Kind.FILE:
        await intake.take(file, reader.chunks())
    else:
        await intake.turn_away(file, "not_a_file", "only plain files are taken")
