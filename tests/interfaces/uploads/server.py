"""A real server for uploads: real sockets, real PostgreSQL, real files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from aiohttp import ClientSession

from application.commands import StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext
from application.ports.auth import Scope
from application.transfers.transfers import Transfers
from domain.event import topic_of
from domain.file import FileDeclaration
from infrastructure.postgres.pool import Pool
from interfaces.common.running_requests import RUNNING, RunningRequests
from interfaces.common.services import Services
from interfaces.uploads.setup import TRANSFERS
from tests.blob_files import uploads_in
from tests.harness import open_test_container, serve_http
from tests.interfaces.rest.server import Answer, read_answer
from tests.support import path_of

OWNER = "acme"
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}


@dataclass(frozen=True)
class Server:
    """One serving process, and a client of it that holds an uploader's key."""

    services: Services
    url: str
    port: int
    key: str
    client: ClientSession
    transfers: Transfers
    running: RunningRequests
    pool: Pool

    async def start_batch(self, *files: FileDeclaration, owner: str = OWNER) -> UUID:
        services = self.services
        command = StartBatch(id=services.new_id(), owner=owner, files=files)
        await start_batch(services.log, command, CommandContext("key:test", services.now()))
        return command.id

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request with the uploader's key, and read the response to its end."""
        async with self.client.request(method, path, **options) as response:
            return await read_answer(response)

    async def create(self, size: int, **headers: str) -> str:
        """Create an upload; return the path of its resource."""
        named = {**TUS, "Upload-Length": str(size), **headers}
        async with self.client.post("/v1/uploads", headers=named) as answer:
            assert answer.status == 201, await answer.text()
            return path_of(answer.headers["Location"])

    async def offset(self, location: str) -> int:
        async with self.client.head(location, headers=TUS) as answer:
            assert answer.status == 200
            return int(answer.headers["Upload-Offset"])

    async def patch(self, location: str, offset: int, data: Any, **headers: str) -> int:
        """Send a PATCH; return the status of the response."""
        said = {**BYTES, "Upload-Offset": str(offset), **headers}
        async with self.client.patch(location, data=data, headers=said) as answer:
            return answer.status

    async def content(self, location: str) -> bytes:
        async with self.client.get(f"{location}/content") as answer:
            assert answer.status == 200
            return await answer.read()

    async def topics(self, location: str) -> list[str]:
        """Return the topics of the recorded events of the upload."""
        events = await self.services.log.stream(upload_in(location))
        return [topic_of(recorded.event) for recorded in events]

    async def key_with(self, scope: Scope, owner: str = OWNER, batch: UUID | None = None) -> str:
        _, text = await self.services.keys.create(owner=owner, scope=scope, batch=batch)
        return text

    def as_(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}


def metadata(**pairs: str) -> dict[str, str]:
    """Return the tus header for these pairs."""
    encoded = (f"{key} {b64encode(text.encode()).decode()}" for key, text in pairs.items())
    return {"Upload-Metadata": ",".join(encoded)}


def filename(path: str) -> dict[str, str]:
    return metadata(filename=path)


def stored_files(folder: Path) -> list[Path]:
    """For every blob of an upload, the file in which its bytes are kept."""
    return list(uploads_in(folder).values())


def upload_in(location: str) -> UUID:
    return UUID(location.rpartition("/")[2])


@asynccontextmanager
async def serving(url: str, folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """A server without a projector, and an uploader's client of it."""
    async with (
        open_test_container(url, folder, **settings) as container,
        serve_http(container) as server,
    ):
        _, key = await container.keys.create(owner=OWNER, scope=Scope.UPLOADER)
        headers = {"Authorization": f"Bearer {key}"}
        async with ClientSession(server.url, headers=headers) as client:
            yield Server(
                container.services,
                server.url,
                server.port,
                key,
                client,
                server.app[TRANSFERS],
                server.app[RUNNING],
                container.pool,
            )
