"""Starting batches and adding files over HTTP, from manifests.

`POST /v1/batches` starts a batch, with its whole manifest or without; as a form, with its files.
`POST /v1/batches/{id}/uploads` adds files: by list, or one by one over an upload protocol.
"""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import msgspec
from aiohttp import web

from application.commands import AddUploads, StartBatch
from application.handlers.batches import StartBatchResult, start_batch
from application.handlers.uploads import FileResult, add_uploads
from application.ports.auth import Principal, Scope
from application.transfers.errors import BatchFull, QuotaExceeded
from application.transfers.quotas import files_over_quota
from domain.batch.aggregate import MAX_LABEL
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration, has_control_characters
from domain.ids import batch_id_for, upload_id_for
from infrastructure.settings import Settings
from interfaces.common.access import load_batch, reject_batch_scoped_key, require
from interfaces.common.api_types import (
    AddedUploadsResponse,
    FieldProblem,
    NewBatch,
    RequestBody,
    RetryOptions,
    StartedBatchResponse,
)
from interfaces.common.forwarded import public_url
from interfaces.common.idempotency import command_context, idempotency_key, request_fingerprint
from interfaces.common.operations import UPLOAD_SCOPES, Operation
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
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.uploads import forms, tus
from interfaces.uploads import ietf as resumable
from interfaces.uploads import tar as bundles
from interfaces.uploads.ietf_protocol import is_ietf
from interfaces.uploads.setup import TRANSFERS, transfer_problem
from interfaces.uploads.tus_protocol import is_tus

CHUNK_FILES = 1000
"""Files of a list that are recorded in one append."""

MAX_NDJSON_MANIFESTS = 10
"""An NDJSON request may hold this many times `max_manifest_files`."""


class NewFiles(RequestBody, frozen=True, kw_only=True):
    """Files to add to a batch."""

    files: tuple[FileDeclaration, ...]


_batch_decoder = msgspec.json.Decoder(NewBatch)
_list_decoder = msgspec.json.Decoder(NewFiles | tuple[FileDeclaration, ...])
_line_decoder = msgspec.json.Decoder(FileDeclaration)


async def create_batch(request: web.Request) -> web.Response:
    """Start a batch: 201, or 200 with the first one if the Idempotency-Key is known."""
    if forms.is_form(request):
        return await forms.create_batch_from_form(request)
    principal = require(request, *UPLOAD_SCOPES)
    reject_batch_scoped_key(principal)
    Query(request, ())
    services = request.app[SERVICES]
    form = await json_body(request, _batch_decoder)
    _check_limits(form, services.settings)
    owner, key = resolve_owner(form.owner, principal), idempotency_key(request)
    if form.notify is not None and not await services.webhooks.named(owner, form.notify):
        raise ValidationFailed(
            FieldError("notify", "must be the id or address of a webhook that was added")
        )
    command = StartBatch(
        id=batch_id_for(owner, key, services.log.id_secret) if key else services.new_id(),
        owner=owner,
        label=form.label,
        pipeline=form.pipeline,
        retry_policy=(form.retry_policy or RetryOptions()).applied_to(
            services.settings.retry_policy_of(form.pipeline)
        ),
        priority=form.priority,
        failure_threshold=form.failure_threshold,
        notify=form.notify,
        metadata=form.metadata,
        fingerprint=request_fingerprint(form) if key else "",
        files=form.files,
        seal=form.seal,
    )
    await _reserve_quota(request, command)
    started = await start_batch(services.log, command, command_context(request))
    position = started.position or await services.log.head()
    response = _response(started, form, position, services.log.id_secret)
    headers = {"Location": public_url(request, f"/v1/batches/{response.id}")}
    status = 201 if started.created else 200
    return json_response(response, status=status, position=position, headers=headers)


def _check_limits(form: NewBatch, settings: Settings) -> None:
    """Raise ValidationFailed for a batch that the server's settings do not allow."""
    faults = []
    if form.pipeline not in settings.pipelines:
        known = ", ".join(sorted(settings.pipelines))
        faults.append(FieldError("pipeline", f"is not known here; known: {known}"))
    if len(form.files) > settings.max_manifest_files:
        limit = settings.max_manifest_files
        faults.append(
            FieldError("files", f"must hold at most {limit} files, not {len(form.files)}")
        )
    else:
        largest = settings.max_file_size
        faults += [
            FieldError(f"files/{index}/size", f"must be at most {largest} bytes")
            for index, file in enumerate(form.files)
            if file.size is not None and file.size > largest
        ]
    if form.owner is not None and has_control_characters(form.owner):
        faults.append(FieldError("owner", f"must be at most {MAX_LABEL} printable characters"))
    if faults:
        raise ValidationFailed(*faults)


async def _reserve_quota(request: web.Request, command: StartBatch) -> None:
    """Raise a 413 Problem for more than a batch may hold, 507 for more than the owner may store."""
    quotas, log = request.app[TRANSFERS].quotas, request.app[SERVICES].log
    if not command.files or quotas.unlimited:
        return
    if command.fingerprint and await log.versions([command.id]):
        return  # a repetition: counted by the first request
    size = sum(file.size or 0 for file in command.files)
    try:
        await quotas.admit(command.owner, command.id, size, len(command.files))
    except (BatchFull, QuotaExceeded) as error:
        raise transfer_problem(error) from error


