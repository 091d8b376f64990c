"""An append whose answer was lost may be recorded: the bytes that it refers to stay."""

from __future__ import annotations

from typing import Any

import pytest

from application.errors import OutcomeUnknown
from domain.ids import upload_id_for
from tests.interfaces.uploads.server import BYTES, TUS, Server, filename
from tests.interfaces.uploads.test_bundles import TAR, tar_of


@pytest.mark.parametrize("way", ["creation", "concatenation", "bundle"])
async def test_bytes_stay_if_it_is_unknown_whether_they_were_recorded(
    server: Server, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    batch, log = await server.start_batch(), server.services.log
    path, append = f"/v1/batches/{batch}/uploads", log.append
    whole = {**BYTES, "Upload-Length": "5"}
    part = await server.ask(
        "POST", path, headers={**whole, "Upload-Concat": "partial"}, data=b"bytes"
    )
    joined = {**TUS, "Upload-Concat": f"final;{part.headers['Location']}"}
    request: dict[str, Any] = {
        "creation": {"headers": {**whole, **filename("a")}, "data": b"bytes"},
        "concatenation": {"headers": {**joined, **filename("a")}},
        "bundle": {"headers": TAR, "data": tar_of({"a": b"bytes"})},
    }[way]

    async def record_and_lose_the_answer(write: Any) -> Any:
        await append(write)
        raise OutcomeUnknown("the connection to the log was lost")

    with monkeypatch.context() as patch:
        patch.setattr(log, "append", record_and_lose_the_answer)
        answer = await server.ask("POST", path, **request)

    assert answer.status >= 500
    upload = upload_id_for(batch, "a", log.id_secret)
    log.forget(upload)
    assert await server.content(f"/v1/uploads/{upload}") == b"bytes"
