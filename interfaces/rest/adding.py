"""`POST /v1/batches/{id}/uploads`: files join a batch, by list or one by one over tus."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import msgspec
from aiohttp import web

from application.commands import AddUploads
from application.handlers.uploads import FileResult, add_uploads
from application.transfer.declaring import files_over_quota
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration
from interfaces.rest.access import batch_of, require
from interfaces.rest.answers import AddedAnswer, json_answer
from interfaces.rest.bodies import NDJSON_TYPES, decode, expect_media, json_body, lines
from interfaces.rest.forms import NewFiles
from interfaces.rest.idempotency import context_of
from interfaces.rest.params import Query, id_in
from interfaces.rest.pointers import locate
from interfaces.rest.problems import Complaint, Problem
from interfaces.rest.routes import SENDERS, Operation
from interfaces.services import SERVICES
from interfaces.uploads.bundles import request as bundles
from interfaces.uploads.resumable import resource as resumable
from interfaces.uploads.serving import TRANSFERS
from interfaces.uploads.tus import resource as tus

CHUNK = 1000  # files recorded together
MANIFESTS = 10  # a request of NDJSON may hold so many times the files of one manifest

_list = msgspec.json.Decoder(NewFiles | tuple[FileDeclaration, ...])
_line = msgspec.json.Decoder(FileDeclaration)


async def add(request: web.Request) -> web.StreamResponse:
    """Each file is judged by itself; one that the batch knows already is left as it is."""
    if tus.speaks_tus(request):
        return await tus.create(request)
    if resumable.speaks_ietf(request):
        return await resumable.create(request)
    if bundles.is_bundle(request):
        return await bundles.unpack(request)
    require(request, *SENDERS)
    Query(request, ())
    batch = (await batch_of(request, id_in(request))).id
    adding = Adding(request, batch)
    if request.content_type in NDJSON_TYPES:
        expect_media(request, *NDJSON_TYPES)
        await _add_lines(request, adding)
    else:
        form = await json_body(request, _list)
        await _add_list(adding, form.files if isinstance(form, NewFiles) else form)
    return json_answer(await adding.answer(), position=adding.position)


class Adding:
    """One request's files, recorded chunk by chunk."""

    def __init__(self, request: web.Request, batch: UUID) -> None:
        self._services = request.app[SERVICES]
        self._request = request
        self._batch = batch
        self._results: list[FileResult] = []
        self.position = 0

    @property
    def limit(self) -> int:
        """Most files of one manifest."""
        return self._services.settings.max_manifest_files

    async def record(self, files: list[FileDeclaration]) -> None:
        largest, log = self._services.settings.max_file_size, self._services.log
        quotas = self._request.app[TRANSFERS].quotas
        command = AddUploads(
            batch=self._batch,
            files=tuple(files),
            max_size=largest,
            over_quota=await files_over_quota(log, quotas, self._batch, files, largest),
        )
        added = await add_uploads(log, command, context_of(self._request))
        self._results += added.files
        self.position = max(self.position, added.position)

    async def answer(self) -> AddedAnswer:
        self.position = self.position or await self._services.log.head()
        count = Counter(file.status for file in self._results)
        return AddedAnswer(
            files=self._results,
            added=count["added"],
            known=count["known"],
            rejected=count["rejected"],
            position=self.position,
        )


async def _add_list(adding: Adding, files: tuple[FileDeclaration, ...]) -> None:
    if len(files) > adding.limit:
        raise ValidationFailed(
            FieldError("files", f"must hold at most {adding.limit} files, not {len(files)}")
        )
    for start in range(0, len(files), CHUNK):
        await adding.record(list(files[start : start + CHUNK]))


async def _add_lines(request: web.Request, adding: Adding) -> None:
    """The lines as they arrive; one that cannot be read ends it, and says what was taken."""
    files: list[FileDeclaration] = []
    count = 0
    try:
        async for line in lines(request):
            if count >= MANIFESTS * adding.limit:
                raise Problem(413, "too_large", f"send at most {count} files in one request")
            files.append(_declared(line, count))
            count += 1
            if len(files) == CHUNK:
                await adding.record(files)
                files = []
    except Problem as problem:
        taken = count - len(files)
        problem.detail += f"; the {taken} files before were taken, send all again when it is mended"
        raise
    if files:
        await adding.record(files)


def _declared(line: bytes, index: int) -> FileDeclaration:
    """Raises a Problem whose pointer begins with the line's index among those not blank."""
    try:
        return decode(line, _line)
    except msgspec.ValidationError as error:
        pointer, what = locate(error, under=f"/{index}")
        raise Problem(
            422, "invalid", f"{pointer}: {what}", errors=[Complaint(pointer, what)]
        ) from None
    except Problem as problem:
        problem.errors = (Complaint(f"/{index}", problem.detail),)
        raise


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/batches/{id}/uploads",
        handler=add,
        summary="Add files to an open batch: a list, NDJSON, a tar archive, or one by tus creation",
        body=NewFiles | tuple[FileDeclaration, ...],
        scopes=SENDERS,
        answers={200: AddedAnswer, 201: None},
    ),
)
