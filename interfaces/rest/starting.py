"""`POST /v1/batches`: a batch begins, with its whole manifest or without."""

from __future__ import annotations

import msgspec
from aiohttp import web

from application.commands import StartBatch
from application.handlers.batches import MAX_LABEL, StartedBatch, start_batch
from application.ports.auth import Principal, Scope
from application.transfers.errors import BatchFull, QuotaExceeded
from domain.errors import FieldError, ValidationFailed
from domain.file import has_control_characters
from domain.ids import batch_id_for, upload_id_for
from infrastructure.settings import Settings
from interfaces.common.access import reject_batch_scoped_key, require
from interfaces.common.api_types import Complaint, StartedAnswer
from interfaces.common.forwarded import public_url
from interfaces.common.problems import Problem
from interfaces.common.requests import Query, json_body
from interfaces.common.routing import UPLOAD_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import NewBatch, RetryOptions
from interfaces.rest.idempotency import context_of, fingerprint_of, idempotency_key
from interfaces.uploads import forms as forms
from interfaces.uploads.setup import TRANSFERS, transfer_problem

_decoder = msgspec.json.Decoder(NewBatch)


async def start(request: web.Request) -> web.Response:
    """201 with the new batch; 200 with the first one where the Idempotency-Key is known."""
    if forms.is_form(request):
        return await forms.start(request)
    principal = require(request, *UPLOAD_SCOPES)
    reject_batch_scoped_key(principal)
    Query(request, ())
    services = request.app[SERVICES]
    form = await json_body(request, _decoder)
    check(form, services.settings)
    owner, key = owner_of(form.owner, principal), idempotency_key(request)
    if form.notify is not None and not await services.webhooks.named(owner, form.notify):
        raise ValidationFailed(
            FieldError("notify", "must be the id or address of a webhook that was added")
        )
    command = StartBatch(
        id=batch_id_for(owner, key, services.log.id_secret) if key else services.new_id(),
        owner=owner,
        label=form.label,
        pipeline=form.pipeline,
        retry_policy=(form.retry_policy or RetryOptions()).over(
            services.settings.retry_policy_of(form.pipeline)
        ),
        priority=form.priority,
        failure_threshold=form.failure_threshold,
        notify=form.notify,
        metadata=form.metadata,
        fingerprint=fingerprint_of(form) if key else "",
        files=form.files,
        seal=form.seal,
    )
    await _admit(request, command)
    started = await start_batch(services.log, command, context_of(request))
    position = started.position or await services.log.head()
    answer = _answer(started, form, position, services.log.id_secret)
    headers = {"Location": public_url(request, f"/v1/batches/{answer.id}")}
    status = 201 if started.created else 200
    return json_answer(answer, status=status, position=position, headers=headers)


def check(form: NewBatch, settings: Settings) -> None:
    """What this server's settings do not allow; raises ValidationFailed."""
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


async def _admit(request: web.Request, command: StartBatch) -> None:
    """Raises a 413 Problem for more than a batch may hold, 507 for more than the owner may keep."""
    quotas, log = request.app[TRANSFERS].quotas, request.app[SERVICES].log
    if not command.files or quotas.unlimited:
        return
    if command.fingerprint and await log.versions([command.id]):
        return  # answered before, and counted then
    size = sum(file.size or 0 for file in command.files)
    try:
        await quotas.admit(command.owner, command.id, size, len(command.files))
    except (BatchFull, QuotaExceeded) as error:
        raise transfer_problem(error) from error


def owner_of(wanted: str | None, principal: Principal) -> str:
    """Whose the new thing will be; raises a 403 Problem where that is not for them to choose."""
    if wanted in (None, principal.owner):
        return principal.owner
    if principal.scope is not Scope.ADMIN:
        complaint = Complaint("/owner", "only an admin acts for other owners")
        raise Problem(403, "scope_missing", complaint.detail, errors=[complaint])
    assert wanted is not None
    return wanted


def _answer(started: StartedBatch, form: NewBatch, position: int, secret: bytes) -> StartedAnswer:
    batch = started.batch
    return StartedAnswer(
        id=batch.id,
        owner=batch.owner,
        label=batch.label,
        state=batch.state,
        pipeline=batch.pipeline,
        priority=batch.priority,
        started_at=batch.started_at,
        version=batch.version,
        # The ids follow from the paths: a repeated request is told the same ones.
        uploads=tuple(upload_id_for(batch.id, file.path, secret) for file in form.files),
        position=position,
    )


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/batches",
        handler=start,
        summary="Start a batch, with its manifest if that is known, or as a form with its files",
        body=NewBatch,
        scopes=UPLOAD_SCOPES,
        answers={201: StartedAnswer, 200: StartedAnswer},
        repeatable=True,
    ),
)
