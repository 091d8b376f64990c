"""The runner of the application: also what never becomes a request is answered with a problem."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from aiohttp import web

from interfaces.rest.problems import Problem


class Connection(web.RequestHandler):
    """A connection whose unreadable requests get a problem document too."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what cannot be read as HTTP, or failed before any middleware; then closes."""
        if isinstance(exc, Problem):
            answer = exc.response(request)
        else:
            super().handle_error(request, status, exc, message)  # logs, and raises if too late
            answer = _unreadable(status).response(request)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cache-Control"] = "no-store"
        answer.force_close()
        return answer


class Server(web.Server):
    """Makes a Connection of ours for each that is accepted."""

    def __init__(self, server: Any, **kwargs: Any) -> None:
        super().__init__(server.request_handler, request_factory=server.request_factory, **kwargs)
        self._options = kwargs

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """`web.AppRunner` with connections of ours; takes the same arguments.

    A body is never unpacked on the way in: sizes and offsets count bytes as they were sent, and
    a small body cannot turn into a large one.
    """

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        super().__init__(app, **{"auto_decompress": False, "access_log": None, **kwargs})

    async def _make_server(self) -> Server:
        return Server(await super()._make_server(), **self._kwargs)


def _unreadable(status: int) -> Problem:
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(status, "malformed_request", "this cannot be read as an HTTP request")
    return Problem(status, "internal_error", "the error is logged")
