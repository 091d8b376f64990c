"""Setup that all upload routes share: transfers, collections and URLs, positions, problems.

A collection is a path at which POST creates uploads; their URLs are below it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit
from uuid import UUID

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from application.append import Causation
from application.errors import ApplicationError
from application.handlers.uploads import FileResult
from application.ports.auth import Principal
from application.transfers.creation import PartialUploads, UploadCreator
from application.transfers.errors import (
    BatchFull,
    BodyChecksumMismatch,
    BodyTooLarge,
    ClientDisconnected,
    IdleTimeout,
    NotAcceptingBytes,
    OffsetMismatch,
    PartialUploadMissing,
    Preempted,
    QuotaExceeded,
    Stopping,
    TooManyTransfers,
)
from application.transfers.multi_file import MultiFileReceiver, SmallFileBatcher
from application.transfers.quotas import Quota, Quotas
from application.transfers.transfers import Actor, TransferLimits, Transfers
from domain.errors import CommandRejected, ValidationFailed
from domain.upload.state import GONE, UploadState
from interfaces.common.forwarded import public_url
from interfaces.common.middleware import traceparent_of
from interfaces.common.problems import RETRY_SOON, Problem, problem_of
from interfaces.common.responses import POSITION
from interfaces.common.services import SERVICES, Services

UPLOADS = "/v1/uploads"

_COLLECTION: web.RequestKey[str] = web.RequestKey("upload_collection", str)
_RESOURCE = re.compile(r"(.*)/([0-9a-f-]{36})/?")


def tus_collection(request: web.Request) -> str | None:
    """Return the path of the endpoint that behaves as tusd's, without its last slash."""
    return request.app[SERVICES].settings.tus_path.rstrip("/") or None


def is_tus_endpoint(request: web.Request) -> bool:
    """Return whether the request is for that endpoint, or an upload below it."""
    return _COLLECTION in request


def at_collection(path: str, handler: Handler) -> Handler:
    """Return the handler for this collection: uploads that it creates are below `path`."""

    async def wrapped(request: web.Request) -> web.StreamResponse:
        request[_COLLECTION] = path
        return await handler(request)

    return wrapped


def upload_url(request: web.Request, id: UUID) -> str:
    """Return the URL of an upload, below the collection that the request went to."""
    return public_url(request, f"{request.get(_COLLECTION, UPLOADS)}/{id}")


def parse_upload_url(request: web.Request, url: str) -> UUID | None:
    """Return the id of the upload that a URL names, None if it is no URL of an upload here.

    The URL may be absolute or relative, below either collection, with any prefix of a proxy.
    """
    found = _RESOURCE.fullmatch(urlsplit(url).path)
    collections = tuple(filter(None, (UPLOADS, tus_collection(request))))
    if found is None or not f"/{found[1]}".endswith(collections):
        return None
    try:
        return UUID(found[2])
    except ValueError:
        return None


async def position_header(request: web.Request, position: int) -> dict[str, str]:
    """Return `Uptrail-Position`: the `min_position` with which reads reflect this request.

    With 0, nothing was recorded by this request, and the header is the end of the log.
    """
    return {POSITION: str(position or await request.app[SERVICES].log.head())}


async def set_position_header(
    request: web.Request, response: web.Response, position: int
) -> web.Response:
    """Set `Uptrail-Position` on the response, and return it."""
    response.headers.update(await position_header(request, position))
    return response


def transfer_problem(error: Exception) -> Problem:
    """Return the problem for an upload client.

    Clients retry after 409, 423 and 5xx, and give up after any other 4xx, 408 and 429 included
    (tus-js-client, `shouldRetry` in lib/upload.js): so errors that a retry can resolve have one of
    these statuses.
    """
    match error:
        case OffsetMismatch(offset=offset):
            return Problem(
                409, "offset_mismatch", str(error), headers={"Upload-Offset": str(offset)}
            )
        case BodyTooLarge(limit=limit):
            return Problem(413, "too_large", str(error), headers={"Tus-Max-Size": str(limit)})
        case BodyChecksumMismatch():  # the status that tus has for it
            return Problem(460, "checksum_mismatch", str(error), title="Checksum Mismatch")
        case PartialUploadMissing():
            return Problem(400, "part_missing", str(error))
        case NotAcceptingBytes(state=state):
            return (
                gone_problem(state) if state in GONE else Problem(403, "invalid_state", str(error))
            )
        case BatchFull():
            return Problem(413, "batch_full", str(error))
        case QuotaExceeded():
            return Problem(507, "quota_exceeded", str(error))
        case TooManyTransfers():
            return Problem(503, "too_many_transfers", str(error), headers=RETRY_SOON)
        case Preempted():
            return Problem(423, "overtaken", str(error), headers=RETRY_SOON)
        case IdleTimeout():
            return Problem(503, "stalled", str(error), headers=RETRY_SOON)
        case Stopping():
            return Problem(503, "stopping", str(error), headers=RETRY_SOON)
        case ClientDisconnected():  # usually not sent: the connection is closed
            return Problem(400, "body_cut_short", str(error))
        case CommandRejected() if not isinstance(error, ValidationFailed):
            return Problem(403, "invalid_state", str(error))
    return problem_of(error)


