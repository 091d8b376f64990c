"""Uploads through nginx and Caddy as `docs/deploy` sets them up, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from tests.clients.installed import require_package, run_script
from tests.deploy.proxies import PROXIES, Proxy
from tests.interfaces.uploads.server import BYTES, TUS, Server, serving, upload_in
from tests.support import eventually, path_of

CONTENT = bytes(range(256)) * 12_288  # 3 MiB: curl sends Expect: 100-continue for such a body
VERSIONS = ("--http1.1", "--http2")
IETF = {"Upload-Draft-Interop-Version": "8"}


class Response(NamedTuple):
    """Responses as curl got them: the status lines of all heads, and the last head."""

    statuses: list[str]
    headers: dict[str, str]
    body: str


@asynccontextmanager
async def _behind(
    name: str, url: str, folder: Path, **settings: object
) -> AsyncIterator[tuple[Server, Proxy]]:
    async with serving(url, folder / "data", **{"trust_forwarded": True, **settings}) as server:
        (folder / "proxy").mkdir()
        async with PROXIES[name](folder / "proxy", server.port) as proxy:
            yield server, proxy


async def _curl(
    proxy: Proxy, server: Server, version: str, method: str, url: str, file: Path | None = None, /,
    **headers: str,
) -> Response:  # fmt: skip
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    sent = {**server.as_(server.key), **{k.replace("_", "-"): v for k, v in headers.items()}}
    command = ["curl", "-s", "-i", version, "--max-time", "60", "--cacert", str(proxy.certificate)]
    command += ["--head"] if method == "HEAD" else ["-X", method]
    for header in sent.items():
        command += ["-H", ": ".join(header)]
    if file is not None:
        command += ["--data-binary", f"@{file}"]
    process = await asyncio.create_subprocess_exec(
        *command, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, (process.returncode, output[:1000])
    text, statuses, head = output.decode(), [], ""
    while text.startswith("HTTP/"):
        head, _, text = text.partition("\r\n\r\n")
        statuses.append(head.split("\r\n")[0].strip())
    pairs = (line.partition(": ")[::2] for line in head.split("\r\n")[1:])
    return Response(statuses, {name.lower(): value for name, value in pairs}, text)


@pytest.mark.parametrize("name", PROXIES)
async def test_an_ietf_client_uploads_through_a_proxy(
    name: str, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "film.bin"
    file.write_bytes(CONTENT)
    half = tmp_path / "half.bin"
    half.write_bytes(CONTENT[: len(CONTENT) // 2])
    rest = tmp_path / "rest.bin"
    rest.write_bytes(CONTENT[len(CONTENT) // 2 :])

    async with _behind(name, database_url, tmp_path) as (server, proxy):
        for version in VERSIONS:
            number = version.removeprefix("--http")
            url = f"{proxy.url}/v1/uploads?path=film.bin"
            whole = {**IETF, "Upload-Complete": "?1"}
            reply = await _curl(proxy, server, version, "POST", url, file, **whole)
            assert reply.statuses[-1].startswith(f"HTTP/{number} 201")
            assert not any(" 104" in status for status in reply.statuses)
            assert reply.headers["location"].startswith(f"{proxy.url}/v1/uploads/")
            assert await server.content(path_of(reply.headers["location"])) == CONTENT

            begun = {**IETF, "Upload-Complete": "?0"}
            reply = await _curl(proxy, server, version, "POST", url, half, **begun)
            location = reply.headers["location"]
            reply = await _curl(proxy, server, version, "HEAD", location, **IETF)
            assert reply.headers["upload-offset"] == str(len(CONTENT) // 2)
            ended = {**whole, "Upload-Offset": reply.headers["upload-offset"]}
            ended["Content-Type"] = "application/partial-upload"
            reply = await _curl(proxy, server, version, "PATCH", location, rest, **ended)
            assert reply.headers["upload-complete"] == "?1"
            assert await server.content(path_of(location)) == CONTENT


@pytest.mark.parametrize("name", PROXIES)
async def test_a_tus_client_uploads_through_a_proxy(
    name: str, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "film.bin"
    file.write_bytes(CONTENT)
    names = " ".join(f"https://localhost/files/{number:036x}" for number in range(1000))

    require_package("tus-js-client")
    async with _behind(name, database_url, tmp_path) as (server, proxy):
        for version in VERSIONS:
            reply = await _curl(
                proxy, server, version, "POST", f"{proxy.url}/files/",
                **TUS, Upload_Length=str(len(CONTENT)),
            )  # fmt: skip
            location = reply.headers["location"]
            assert location.startswith(f"{proxy.url}/files/")
            sent = {**BYTES, "Upload-Offset": "0"}
            reply = await _curl(proxy, server, version, "PATCH", location, file, **sent)
            assert reply.headers["upload-offset"] == str(len(CONTENT))
            content = await server.content(f"/v1/uploads/{upload_in(location)}")
            assert content == CONTENT
            # 48 KB of URLs in one header are judged by us, not by the proxy.
            many = {**TUS, "Upload-Concat": f"final;{names}"}
            reply = await _curl(proxy, server, version, "POST", f"{proxy.url}/files/", **many)
            assert json.loads(reply.body)["code"] == "bad_parameter", reply
        urls = await run_script(
            "end_to_end.mjs", f"{proxy.url}/files/", server.key, trust=proxy.certificate
        )
        assert len(urls) == 3


@pytest.mark.parametrize("headers", [{}, {"Via": "1.1 cache"}, {"X-Forwarded-For": "192.0.2.1"}])
@pytest.mark.parametrize("setting", ["auto", "on", "off"])
async def test_104_is_sent_where_nothing_shows_a_proxy(
    setting: str, headers: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    """The client is curl, which shows every head it is answered with."""
    file = tmp_path / "film.bin"
    file.write_bytes(CONTENT)

    async with serving(database_url, tmp_path, interim_responses=setting) as server:
        direct = Proxy(server.url, file)
        reply = await _curl(
            direct, server, "--http1.1", "POST", f"{server.url}/v1/uploads", file,
            **IETF, Upload_Complete="?1", **headers,
        )  # fmt: skip
        expected = setting == "on" or (setting == "auto" and not headers)
        assert any(" 104 " in status for status in reply.statuses) == expected
        assert " 201 " in reply.statuses[-1]


@pytest.mark.parametrize("name", PROXIES)
async def test_progress_and_downloads_pass_a_proxy_as_they_come(
    name: str, database_url: str, tmp_path: Path
) -> None:
    """Bytes count once they are here: a proxy that gathers a body would hold them back."""

    async with _behind(name, database_url, tmp_path) as (server, proxy):
        location = await server.create(len(CONTENT))
        silence = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield CONTENT[:500_000]
            await silence.wait()

        url = f"{proxy.url}{location}"
        headers = server.as_(server.key)
        connector = aiohttp.TCPConnector(ssl=proxy.trust)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
            sent = {**BYTES, "Upload-Offset": "0", "Content-Length": str(len(CONTENT))}
            stuck = asyncio.create_task(client.patch(url, headers=sent, data=body()))
            blob = f"uploads/{upload_in(location)}"

            async def arrived() -> bool:
                return await server.services.blobs.size(blob) == 500_000

            await eventually(arrived)
            async with client.head(url, headers=TUS) as answer:
                assert answer.headers["Upload-Offset"] == "500000"
            silence.set()
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)
