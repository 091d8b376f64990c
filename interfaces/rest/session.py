"""Signing a browser in with the one-time code of a login link, and out again."""

from __future__ import annotations

import msgspec
from aiohttp import hdrs, web

from application.ports.auth import Principal
from interfaces.common.access import SESSION_COOKIE, principal_of, require_same_origin
from interfaces.common.api_types import LoginCode
from interfaces.common.failed_attempts import attempts_of
from interfaces.common.operations import Operation
from interfaces.common.problems import Problem, bad_parameter, unauthenticated
from interfaces.common.requests import Query, json_body
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES

MAX_BODY = 1024  # bytes: clients need no credential to send one
SESSION_LIFETIME = 12 * 3600.0  # seconds
EXPIRED = "/?login=expired"  # page that explains how to get a new link

_decoder = msgspec.json.Decoder(LoginCode)
_PREFETCH = (("Sec-Purpose", "prefetch"), ("Purpose", "prefetch"), ("X-Moz", "prefetch"))


async def login_with_code(request: web.Request) -> web.Response:
    """Redeem the code, which works once, and redirect to the page.

    A prefetch by the browser is refused, because it would use the code up.
    """
    if any(word in request.headers.get(name, "") for name, word in _PREFETCH):
        raise Problem(
            403, "not_on_prefetch", "a login link cannot be prefetched: open it in a browser tab"
        )
    code = Query(request, ("code",)).text("code")
    if code is None:
        raise bad_parameter("code", "is missing")
    token = await _open_session(request, code)
    if token is None and "text/html" in request.headers.get(hdrs.ACCEPT, ""):
        return web.Response(status=303, headers={hdrs.LOCATION: EXPIRED})
    if token is None:
        raise unauthenticated("the login link was used, or is too old")
    response = web.Response(status=303, headers={hdrs.LOCATION: "/"})
    _set_session_cookie(request, response, token)
    return response


async def sign_in(request: web.Request) -> web.Response:
    if hdrs.ORIGIN in request.headers:
        require_same_origin(request)
    token = await _open_session(request, (await json_body(request, _decoder, limit=MAX_BODY)).code)
    if token is None:
        raise unauthenticated("the code was used, or is too old")
    response = web.Response(status=204)
    _set_session_cookie(request, response, token)
    return response


async def sign_out(request: web.Request) -> web.Response:
    if token := request.cookies.get(SESSION_COOKIE):
        await request.app[SERVICES].keys.close_session(token)
    response = web.Response(status=204)
    response.del_cookie(
        SESSION_COOKIE, httponly=True, samesite="Strict", secure=_is_secure(request)
    )
    return response


async def _open_session(request: web.Request, code: str) -> str | None:
    """Open a session for the principal of the code; return None for a used or expired code."""
    keys = request.app[SERVICES].keys
    principal = await attempts_of(request).authenticate(
        "login code", "", lambda: keys.redeem_login(code)
    )
    if principal is None:
        return None
    return await keys.open_session(principal, lifetime=SESSION_LIFETIME)


def _set_session_cookie(request: web.Request, response: web.Response, token: str) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=int(SESSION_LIFETIME),
        httponly=True,
        samesite="Strict",
        secure=_is_secure(request),
    )


def _is_secure(request: web.Request) -> bool:
    """True if the browser connected by TLS, to this server or to the proxy in front of it."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "") == "https"


LOGIN_OPERATIONS = (
    Operation(
        method="GET",
        path="/login",
        handler=login_with_code,
        summary="Sign a browser in with the one-time code of a login link",
        query=("code",),
        scopes=(),
        responses={303: None},
    ),
    Operation(
        method="POST",
        path="/login",
        handler=sign_in,
        summary="Sign a browser in with a one-time code",
        body=LoginCode,
        scopes=(),
        responses={204: None},
    ),
    Operation(
        method="POST",
        path="/logout",
        handler=sign_out,
        summary="End the browser's session",
        responses={204: None},
    ),
)

# `GET /v1/principal`: the principal of the request, by which the page selects what to show.


async def show_principal(request: web.Request) -> web.Response:
    Query(request, ())
    return json_response(principal_of(request))


PRINCIPAL_OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/principal",
        handler=show_principal,
        summary="Show who asks: name, owner, scope and limits of the credential",
        responses={200: Principal},
    ),
)
