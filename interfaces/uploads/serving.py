"""What upload routes share: the transfers of this application, and who speaks to them."""

from __future__ import annotations

import asyncio

from aiohttp import web

from application.append import Causation
from application.ports.keys import Principal
from application.transfer.arriving import Arrivals
from application.transfer.gathering import Gathering
from application.transfer.joining import Parts
from application.transfer.quotas import Allowance, Quotas
from application.transfer.transfers import Limits, Speaker, Transfers
from interfaces.rest.correlation import traceparent_of
from interfaces.services import SERVICES, Services

TRANSFERS: web.AppKey[Transfers] = web.AppKey("transfers", Transfers)
ARRIVALS: web.AppKey[Arrivals] = web.AppKey("arrivals", Arrivals)
PARTS: web.AppKey[Parts] = web.AppKey("parts", Parts)
GATHERING: web.AppKey[Gathering] = web.AppKey("gathering", Gathering)


def prepare(app: web.Application) -> None:
    """Makes the transfers of this application; they end, their bytes committed, before it does.

    Those that run when it is told to stop have `shutdown_grace` to come to their end.
    """
    services = app[SERVICES]
    settings = services.settings
    limits = Limits(
        max_file_size=settings.max_file_size,
        min_free_bytes=settings.min_free_bytes,
        progress_interval=settings.progress_interval,
    )
    app[TRANSFERS] = Transfers(
        services.log,
        services.blobs,
        services.elsewhere,
        quotas=_quotas(services),
        limits=limits,
        now=services.now,
        clock=_clock,
    )
    app[ARRIVALS] = Arrivals(app[TRANSFERS], services.new_id)
    app[PARTS] = Parts(app[TRANSFERS], app[ARRIVALS], services.new_id)
    app[GATHERING] = Gathering(app[TRANSFERS], services.new_id)
    app.on_shutdown.append(_end_transfers)


def _quotas(services: Services) -> Quotas:
    settings = services.settings
    return Quotas(
        services.usage,
        _clock,
        owner=Allowance(bytes=settings.max_owner_bytes, files=settings.max_owner_files),
        batch=Allowance(bytes=settings.max_batch_bytes, files=settings.max_batch_files),
        transfers=settings.max_owner_transfers,
        slots=services.slots,
    )


def _clock() -> float:
    return asyncio.get_running_loop().time()


async def _end_transfers(app: web.Application) -> None:
    await app[TRANSFERS].close(app[SERVICES].settings.shutdown_grace)


def speaker_of(request: web.Request, principal: Principal) -> Speaker:
    return Speaker(principal.name, Causation(None, traceparent_of(request)))
