"""`POST /v1/batches/{id}/uploads`: files join a batch, by list or one by one over tus."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import msgspec
from aiohttp import web

from application.commands import AddUploads
from application.handlers.uploads import FileResult, add_uploads
from application.transfers.quotas import files_over_quota
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration
from interfaces.common.access import load_batch, require
from interfaces.common.api_types import AddedAnswer, Complaint
from interfaces.common.problems import Problem, json_pointer_of
from interfaces.common.requests import (
    NDJSON_TYPES,
    Query,
    decode,
    iter_ndjson,
    json_body,
    path_id,
    require_content_type,
)
from interfaces.common.routing import UPLOAD_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import NewFiles
from interfaces.rest.idempotency import context_of
from interfaces.uploads import ietf as resumable
from interfaces.uploads import tar as bundles
from interfaces.uploads import tus as tus
from interfaces.uploads.setup import TRANSFERS

CHUNK = 1000  # files recorded together
MANIFESTS = 10  # a request of NDJSON may hold so many times the files of one manifest

_list = msgspec.json.Decoder(NewFiles | tuple[FileDeclaration, ...])
_line = msgspec.json.Decoder(FileDeclaration)


async def add(request: web.Request) -> web.StreamResponse:
    """Each file is judged by itself; one that the batch knows already is left as it is."""
    if tus.is_tus(request):
        return await tus.create(request)
    if resumable.is_ietf(request):
        return await resumable.create(request)
    if bundles.is_bundle(request):
        return await bundles.receive_tar(request)
    require(request, *UPLOAD_SCOPES)
    Query(request, ())
    batch = (await load_batch(request, path_id(request))).id
    adding = Adding(request, batch)
    if request.content_type in NDJSON_TYPES:
        require_content_type(request, *NDJSON_TYPES)
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
        async for line in iter_ndjson(request):
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
        pointer, what = json_pointer_of(error, under=f"/{index}")
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
        scopes=UPLOAD_SCOPES,
        answers={200: AddedAnswer, 201: None},
    ),
)
