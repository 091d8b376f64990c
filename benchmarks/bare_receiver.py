"""Minimal aiohttp server that stores each request body durably in a file."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

import uvloop
from aiohttp import web

FOLDER: web.AppKey[Path] = web.AppKey("folder", Path)
NUMBERS = count()
MIB = 1024 * 1024


async def receive(request: web.Request) -> web.Response:
    path = request.app[FOLDER] / str(next(NUMBERS))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        async for chunk in request.content.iter_any():
            os.write(file, chunk)
        os.fdatasync(file)
    finally:
        os.close(file)
    return web.Response(status=201)


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    app = web.Application()
    app[FOLDER] = folder
    app.router.add_route("*", "/{path:.*}", receive)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, read_bufsize=MIB)


if __name__ == "__main__":
    main()
