"""HTTP client that sends requests one by one and returns every response as it is."""

from __future__ import annotations

import http.client
import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support import path_of

OCTETS = "application/offset+octet-stream"


class Answer(NamedTuple):
    """Response of the server."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Client of a server, with a key or without."""

    def __init__(self, port: int, key: str | None) -> None:
        self.port = port
        self.key = key

    def answer(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One request on a connection of its own; refusals are answers too."""
        known = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body=body, headers={**known, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        return self._fine(self.answer("GET", path))

    def post(self, path: str, body: Any = None) -> Any:
        sent = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._fine(self.answer("POST", path, headers=headers, body=sent))

    # tus.

    def tus(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        said = {"Tus-Resumable": "1.0.0", **(headers or {})}
        return self.answer(method, path, headers=said, body=body)

    def create(self, batch: str, path: str, size: int) -> str:
        """Registers a file in a batch; returns where its bytes go."""
        name = "filename " + b64encode(path.encode()).decode()
        headers = {"Upload-Length": str(size), "Upload-Metadata": name}
        made = self.tus("POST", f"/v1/batches/{batch}/uploads", headers)
        assert made.status == 201, made
        return path_of(made.headers["Location"])

    def append(self, location: str, offset: int, body: bytes) -> Answer:
        headers = {"Upload-Offset": str(offset), "Content-Type": OCTETS}
        return self.tus("PATCH", location, headers, body)

    def offset(self, location: str) -> int:
        return int(self.tus("HEAD", location).headers["Upload-Offset"])

    def send(self, batch: str, path: str, content: bytes) -> str:
        """A whole file in one request; returns its id."""
        name = "filename " + b64encode(path.encode()).decode()
        headers = {"Upload-Length": str(len(content)), "Upload-Metadata": name}
        headers |= {"Content-Type": OCTETS} if content else {}
        made = self.tus("POST", f"/v1/batches/{batch}/uploads", headers, content)
        assert made.status == 201, made
        return made.headers["Location"].rpartition("/")[2]

    def send_batch(self, files: Mapping[str, bytes], **options: Any) -> str:
        """A sealed batch of these files; returns its id."""
        batch: str = self.post("/v1/batches", options)["id"]
        for path, content in files.items():
            self.send(batch, path, content)
        self.post(f"/v1/batches/{batch}/seal")
        return batch

    # Looking.

    def batch(self, id: str) -> dict[str, Any]:
        """The batch as the read model has it, without a state where it has not heard of it yet."""
        answer = self.answer("GET", f"/v1/batches/{id}")
        assert answer.status in (200, 404), answer
        found: dict[str, Any] = answer.json
        return found if answer.status == 200 else {"state": None, "outcome": None}

    def state(self, upload: str) -> str | None:
        """The state of an upload; None until the read model has heard of it."""
        answer = self.answer("GET", f"/v1/uploads/{upload}")
        assert answer.status in (200, 404), answer
        return str(answer.json["state"]) if answer.status == 200 else None

    def uploads(self, batch: str) -> dict[str, dict[str, Any]]:
        """Every upload of the batch, by path."""
        rows = self.pages(f"/v1/batches/{batch}/uploads?limit=1000", "cursor")
        return {row["path"]: row for row in rows}

    def history(self, path: str) -> list[dict[str, Any]]:
        """Every recorded event under `path`, such as `/v1/batches/{id}`, oldest first."""
        answer = self.answer("GET", f"{path}/history?format=ndjson")
        assert answer.status == 200, answer
        return [json.loads(line) for line in answer.content.splitlines()]

    def pages(self, path: str, parameter: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        page = self.get(path)
        while page["next"] is not None:
            rows += page["items"]
            page = self.get(f"{path}&{parameter}={page['next']}")
        return rows + list(page["items"])

    def _fine(self, answer: Answer) -> Any:
        assert answer.status < 300, answer
        return answer.json
