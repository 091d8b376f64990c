from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from infrastructure.settings import Settings
from interfaces.bootstrap.container import Role, callback_base_url
from interfaces.common.forwarded import public_base_url, public_url
from interfaces.common.services import SERVICES
from interfaces.rest import webhooks
from tests.interfaces.rest import server as api
from tests.interfaces.uploads.raw_http import Sender, header
from tests.interfaces.uploads.server import BYTES, TUS, Server, serving
from tests.support import path_of

OWN = "http://127.0.0.1:"


@pytest.mark.parametrize(
    ("headers", "begins"),
    [
        ({}, OWN),
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
        ({"X-Forwarded-Proto": "https"}, "https://127.0.0.1:"),
        # Headers of the client's own proxy, passed on by ours.
        (
            {
                "Forwarded": "for=10.0.0.1",
                "X-Forwarded-Proto": "https",
                "X-Forwarded-Host": "up.example",
            },
            "https://up.example/v1/",
        ),
        ({"Forwarded": "proto=;host=", "X-Forwarded-Proto": "https"}, "https://127.0.0.1:"),
        ({"X-Forwarded-Proto": "javascript", "X-Forwarded-Host": "up.example"}, OWN),
        ({"X-Forwarded-Host": "up.example/evil"}, OWN),
        ({"X-Forwarded-Host": "user@up.example"}, OWN),
        ({"X-Forwarded-Host": "[::1]:8443"}, "http://[::1]:8443/v1/"),
        (
            {"X-Forwarded-Host": "up.example", "X-Forwarded-Prefix": "//evil"},
            "http://up.example/v1",
        ),
    ],
)
async def test_a_trusted_proxy_determines_the_address_of_uploads(
    headers: dict[str, str], begins: str, database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path, trust_forwarded=True) as server:
        said = {**TUS, **headers, "Upload-Length": "5"}
        async with server.client.post("/v1/uploads", headers=said) as answer:
            assert answer.status == 201
            assert answer.headers["Location"].startswith(begins)


