from __future__ import annotations

from pathlib import Path

import pytest

from tests.interfaces.uploads.server import TUS, serving
from tests.support import run

PATH = "/v1/uploads/"


@pytest.mark.parametrize(
    ("headers", "begins"),
    [
        ({}, "http://127.0.0.1:"),
        ({"Forwarded": "proto=https;host=up.example"}, "https://up.example/v1/"),
        (
            {"Forwarded": 'for="[::1]:47011";proto=https;host="up.example:8443", for=10.0.0.1'},
            "https://up.example:8443/v1/",
        ),
        (
            {
                "X-Forwarded-Proto": "https, http",
                "X-Forwarded-Host": "up.example",
                "X-Forwarded-Prefix": "/files/",
            },
            "https://up.example/files/v1/",
        ),
        ({"X-Forwarded-Proto": "javascript", "X-Forwarded-Host": "up.example"}, PATH),
        ({"X-Forwarded-Host": "up.example/evil"}, PATH),
        ({"X-Forwarded-Host": "user@up.example"}, PATH),
        (
            {"X-Forwarded-Host": "up.example", "X-Forwarded-Prefix": "//evil"},
            "http://up.example/v1",
        ),
    ],
)
def test_a_proxy_that_is_believed_says_where_uploads_are_found(
    headers: dict[str, str], begins: str, database_url: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with serving(database_url, tmp_path, trust_forwarded=True) as server:
            said = {**TUS, **headers, "Upload-Length": "5"}
            async with server.client.post("/v1/uploads", headers=said) as answer:
                assert answer.status == 201
                assert answer.headers["Location"].startswith(begins)

    run(story())


def test_anybody_else_who_claims_to_be_a_proxy_is_not(database_url: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(database_url, tmp_path) as server:
            location = await server.create(
                5, **{"Forwarded": "host=evil.example", "X-Forwarded-Host": "evil.example"}
            )
            assert location.startswith(PATH)

    run(story())
