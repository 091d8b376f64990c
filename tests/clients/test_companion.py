"""Companion, Uppy's server for files from cloud storage, uploads with its defaults."""

from __future__ import annotations

from pathlib import Path

from tests.clients.installed import require_package, run_script
from tests.interfaces.uploads.server import serving, upload_in

SIZE = 3_000_000


async def test_companion_brings_a_file_from_a_url(database_url: str, tmp_path: Path) -> None:
    require_package("@uppy/companion")
    async with serving(database_url, tmp_path) as server:
        url = await run_script("companion.mjs", f"{server.url}/files/", server.key, str(SIZE))
        answer = await server.ask("GET", url)
        assert answer.body == (b"Companion " * SIZE)[:SIZE]
        upload = await server.services.log.upload(upload_in(url))
        assert (upload.path, upload.media_type) == ("notes é.txt", "text/plain")
