"""`POST /v1/batches` as an HTML form: a whole batch in one request, sealed at its end."""

from __future__ import annotations

from contextlib import AsyncExitStack
from uuid import UUID

import msgspec
from aiohttp import web

from application.commands import BatchCommand, StartBatch
from application.handlers.batches import StartBatchResult, start_batch
from application.handlers.execute import execute
from application.handlers.uploads import FileResult
from application.ports.auth import Principal
from application.transfers.multi_file import MultiFileReceiver
from domain.batch.aggregate import Batch
from domain.batch.state import BatchState
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration, is_media_type
from domain.ids import batch_id_for
from interfaces.common.access import reject_batch_scoped_key, require
from interfaces.common.api_types import NewBatch
from interfaces.common.forwarded import public_url
from interfaces.common.idempotency import command_context, idempotency_key, request_fingerprint
from interfaces.common.operations import UPLOAD_SCOPES
from interfaces.common.requests import Query, reject_content_encoding
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.uploads import multipart
from interfaces.uploads.setup import limit_files, multi_file_receiver

KNOWN_FIELDS = frozenset({"label", "pipeline", "metadata"})
IGNORED_FIELDS = frozenset({"_charset_"})  # browsers add it
MAX_FIELD_BYTES = 16 * 1024

_metadata = msgspec.json.Decoder(dict[str, str])


class FormUploadResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The sealed batch, and the result for each file of the form, in its order."""

    id: UUID
    state: str
    files: tuple[FileResult, ...]
    received: int
    known: int
    rejected: int
    position: int


def is_form(request: web.Request) -> bool:
    return request.content_type == multipart.MEDIA_TYPE


async def create_batch_from_form(request: web.Request) -> web.Response:
    """Create a batch from a form, each file accepted or rejected by itself; respond with 201.

    A form that breaks off leaves its batch open, with the files that arrived whole. The same form
    with the same Idempotency-Key then continues that batch, and seals it.
    """
    principal = require(request, *UPLOAD_SCOPES)
    reject_batch_scoped_key(principal)
    Query(request, ())
    reject_content_encoding(request)
    stream = multipart.body_stream(request, ahead=b"\r\n")
    encoded = multipart.names_are_percent_encoded(request)
    reader = multipart.FormReader(stream, multipart.boundary_of(request), percent_encoded=encoded)
    async with AsyncExitStack() as stack:
        form = _FormUpload(request, principal, stack)
        while (part := await reader.next()) is not None:
            await form.take(part, reader)
        return await form.seal()


class _FormUpload:
    """State of one form: fields first, then files; the first file starts the batch."""

    def __init__(self, request: web.Request, principal: Principal, stack: AsyncExitStack) -> None:
        self._request = request
        self._principal = principal
        self._stack = stack
        self._fields: dict[str, str] = {}
        self._started: StartBatchResult | None = None
        self._receiver: MultiFileReceiver | None = None

    async def take(self, part: multipart.FormPart, reader: multipart.FormReader) -> None:
        if part.filename is None:
            await self._take_field(part.name, reader)
        elif part.filename:
            receiver = self._receiver or await self._start_batch()
            limit_files(self._request, receiver)
            await receiver.add_file(_declaration(part), reader.chunks())
        else:
            async for _ in reader.chunks():  # a browser sends an empty part for no file
                raise multipart.Malformed("a file must have a name, its filename is empty")

    async def seal(self) -> web.Response:
        if self._receiver is None or self._started is None:
            raise ValidationFailed(
                FieldError("file", "is missing: a form must hold a file at least")
            )
        log, batch = self._request.app[SERVICES].log, self._started.batch
        files = await self._receiver.close()
        sealed = batch
        if batch.state is BatchState.OPEN:
            command = BatchCommand(batch.id, Batch.seal)
            sealed = (await execute(log, command, command_context(self._request))).aggregate
        position = await log.head()
        statuses = [file.status for file in files]
        response = FormUploadResponse(
            id=batch.id,
            state=sealed.state,
            files=files,
            received=statuses.count("received"),
            known=statuses.count("known"),
            rejected=statuses.count("rejected"),
            position=position,
        )
        status = 201 if self._started.created else 200
        headers = {"Location": public_url(self._request, f"/v1/batches/{batch.id}")}
        return json_response(response, status=status, position=position, headers=headers)

    async def _take_field(self, name: str, reader: multipart.FormReader) -> None:
        if name in IGNORED_FIELDS:
            return
        if name not in KNOWN_FIELDS:
            known = ", ".join(sorted(KNOWN_FIELDS))
            raise ValidationFailed(
                FieldError(name, f"is no field of this form; known: {known}, and files")
            )
        if name in self._fields or self._receiver is not None:
            raise ValidationFailed(FieldError(name, "must come once, and before the first file"))
        self._fields[name] = await reader.text(MAX_FIELD_BYTES)

    async def _start_batch(self) -> MultiFileReceiver:
        """Start the batch, or continue the one that this Idempotency-Key started before."""
        services = self._request.app[SERVICES]
        form = self._new_batch()
        owner, key = self._principal.owner, idempotency_key(self._request)
        command = StartBatch(
            id=batch_id_for(owner, key, services.log.id_secret) if key else services.new_id(),
            owner=owner,
            label=form.label,
            pipeline=form.pipeline,
            retry_policy=services.settings.retry_policy_of(form.pipeline),
            metadata=form.metadata,
            fingerprint=request_fingerprint(multipart.MEDIA_TYPE, form) if key else "",
        )
        self._started = await start_batch(services.log, command, command_context(self._request))
        receiver = multi_file_receiver(self._request, command.id, self._principal)
        self._receiver = await self._stack.enter_async_context(receiver)
        return self._receiver

    def _new_batch(self) -> NewBatch:
        pipelines = self._request.app[SERVICES].settings.pipelines
        pipeline = self._fields.get("pipeline", "default")
        if pipeline not in pipelines:
            raise ValidationFailed(
                FieldError("pipeline", f"is not known here; known: {', '.join(pipelines)}")
            )
        try:
            metadata = _metadata.decode(self._fields.get("metadata", "{}"))
        except msgspec.MsgspecError:
            raise ValidationFailed(
                FieldError("metadata", "must be a JSON object of texts")
            ) from None
        return NewBatch(label=self._fields.get("label", ""), pipeline=pipeline, metadata=metadata)


def _declaration(part: multipart.FormPart) -> FileDeclaration:
    """Return the declaration of a part; for a chosen folder, browsers send paths as names."""
    assert part.filename is not None
    kind = part.media_type
    is_informative = kind != "application/octet-stream" and is_media_type(kind)
    path = part.filename.removeprefix("./")
    return FileDeclaration(path=path, media_type=kind if is_informative else None)
