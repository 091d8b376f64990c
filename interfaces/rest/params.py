"""Parameters of paths, queries and headers, each checked before anything is done."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from aiohttp import web

from application.errors import NotFound
from domain.file import has_control_characters
from interfaces.rest.problems import RETRY_SOON, Problem, bad_parameter
from interfaces.services import SERVICES

MAX_POSITION = 2**63 - 1
LATEST = "latest"
"""As `min_position`: everything that was recorded, by whomever, before this request arrived."""

LONGEST_WAIT = 5.0  # seconds that a reader is kept waiting for its own write
MAX_TEXT = 1024
MAX_CURSOR = 4096  # of a list of uploads: it holds a path

Choice = TypeVar("Choice", bound=StrEnum)


class Query:
    """The query of a request; only the parameters named are allowed, each once."""

    def __init__(self, request: web.Request, allowed: tuple[str, ...]) -> None:
        self._values = request.query
        for name in self._values:
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                raise bad_parameter(name[:MAX_TEXT], f"is not a parameter here; known: {known}")
            if len(self._values.getall(name)) > 1:
                raise bad_parameter(name, "is given more than once")

    def text(self, name: str, *, most: int = MAX_TEXT) -> str | None:
        value = self._values.get(name)
        if value is not None and (len(value) > most or has_control_characters(value)):
            raise bad_parameter(name, f"must be at most {most} printable characters")
        return value

    def integer(self, name: str, default: int, *, low: int = 0, high: int = MAX_POSITION) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise bad_parameter(name, f"must be a whole number from {low} to {high}")
        if not low <= int(text) <= high:
            raise bad_parameter(name, f"must be from {low} to {high}")
        return int(text)

    def choice(self, name: str, choices: type[Choice]) -> Choice | None:
        text = self.text(name)
        try:
            return None if text is None else choices(text)
        except ValueError:
            raise bad_parameter(name, f"must be one of {', '.join(choices)}") from None

    def moment(self, name: str) -> int | datetime | None:
        """A position, or a time with its zone (RFC 3339)."""
        text = self.text(name)
        if text is None or (text.isascii() and text.isdecimal()):
            return None if text is None else self.integer(name, 0)
        try:
            # A `+` that was not escaped arrives as a blank.
            moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise bad_parameter(name, "must be a position, or a time such as 2026-01-31T12:00:00Z")
        return moment


def id_in(request: web.Request, name: str = "id") -> UUID:
    """The id in the path; raises NotFound for what cannot be one."""
    text = request.match_info[name]
    try:
        id = UUID(text)
    except ValueError:
        raise NotFound("there is no such thing") from None
    if str(id) != text.lower():
        raise NotFound("there is no such thing")
    return id


async def reflected(request: web.Request, query: Query) -> int:
    """Return the position the read model has reached, once that is `min_position` at least.

    Raises a 504 Problem after a few seconds.
    """
    queries = request.app[SERVICES].queries
    least = await least_position(request, query)
    if least:
        try:
            await queries.wait_for(least, timeout=LONGEST_WAIT)
        except TimeoutError:
            raise not_reached(least, await queries.position()) from None
    return await queries.position()


async def least_position(request: web.Request, query: Query) -> int:
    """Return the position that the answer must reflect; 0 where the request names none.

    `latest` is resolved to the end of the log, once, so that waiting for it ends.
    """
    text = query.text("min_position")
    if text == LATEST:
        return await request.app[SERVICES].log.head()
    if text is not None and not (text.isascii() and text.isdecimal()):
        what = f"must be a position (a whole number from 0 to {MAX_POSITION}), or {LATEST}"
        raise bad_parameter("min_position", what)
    return query.integer("min_position", 0)


def not_reached(least: int, reached: int) -> Problem:
    """The 504 Problem; its member `min_position` is what to ask for again."""
    return Problem(
        504,
        "position_not_reached",
        f"position {least} is not reflected yet, only {reached}; ask again with it as min_position",
        headers=RETRY_SOON,
        members={"min_position": least, "position": reached},
    )
