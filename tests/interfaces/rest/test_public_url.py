"""One function gives the public URL in responses and outside of requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from infrastructure.settings import Settings
from interfaces.bootstrap.container import Role, callback_base_url
from interfaces.common.forwarded import public_base_url, public_url
from interfaces.common.services import SERVICES

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