async def test_forwarding_headers_of_an_untrusted_peer_are_ignored(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        claims = {"Forwarded": "host=evil.example", "X-Forwarded-Host": "evil.example"}
        headers = {**TUS, **claims, "Upload-Length": "5"}
        async with server.client.post("/v1/uploads", headers=headers) as answer:
            assert answer.headers["Location"].startswith(f"{server.url}/v1/uploads/")


@pytest.mark.parametrize(
    ("public_url", "begins"),
    [
        ("https://up.example", "https://up.example/v1/uploads/"),
        ("https://up.example:8443/files/", "https://up.example:8443/files/v1/uploads/"),
        ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC/v1/uploads/"),
    ],
)
async def test_the_setting_public_url_overrides_the_request(
    public_url: str, begins: str, database_url: str, tmp_path: Path
) -> None:
    settings = {"public_url": public_url, "trust_forwarded": True, "interim_responses": "on"}
    async with serving(database_url, tmp_path, **settings) as server:
        headers = {**TUS, "Upload-Length": "5", "X-Forwarded-Host": "other.example"}
        async with server.client.post("/v1/uploads", headers=headers) as answer:
            assert answer.headers["Location"].startswith(begins)
        # Also where the upload is announced while its body arrives.
        headers = {"Upload-Draft-Interop-Version": "8", "Upload-Complete": "?1"}
        async with Sender(server) as sender:
            await sender.begin("POST", "/v1/uploads", {**headers, "Content-Length": "5"}, b"hello")
            status, head = await sender.answer()
            assert status == 104
            assert (header(head, "Location") or "").startswith(begins)


async def _created_with(server: Server, host: str | None, version: str = "1.1") -> tuple[int, str]:
    """Status and Location of a creation with this Host, None for none."""
    async with Sender(server) as sender:
        named = "" if host is None else f"Host: {host}\r\n"
        await sender.send(
            f"POST /v1/uploads HTTP/{version}\r\n{named}Authorization: Bearer {server.key}\r\n"
            "Tus-Resumable: 1.0.0\r\nUpload-Length: 5\r\nContent-Length: 0\r\n\r\n".encode(
                "latin-1"
            )
        )
        status, head = await sender.answer()
        return status, header(head, "Location") or ""


@pytest.mark.parametrize(
    ("host", "begins"),
    [
        ("up.example", "http://up.example/v1/uploads/"),
        ("up.example:8080", "http://up.example:8080/v1/uploads/"),
        ("my_service:8080", "http://my_service:8080/v1/uploads/"),
        ("[2001:db8::1]:8080", "http://[2001:db8::1]:8080/v1/uploads/"),
        ("", OWN),
        (None, OWN),
    ],
)
async def test_location_is_below_the_host_that_the_client_named(
    host: str | None, begins: str, database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        version = "1.0" if host is None else "1.1"
        status, location = await _created_with(server, host, version)
        assert (status, location.startswith(begins)) == (201, True), location


async def test_a_host_that_is_none_is_refused_before_anything_is_recorded(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        head = await server.services.log.head()
        for host in (
            "up.example/evil",
            "user@up.example",
            "up example",
            "up.example:port",
            "up.example\x80",
            "<script>",
            "a?b#c",
            "[::1",
            "up.example, evil.example",
            "up.example\r\nHost: evil.example",
        ):
            status, location = await _created_with(server, host)
            assert (status, location) == (400, ""), host
        assert await server.services.log.head() == head


async def test_a_final_upload_takes_parts_by_whatever_address_they_were_given_out(
    database_url: str, tmp_path: Path
) -> None:
    settings = {"public_url": "https://up.example/files"}
    async with serving(database_url, tmp_path, **settings) as server:
        parts = []
        for content in (b"hello, ", b"world"):
            headers = {**BYTES, "Upload-Concat": "partial", "Upload-Length": str(len(content))}
            async with server.client.post("/v1/uploads", headers=headers, data=content) as made:
                assert made.status == 201
                parts.append(made.headers["Location"])
        assert parts[0].startswith("https://up.example/files/v1/uploads/")
        headers = {**TUS, "Upload-Concat": "final;" + " ".join(parts)}
        async with server.client.post("/v1/uploads", headers=headers) as made:
            assert made.status == 201
            path = path_of(made.headers["Location"]).removeprefix("/files")
        assert await server.content(path) == b"hello, world"


async def test_every_route_that_creates_something_answers_with_an_absolute_location(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "VISIBLE_TIMEOUT", 0.0)  # no follower of webhooks runs here

    async with api.serving(database_url, tmp_path, public_url="https://up.example") as server:
        admin = await server.key_for(api.Scope.ADMIN)
        boundary = {"Content-Type": "multipart/form-data; boundary=b"}
        form = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
            b"hello\r\n--b--\r\n"
        )
        hook = {"url": "https://hooks.example/", "events": ["batch.completed"]}
        for path, options in {
            "/v1/batches": {"json": {"label": "seen"}},
            "/v1/batches?": {"data": form, "headers": boundary},
            "/v1/keys": {"json": {"scope": "viewer", "owner": "acme"}},
            "/v1/webhooks": {"json": hook},
            "/v1/erasures": {"json": {"owner": "nobody", "reason": "asked"}},
            "/v1/uploads": {"headers": {**TUS, "Upload-Length": "5"}},
        }.items():
            answer = await server.post(path, key=admin, **options)
            assert answer.status in (201, 202), (path, answer.body)
            collection = path.rstrip("?")
            assert answer.headers["Location"].startswith(f"https://up.example{collection}/")
            if answer.json is not None:
                assert answer.headers["Location"].rpartition("/")[2] in json.dumps(answer.json)


async def test_a_page_below_public_url_is_one_of_our_own(database_url: str, tmp_path: Path) -> None:
    async with api.serving(database_url, tmp_path, public_url="https://up.example") as server:
        principal = await server.services.keys.authenticate(server.key)
        assert principal is not None
        code = await server.services.keys.create_login_code(principal, lifetime=60.0)
        signed_in = await server.post("/login", json={"code": code}, key=None)
        cookie = {"Cookie": signed_in.headers["Set-Cookie"].partition(";")[0]}
        for origin, status in {
            "https://up.example": 201,
            "https://evil.example": 403,
            "http://up.example": 403,
        }.items():
            headers = {**cookie, "Origin": origin}
            answer = await server.post("/v1/batches", json={}, headers=headers, key=None)
            assert answer.status == status, origin


# The public URL, in responses and outside of requests.


ONE_PROXY = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "one.example"}
OTHER_PROXY = {"Forwarded": "proto=https;host=other.example", "X-Forwarded-Prefix": "/files"}


def request_with(settings: Settings, headers: dict[str, str]) -> web.Request:
    app = web.Application()
    services: Any = SimpleNamespace(settings=settings)
    app[SERVICES] = services
    return make_mocked_request("GET", "/", {"Host": "inside:8080", **headers}, app=app)


def test_clients_of_two_proxies_get_urls_of_their_own_proxy() -> None:
    settings = Settings(trust_forwarded=True)

    one = public_url(request_with(settings, ONE_PROXY), "/v1/keys")
    other = public_url(request_with(settings, OTHER_PROXY), "/v1/keys")
    direct = public_url(request_with(settings, {}), "/v1/keys")

    assert one == "https://one.example/v1/keys"
    assert other == "https://other.example/files/v1/keys"
    assert direct == "http://inside:8080/v1/keys"


@pytest.mark.parametrize("headers", [{}, ONE_PROXY, OTHER_PROXY])
@pytest.mark.parametrize(
    ("configured", "base"),
    [
        ("https://up.example", "https://up.example"),
        ("https://up.example/files/", "https://up.example/files"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
    ],
)
def test_a_configured_url_is_the_same_for_answers_links_and_callbacks(
    configured: str, base: str, headers: dict[str, str]
) -> None:
    settings = Settings(public_url=configured, trust_forwarded=True)

    assert public_url(request_with(settings, headers), "/v1/keys") == f"{base}/v1/keys"
    assert callback_base_url(settings, [Role.WORKER]) == base
    assert public_base_url(settings, local_url="http://127.0.0.1:8080") == base


@pytest.mark.parametrize(
    ("settings", "roles", "base"),
    [
        (Settings(port=8081), [Role.API, Role.WORKER], "http://127.0.0.1:8081"),
        (Settings(port=8081), [Role.WORKER], ""),
        (Settings(host="0.0.0.0", port=8081), [Role.API, Role.WORKER], ""),
    ],
)
def test_without_a_configured_url_callbacks_reach_an_api_on_this_machine_only(
    settings: Settings, roles: list[Role], base: str
) -> None:
    assert callback_base_url(settings, roles) == base
