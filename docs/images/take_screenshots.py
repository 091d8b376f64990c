"""Take the screenshots of the manuals: `python docs/images/take_screenshots.py`. Needs Chromium.

A server with a pipeline that fails now and then receives a catalogue of pictures. The pictures of
the page are taken while it works.
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import shutil
import socket
import subprocess
import sys
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from aiohttp import web
from PIL import Image, ImageDraw
from playwright.async_api import Browser, Page, async_playwright

IMAGES = Path(__file__).parent
SECRET = "whsec_" + b64encode(b"for screenshots only 012345").decode()
SETTINGS = """
public_url = "http://127.0.0.1:{port}"
allow_private_addresses = true
worker_concurrency = 16

[pipelines.default]
retry_policy = {{ attempts = 3, first_delay = 4.0, longest_delay = 30.0 }}
steps = [
    {{ processor = "media-type", options = {{ strict = true }} }},
    {{ processor = "thumbnail" }},
    {{ processor = "http", name = "tagging", options = {{ url = "{url}", secret = "{secret}" }} }},
]
"""
TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
WIDTH = 1240  # CSS pixels
SCALE = 1.5  # device pixels for one


@asynccontextmanager
async def tagging_service() -> AsyncIterator[str]:
    """Serve the `http` step: it takes two seconds, and is overloaded for one file in eight."""
    calls: dict[str, int] = {}

    async def tag(request: web.Request) -> web.Response:
        path = (await request.json())["data"]["path"]
        calls[path] = calls.get(path, 0) + 1
        await asyncio.sleep(2 + zlib.crc32(path.encode()) % 100 / 100)
        if calls[path] == 1 and zlib.crc32(path.encode()) % 8 == 0:
            return web.json_response({"detail": "overloaded"}, status=503)
        return web.json_response({"result": {"tags": ["chair", "oak"]}})

    app = web.Application()
    app.router.add_post("/", tag)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def server(folder: Path, service: str) -> AsyncIterator[tuple[str, str]]:
    """Run a server; yield its address and a login link."""
    config = folder / "uptrail.toml"
    port = free_port()
    config.write_text(SETTINGS.format(port=port, url=service, secret=SECRET))
    command = [str(Path(sys.executable).parent / "uptrail"), "serve", "--port", str(port)]
    command += ["--data-dir", str(folder / "data"), "--config", str(config)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if found := re.search(rb"(http://\S+)/login\?code=\S+", line):
                yield found[1].decode(), found[0].decode()
                break
    finally:
        process.terminate()
        await process.wait()


def picture(seed: int) -> bytes:
    """Return a JPEG of some 40 KB."""
    chance = random.Random(seed)  # noqa: S311
    image = Image.frombytes("RGB", (60, 40), chance.randbytes(60 * 40 * 3)).resize((900, 600))
    ImageDraw.Draw(image).ellipse((200, 100, 700, 500), fill=(chance.randrange(255), 120, 90))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def catalogue() -> dict[str, bytes]:
    """Return the files of the main batch: pictures, of which some are damaged."""
    files = {}
    for number in range(120):
        side = ("front", "side")[number % 2]
        content = picture(number)
        if number % 40 == 11:
            content = content[: len(content) // 3]
        elif number % 50 == 31:
            content = b"<html>This picture has moved.</html>"
        files[f"Autumn catalogue/furniture/chairs/UT-{4100 + number}_{side}.jpg"] = content
    return files


async def send(
    client: aiohttp.ClientSession, label: str, files: Mapping[str, bytes], *, seal: bool = True
) -> str:
    async with client.post("/v1/batches", json={"label": label}) as response:
        batch: str = (await response.json())["id"]
    for path, content in files.items():
        named = f"filename {b64encode(path.encode()).decode()}"
        named += f",filetype {b64encode(b'image/jpeg').decode()}"
        headers = {**TUS, "Upload-Length": str(len(content)), "Upload-Metadata": named}
        url = f"/v1/batches/{batch}/uploads"
        async with client.post(url, headers=headers, data=content) as response:
            assert response.status == 201, await response.text()
    if seal:
        await client.post(f"/v1/batches/{batch}/seal")
    return batch


async def open_page(browser: Browser, login: str) -> Page:
    context = await browser.new_context(
        viewport={"width": WIDTH, "height": 900}, device_scale_factor=SCALE, locale="en-GB"
    )
    page = await context.new_page()
    await page.goto(login)
    if await page.get_by_role("button", name="Sign in").count():
        await page.get_by_role("button", name="Sign in").click()
    await page.get_by_role("link", name="Batches").first.wait_for()
    return page


async def take(page: Page, name: str, height: int) -> None:
    await page.set_viewport_size({"width": WIDTH, "height": height})
    await page.mouse.move(0, 0)
    await page.evaluate("window.scrollTo(0, 0)")
    await page.screenshot(path=IMAGES / f"{name}.png")


async def take_all(browser: Browser, address: str, login: str, key: str, folder: Path) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(address, headers=headers) as client:
        await send(client, "Delivery notes, July", {f"{n}.jpg": picture(n) for n in range(12)})
        await send(client, "Passport scans", {"front.jpg": picture(1), "back.jpg": b"no picture"})
        await send(client, "Site survey, north", {}, seal=False)
        page = await open_page(browser, login)
        batch = await send(client, "Autumn catalogue, final cut", catalogue())

        await page.goto(f"{address}/#/batches/{batch}")
        await page.get_by_text(re.compile(r"^[5-8]\d %$")).first.wait_for(timeout=120_000)
        retried = page.get_by_role("option").filter(has_text="attempt 2").first
        await retried.click(timeout=60_000)
        await page.get_by_text(re.compile("^Attempt 2")).first.wait_for()
        await take(page, "batch", 1130)
        await page.goto(f"{address}/#/batches")
        await page.get_by_text("Autumn catalogue").wait_for()
        await take(page, "batches", 640)

        await page.goto(f"{address}/#/batches/{batch}")
        await page.get_by_text("100 %").first.wait_for(timeout=120_000)
        await page.get_by_role("link", name="History", exact=True).first.click()
        slider = page.get_by_role("slider", name="Position")
        await slider.wait_for()
        await slider.focus()
        failed = page.get_by_text("Attempt failed").first
        for _ in range(400):
            await page.keyboard.press("ArrowLeft")
            if await failed.is_visible():
                break
        await failed.click()
        await take(page, "history", 900)
        await take_upload(page, address, folder)


async def take_upload(page: Page, address: str, folder: Path) -> None:
    """Send large files over a slow line."""
    films = folder / "Site survey"
    await asyncio.to_thread(films.mkdir)
    for number, size in enumerate((38, 41, 52, 47), 1):
        (films / f"flight-{number:02}.mp4").write_bytes(random.Random(1).randbytes(size * 10**6))  # noqa: S311
    await page.goto(f"{address}/#/send")
    session = await page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 20, "downloadThroughput": -1, "uploadThroughput": 6e6}
    await session.send("Network.emulateNetworkConditions", slow)
    await page.locator("input[webkitdirectory]").set_input_files(films)
    await page.get_by_role("button", name="Upload", exact=True).click()
    await page.get_by_text(re.compile(r"^[3-5]\d %$")).first.wait_for(timeout=120_000)
    await take(page, "upload", 640)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def main(folder: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed")
    async with (
        tagging_service() as service,
        server(folder, service) as (address, login),
        async_playwright() as playwright,
    ):
        key = (folder / "data" / "admin.key").read_text().strip()
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        await take_all(browser, address, login, key, folder)
        await browser.close()


if __name__ == "__main__":
    with TemporaryDirectory(prefix="uptrail-images-") as name:
        Path(name).chmod(0o711)
        asyncio.run(main(Path(name)))
