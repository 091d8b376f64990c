from __future__ import annotations

import re
from pathlib import Path

import pytest

from infrastructure.settings_loader import BadSetting, read_value
from interfaces.common import middleware
from tests.interfaces.uploads.server import BYTES, TUS, serving

PAGE = "https://page.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "tus-resumable,upload-offset,content-type,authorization",
}


async def test_a_page_of_an_allowed_origin_may_ask_send_and_read(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path, allowed_origins=(PAGE,)) as server:
        async with server.client.options("/v1/uploads", headers=PREFLIGHT) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
            sent = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
            assert set(PREFLIGHT["Access-Control-Request-Headers"].split(",")) <= set(sent)
            assert int(answer.headers["Access-Control-Max-Age"]) > 0
            assert "Origin" in answer.headers["Vary"]
        headers = {**BYTES, "Origin": PAGE, "Upload-Length": "5"}
        async with server.client.post("/v1/uploads", headers=headers, data=b"hello") as answer:
            assert answer.status == 201
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            read = answer.headers["Access-Control-Expose-Headers"]
            assert {"Location", "Upload-Offset", "Tus-Resumable"} <= set(read.split(", "))
        refused = {**TUS, "Origin": PAGE, "Upload-Length": "many"}
        async with server.client.post("/v1/uploads", headers=refused) as answer:
            assert answer.status == 400
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize("allowed", [(), ("https://other.example",)])
async def test_a_page_of_another_origin_can_read_no_response(
    allowed: tuple[str, ...], database_url: str, tmp_path: Path
) -> None:
    async with (
        serving(database_url, tmp_path, allowed_origins=allowed) as server,
        server.client.options("/v1/uploads", headers=PREFLIGHT) as answer,
    ):
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert ("Vary" in answer.headers) == bool(allowed)


async def test_a_wildcard_origin_allows_any_page_but_no_session(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        serving(database_url, tmp_path, allowed_origins=("*",)) as server,
        server.client.options("/v1/uploads", headers=PREFLIGHT) as answer,
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    ("configured", "custom"), [(None, True), (("*",), True), (("X-Custom",), True), ((), False)]
)
async def test_request_headers_that_pages_may_send_are_a_setting(
    configured: tuple[str, ...] | None, custom: bool, database_url: str, tmp_path: Path
) -> None:
    asked = "tracestate,traceparent,baggage,cache-control,x-csrf-token,x-requested-with,x-custom"
    settings = {} if configured is None else {"cors_allowed_headers": configured}

    async with serving(database_url, tmp_path, allowed_origins=(PAGE,), **settings) as server:
        evil = {**PREFLIGHT, "Access-Control-Request-Headers": f"{asked},bad header,é"}
        async with server.client.options("/files/", headers=evil) as answer:
            allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
            assert {*asked.split(",")} - {*allowed} == (set() if custom else {"x-custom"})
            assert len(allowed) == len(set(allowed))
            assert all(name.isascii() and " " not in name for name in allowed)
            assert "*" not in allowed
            assert "Access-Control-Request-Headers" in answer.headers["Vary"]


def test_every_header_that_upload_protocols_use_is_allowed() -> None:
    root = Path(__file__).parents[3] / "interfaces" / "uploads"
    used = set()
    for module in root.glob("*.py"):
        used |= set(re.findall(r'"((?:Upload|Tus)-[A-Z][A-Za-z-]+)"', module.read_text()))

    known = set(middleware.ALLOWED_HEADERS.split(", ")) | set(
        middleware.EXPOSED_HEADERS.split(", ")
    )
    assert used <= known


@pytest.mark.parametrize("name", ["a b", "a\r\nEvil: 1", "é", ""])
def test_a_setting_that_is_no_header_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(BadSetting, match="cors_allowed_headers must be a list of texts"):
        read_value("cors_allowed_headers", [name], "test")
