"""Dependencies of the HTTP interfaces, built by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from aiohttp import web

from application.ports.audit import Erasures, Seals
from application.ports.auth import Keys
from application.ports.blobs import BlobStore
from application.ports.event_log import EventLog, Wakeups
from application.ports.jobs import RemoteSteps, Workers
from application.ports.limits import RemotePreemption, TransferLimiter, Usage
from application.ports.read_model import History, Queries
from application.ports.webhooks import Webhooks
from infrastructure.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Services:
    """Ports, settings, clock and id generator."""

    settings: Settings
    log: EventLog
    wakeups: Wakeups
    queries: Queries
    history: History
    blobs: BlobStore
    keys: Keys
    now: Callable[[], datetime]
    new_id: Callable[[], UUID]
    remote_preemption: RemotePreemption
    remote_steps: RemoteSteps
    usage: Usage
    slots: TransferLimiter
    workers: Workers
    webhooks: Webhooks
    erasures: Erasures
    seals: Seals


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
