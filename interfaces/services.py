"""What every interface works with: the ports, made real by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from aiohttp import web

from application.ports.blobs import BlobStore
from application.ports.erasures import Erasures, NoErasures
from application.ports.errands import Errands, NoErrands
from application.ports.event_log import EventLog, Wakeups
from application.ports.keys import Keys
from application.ports.read_model import History, Queries
from application.ports.seals import NoSeals, Seals
from application.ports.slots import Slots, SlotsHere
from application.ports.usage import Unmeasured, Usage
from application.ports.webhooks import NoWebhooks, Webhooks
from application.ports.workers import NobodyWorks, Workers
from application.transfer.elsewhere import Elsewhere, NobodyElse
from infrastructure.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Services:
    """Ports and sources of what the domain takes as arguments: time and ids."""

    settings: Settings
    log: EventLog
    wakeups: Wakeups
    queries: Queries
    history: History
    blobs: BlobStore
    keys: Keys
    now: Callable[[], datetime]
    new_id: Callable[[], UUID]
    elsewhere: Elsewhere = field(default_factory=NobodyElse)
    errands: Errands = field(default_factory=NoErrands)
    usage: Usage = field(default_factory=Unmeasured)
    slots: Slots = field(default_factory=SlotsHere)
    workers: Workers = field(default_factory=NobodyWorks)
    webhooks: Webhooks = field(default_factory=NoWebhooks)
    erasures: Erasures = field(default_factory=NoErasures)
    seals: Seals = field(default_factory=NoSeals)


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