def gone_problem(state: UploadState) -> Problem:
    return Problem(410, "gone", f"the upload is {state}")


TRANSFERS: web.AppKey[Transfers] = web.AppKey("transfers", Transfers)
CREATOR: web.AppKey[UploadCreator] = web.AppKey("creator", UploadCreator)
PARTS: web.AppKey[PartialUploads] = web.AppKey("parts", PartialUploads)
BATCHER: web.AppKey[SmallFileBatcher] = web.AppKey("small_file_batcher", SmallFileBatcher)


def setup_transfers(app: web.Application) -> None:
    """Create the application's transfers, and end them, with their bytes committed, at shutdown.

    Transfers that run at shutdown have `shutdown_grace` seconds to finish.
    """
    services = app[SERVICES]
    settings = services.settings
    limits = TransferLimits(
        max_file_size=settings.max_file_size,
        min_free_bytes=settings.min_free_bytes,
        progress_interval=settings.progress_interval,
    )
    app[TRANSFERS] = Transfers(
        services.log,
        services.blobs,
        services.remote_preemption,
        quotas=_quotas(services),
        limits=limits,
        now=services.now,
        clock=_clock,
    )
    app[CREATOR] = UploadCreator(app[TRANSFERS], services.new_id)
    app[PARTS] = PartialUploads(app[TRANSFERS], app[CREATOR], services.new_id)
    app[BATCHER] = SmallFileBatcher(app[TRANSFERS], services.new_id)
    app.on_shutdown.append(_end_transfers)


def _quotas(services: Services) -> Quotas:
    settings = services.settings
    return Quotas(
        services.usage,
        _clock,
        owner=Quota(bytes=settings.max_owner_bytes, files=settings.max_owner_files),
        batch=Quota(bytes=settings.max_batch_bytes, files=settings.max_batch_files),
        transfers=settings.max_owner_transfers,
        slots=services.slots,
    )


def _clock() -> float:
    return asyncio.get_running_loop().time()


async def _end_transfers(app: web.Application) -> None:
    await app[TRANSFERS].close(app[SERVICES].settings.shutdown_grace)


def actor_of(request: web.Request, principal: Principal) -> Actor:
    return Actor(principal.name, Causation(None, traceparent_of(request)))


@asynccontextmanager
async def multi_file_receiver(
    request: web.Request, batch: UUID, principal: Principal
) -> AsyncIterator[MultiFileReceiver]:
    """Receive files into the batch. Files that arrived whole are kept, however it ends.

    If the request cannot be read to its end, its problem names the number of files kept.
    """
    actor = actor_of(request, principal)
    app = request.app
    receiver = MultiFileReceiver(app[TRANSFERS], app[CREATOR], app[BATCHER], batch, actor)
    try:
        yield receiver
    except (Problem, CommandRejected, ApplicationError) as error:
        received: tuple[FileResult, ...] = ()
        with suppress(ApplicationError, CommandRejected):  # the error below is reported instead
            received = await receiver.close()
        problem = (
            problem_of(error) if isinstance(error, CommandRejected) else transfer_problem(error)
        )
        problem.headers.setdefault(hdrs.LOCATION, public_url(request, f"/v1/batches/{batch}"))
        problem.detail += f"; {len(received)} files were taken, send all again to go on"
        raise problem from error
    finally:
        await receiver.abandon()


def limit_files(request: web.Request, receiver: MultiFileReceiver) -> None:
    """Raise a 413 Problem for more files than one request may have."""
    limit = request.app[SERVICES].settings.max_manifest_files
    if receiver.count >= limit:
        raise Problem(413, "too_large", f"send at most {limit} files in one request")
