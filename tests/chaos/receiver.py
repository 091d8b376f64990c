"""Receiver of webhooks that is out of order now and then."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from uuid import UUID

EVENTS = ("batch.completed", "batch.reopened", "upload.completed", "upload.failed")
OUT_OF_ORDER = 0.02  # the share of requests that it answers 500


class Heard(NamedTuple):
    """A message that was taken: what it tells of, and where that is in the log."""

    type: str
    batch: UUID
    position: int


class Receiver(ThreadingHTTPServer):
    """`heard` are the messages in the order they were taken, repetitions included."""

    daemon_threads = True

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[Heard] = []
        self.chance = random.Random(seed)
        self._turn = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def take(self, body: bytes) -> int:
        """The status of the answer."""
        message = json.loads(body)
        data = message["data"]
        subject = data["upload"]["batch"] if "upload" in data else data["batch"]["id"]
        with self._turn:
            if self.chance.random() < OUT_OF_ORDER:
                return 500
            self.heard.append(Heard(message["type"], UUID(subject), data["position"]))
        return 204


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.take(body))
        self.end_headers()

    def handle(self) -> None:
        with suppress(OSError):  # whoever asked was killed
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def listening(seed: int) -> Iterator[Receiver]:
    with Receiver(seed) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()
