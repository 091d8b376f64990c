"""Headers that may be sent once: a second one that says otherwise is never passed over."""

from __future__ import annotations

from aiohttp import web

from interfaces.rest.problems import bad_parameter


def only(request: web.Request, header: str) -> str | None:
    """The header as it was sent; None without it.

    Raises a 400 Problem for several that differ: whoever took one of them could take the wrong
    one, and a proxy in front may have looked at the other (RFC 9110 section 5.3).
    """
    lines = request.headers.getall(header, None)
    if lines is None:
        return None
    if len(lines) > 1 and len(set(lines)) > 1:
        raise bad_parameter(header, "must be sent once, not several times and each time otherwise")
    return lines[0]
