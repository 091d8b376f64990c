"""Clients of the feed: they connect again with their cursor, and apply every frame."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec

from application.ports.auth import Credential, Principal, Scope
from interfaces.feed.connection import FeedClient, resolve_subscription
from interfaces.feed.hub import FeedHub
from interfaces.feed.protocol import JSON, ConnectionClosed, Subscribe
from tests.simulation.laws import LawBroken, require
from tests.simulation.world import Machine, Parts, World


class SlowTransport:
    """The port `Transport` of one connection, read by its client at the client's own pace."""

    is_bidirectional = False

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.arrived = asyncio.Event()
        self.is_cut = False

    @property
    def buffered_bytes(self) -> int:
        return sum(map(len, self.frames))

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        if self.is_cut:
            raise ConnectionResetError("the client has gone")
        self.frames.append(frame)
        self.arrived.set()

    async def ping(self) -> None:
        if self.is_cut:
            raise ConnectionResetError("the client has gone")

    def abort(self) -> None:
        self.is_cut = True
        self.arrived.set()


class Watcher:
    """One client that follows all batches of an owner, and their uploads."""

    def __init__(self, world: World, apis: list[Machine], owner: str) -> None:
        self._world = world
        self._apis = apis
        self._owner = owner
        self._random = Random(world.random.getrandbits(64))
        self._cursor: str | None = None
        self._to: int | None = None
        self.batches: list[str] = []
        self.rows: dict[str, dict[str, Any]] = {"batches": {}, "uploads": {}, "attempts": {}}
        self.is_patient = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self._random.random())
            if not self.batches:
                continue
            transport = SlowTransport()
            api = self._random.choice(self._apis)
            connection = asyncio.ensure_future(self._connect(api, transport))
            try:
                await self._read(transport, connection)
            finally:
                transport.abort()
                connection.cancel()

    async def _connect(self, api: Machine, transport: SlowTransport) -> None:
        try:
            await api.request(lambda parts: self._serve(parts, transport))
        except (ConnectionError, ConnectionClosed) as error:
            self._world.tell(f"watcher of {self._owner}: {error!r}")
        finally:
            transport.abort()

    async def _serve(self, parts: Parts, transport: SlowTransport) -> None:
        """Serve the connection in its API process, as the endpoint does."""
        hub: FeedHub = parts.hub  # type: ignore[attr-defined]
        principal = Principal(f"key:{self._owner}", self._owner, Scope.VIEWER)
        client = FeedClient(transport, JSON, principal, Credential("text"))
        hub.registry.add(client)
        try:
            subscribe = Subscribe(batches=self._chosen, after=self._cursor)
            hub.follow(client, resolve_subscription(subscribe, principal))
            sending = asyncio.ensure_future(hub.catch_up(client))
            try:
                await asyncio.wait((sending, client.closed), return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
                client.closed.result()
            finally:
                sending.cancel()
        finally:
            hub.registry.remove(client)

    async def _read(self, transport: SlowTransport, connection: asyncio.Future[None]) -> None:
        random, loop = self._random, asyncio.get_running_loop()
        self._to = None
        end = loop.time() + random.expovariate(1 / 20.0)
        known = len(self.batches)
        # With a cursor only what changed comes: a new batch needs a new snapshot.
        if self._cursor is not None and self._chosen_before != tuple(self.batches):
            self._cursor = None
        self._chosen = self._chosen_before = tuple(self.batches)
        while not transport.is_cut and known == len(self.batches):
            if loop.time() > end and not self.is_patient:
                return
            transport.arrived.clear()
            for frame in transport.frames:
                self._apply(msgspec.json.decode(frame))
            transport.frames.clear()
            try:
                async with asyncio.timeout(1.0):
                    await transport.arrived.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(random.choice((0.0, 0.01, 0.5)))

    _chosen: tuple[str, ...] = ()
    _chosen_before: tuple[str, ...] = ()

    def _apply(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "snapshot":
            if frame["part"] == 1:
                self.rows = {name: {} for name in self.rows}
            self._to = frame["position"]
        elif frame["type"] == "changes":
            require(
                self._to in (None, frame["from"]),
                f"watcher of {self._owner} has frames up to {self._to}, then one from {frame}",
            )
            self._to = frame["to"]
            for name in ("batches", "uploads"):
                for row in frame[name]:
                    require(
                        frame["from"] < row["position"] <= frame["to"],
                        f"a row at {row['position']} in the frame of {frame['from']}"
                        f" to {frame['to']}",
                    )
                    known = self.rows[name].get(row["id"])
                    require(
                        known is None or known["position"] < row["position"],
                        f"watcher of {self._owner} was sent {row['id']} at {row['position']} again",
                    )
        else:
            return
        self._cursor = frame["cursor"]
        for name in ("batches", "uploads"):
            self.rows[name] |= {row["id"]: row for row in frame[name]}
        for row in frame["attempts"]:
            self.rows["attempts"][row["upload"], row["number"]] = row

    def check_end(self) -> None:
        """The client has every row as the read model has it."""
        tables: dict[str, dict[Any, Any]] = self._world.database.read_model
        uploads = {
            str(id): row.position
            for id, row in tables["uploads"].items()
            if row.owner == self._owner and str(row.batch) in self.batches
        }
        batches = {
            str(id): row.position
            for id, row in tables["batches"].items()
            if str(id) in self.batches
        }
        attempts = {
            (str(row.upload), row.number): (row.state, row.position)
            for row in tables["attempts"].values()
            if str(row.upload) in uploads
        }
        seen_attempts = {
            key: (row["state"], row["position"]) for key, row in self.rows["attempts"].items()
        }
        for name, expected, seen in (
            ("batches", batches, {id: r["position"] for id, r in self.rows["batches"].items()}),
            ("uploads", uploads, {id: r["position"] for id, r in self.rows["uploads"].items()}),
            ("attempts", attempts, seen_attempts),
        ):
            if expected != seen:
                different = {
                    key: (expected.get(key), seen.get(key))
                    for key in {*expected, *seen}
                    if expected.get(key) != seen.get(key)
                }
                raise LawBroken(f"watcher of {self._owner} has other {name}: {different}")