def resolve_owner(wanted: str | None, principal: Principal) -> str:
    """Return the owner of a new object. Raises a 403 Problem if not an admin names another."""
    if wanted in (None, principal.owner):
        return principal.owner
    if principal.scope is not Scope.ADMIN:
        complaint = FieldProblem("/owner", "only an admin acts for other owners")
        raise Problem(403, "scope_missing", complaint.detail, errors=[complaint])
    assert wanted is not None
    return wanted


def _response(
    started: StartBatchResult, form: NewBatch, position: int, secret: bytes
) -> StartedBatchResponse:
    batch = started.batch
    return StartedBatchResponse(
        id=batch.id,
        owner=batch.owner,
        label=batch.label,
        state=batch.state,
        pipeline=batch.pipeline,
        priority=batch.priority,
        started_at=batch.started_at,
        version=batch.version,
        # The ids are derived from the paths: the response to a repetition has the same ones.
        uploads=tuple(upload_id_for(batch.id, file.path, secret) for file in form.files),
        position=position,
    )


async def add_files(request: web.Request) -> web.StreamResponse:
    """Add files to a batch. Each is checked by itself, and known paths stay as they are."""
    if is_tus(request):
        return await tus.create(request)
    if is_ietf(request):
        return await resumable.create(request)
    if bundles.is_bundle(request):
        return await bundles.receive_tar(request)
    require(request, *UPLOAD_SCOPES)
    Query(request, ())
    batch = (await load_batch(request, path_id(request))).id
    appender = ManifestAppender(request, batch)
    if request.content_type in NDJSON_TYPES:
        require_content_type(request, *NDJSON_TYPES)
        await _append_lines(request, appender)
    else:
        form = await json_body(request, _list_decoder)
        await _append_list(appender, form.files if isinstance(form, NewFiles) else form)
    return json_response(await appender.response(), position=appender.position)


class ManifestAppender:
    """Writer that records the files of one request, chunk by chunk."""

    def __init__(self, request: web.Request, batch: UUID) -> None:
        self._services = request.app[SERVICES]
        self._request = request
        self._batch = batch
        self._results: list[FileResult] = []
        self.position = 0

    @property
    def max_files(self) -> int:
        """Maximum number of files in one manifest."""
        return self._services.settings.max_manifest_files

    async def append(self, files: list[FileDeclaration]) -> None:
        largest, log = self._services.settings.max_file_size, self._services.log
        quotas = self._request.app[TRANSFERS].quotas
        command = AddUploads(
            batch=self._batch,
            files=tuple(files),
            max_size=largest,
            over_quota=await files_over_quota(log, quotas, self._batch, files, largest),
        )
        added = await add_uploads(log, command, command_context(self._request))
        self._results += added.files
        self.position = max(self.position, added.position)

    async def response(self) -> AddedUploadsResponse:
        self.position = self.position or await self._services.log.head()
        count = Counter(file.status for file in self._results)
        return AddedUploadsResponse(
            files=self._results,
            added=count["added"],
            known=count["known"],
            rejected=count["rejected"],
            position=self.position,
        )


async def _append_list(appender: ManifestAppender, files: tuple[FileDeclaration, ...]) -> None:
    if len(files) > appender.max_files:
        raise ValidationFailed(
            FieldError("files", f"must hold at most {appender.max_files} files, not {len(files)}")
        )
    for start in range(0, len(files), CHUNK_FILES):
        await appender.append(list(files[start : start + CHUNK_FILES]))


async def _append_lines(request: web.Request, appender: ManifestAppender) -> None:
    """Record the lines as they arrive. At an invalid line, the Problem has the number recorded."""
    files: list[FileDeclaration] = []
    count = 0
    try:
        async for line in iter_ndjson(request):
            if count >= MAX_NDJSON_MANIFESTS * appender.max_files:
                raise Problem(413, "too_large", f"send at most {count} files in one request")
            files.append(_decode_line(line, count))
            count += 1
            if len(files) == CHUNK_FILES:
                await appender.append(files)
                files = []
    except Problem as problem:
        recorded = count - len(files)
        problem.detail += (
            f"; the {recorded} files before it were added: correct it and send all again"
        )
        raise
    if files:
        await appender.append(files)


def _decode_line(line: bytes, index: int) -> FileDeclaration:
    """Decode a line; the pointer of a Problem begins with its index among the lines not blank."""
    try:
        return decode(line, _line_decoder)
    except msgspec.ValidationError as error:
        pointer, what = json_pointer_of(error, under=f"/{index}")
        raise Problem(
            422, "invalid", f"{pointer}: {what}", errors=[FieldProblem(pointer, what)]
        ) from None
    except Problem as problem:
        problem.errors = (FieldProblem(f"/{index}", problem.detail),)
        raise


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/batches/{id}/uploads",
        handler=add_files,
        summary="Add files to an open batch: a list, NDJSON, a tar archive, or one by tus creation",
        body=NewFiles | tuple[FileDeclaration, ...],
        scopes=UPLOAD_SCOPES,
        responses={200: AddedUploadsResponse, 201: None},
    ),
    Operation(
        method="POST",
        path="/v1/batches",
        handler=create_batch,
        summary="Start a batch, with its manifest if that is known, or as a form with its files",
        body=NewBatch,
        scopes=UPLOAD_SCOPES,
        responses={201: StartedBatchResponse, 200: StartedBatchResponse},
        idempotent=True,
    ),
)
