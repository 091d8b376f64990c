"""What requests with many files in them share: how they are taken, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from aiohttp import hdrs, web

from application.errors import ApplicationError
from application.handlers.uploads import FileResult
from application.ports.keys import Principal
from application.transfer.intake import Intake
from domain.errors import CommandRejected
from interfaces.rest.forwarding import public_url
from interfaces.rest.problems import Problem, problem_of
from interfaces.services import SERVICES
from interfaces.uploads.refusals import refusal_of
from interfaces.uploads.serving import ARRIVALS, GATHERING, TRANSFERS, speaker_of


@asynccontextmanager
async def intake_into(
    request: web.Request, batch: UUID, principal: Principal
) -> AsyncIterator[Intake]:
    """Takes files into the batch. However it ends, files that came whole are kept.

    A request that cannot be read to its end is told how many were.
    """
    speaker = speaker_of(request, principal)
    app = request.app
    intake = Intake(app[TRANSFERS], app[ARRIVALS], app[GATHERING], batch, speaker)
    try:
        yield intake
    except (Problem, CommandRejected, ApplicationError) as error:
        taken: tuple[FileResult, ...] = ()
        with suppress(ApplicationError, CommandRejected):  # told already: it is why we are here
            taken = await intake.close()
        problem = problem_of(error) if isinstance(error, CommandRejected) else refusal_of(error)
        problem.headers.setdefault(hdrs.LOCATION, public_url(request, f"/v1/batches/{batch}"))
        problem.detail += f"; {len(taken)} files were taken, send all again to go on"
        raise problem from error
    finally:
        await intake.abandon()


def require_few(request: web.Request, intake: Intake) -> None:
    """Raises a 413 Problem for more files than one request may have."""
    limit = request.app[SERVICES].settings.max_manifest_files
    if intake.count >= limit:
        raise Problem(413, "too_large", f"send at most {limit} files in one request")
