"""The page's own files: public, cached with care, and under a strict policy."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import msgspec
import pytest

from domain.catalogue import EVENT_CLASSES
from interfaces.web.pages import EVENT_DECLARATIONS, STATIC, event_declarations
from tests.interfaces.feed.harness import FeedHarness

SCRIPTS = sorted((STATIC / "js").rglob("*.js"))
STYLES = sorted(STATIC.glob("*.css"))


async def test_the_page_is_public_and_has_a_content_security_policy(feed: FeedHarness) -> None:
    async with aiohttp.ClientSession(feed.address) as session:
        async with session.get("/") as answer:
            assert answer.status == 200
            assert answer.content_type == "text/html"
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["Cache-Control"] == "no-cache"
        tag = answer.headers["ETag"]
        async with session.get("/", headers={"If-None-Match": tag}) as again:
            assert (again.status, await again.read()) == (304, b"")
        async with session.get("/static/js/main.js") as script:
            assert (script.status, script.content_type) == (200, "text/javascript")
        async with session.get("/favicon.ico") as icon:
            assert (icon.status, icon.content_type) == (200, "image/svg+xml")
        for path in ("/static/nothing.js", "/static/../pages.py", "/static/%2e%2e/pages.py"):
            async with session.get(path) as missing:
                assert missing.status in (401, 404)


def test_the_page_brings_everything_itself() -> None:
    """No foreign address, nothing inline that the policy would stop."""
    html = (STATIC / "index.html").read_text()
    for text in (html, *(file.read_text() for file in (*SCRIPTS, *STYLES))):
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text
    assert not re.search(r"<style|style=|\son\w+=|<script>", html)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_each_script_imports_what_is_there(script: Path) -> None:
    imports = re.findall(r"import \{([^}]+)\} from \"(\.[\w./-]+\.js)\"", script.read_text())
    assert len(imports) == script.read_text().count("\nimport ")
    for names, source in imports:
        file = (script.parent / source).resolve()
        is_generated = file == STATIC / EVENT_DECLARATIONS
        offered = event_declarations().decode() if is_generated else file.read_text()
        for name in (name.strip() for name in names.split(",")):
            assert re.search(rf"export (async )?(function|const|class) {name}\b", offered), name


def test_the_page_has_label_icon_tone_and_details_of_every_event() -> None:
    script = event_declarations().partition(b"export const EVENTS = ")[2].rstrip(b";\n")
    page = (STATIC / "index.html").read_text()
    formats = (STATIC / "js/history/event-styles.js").read_text().partition("FORMATS = {")[2]
    known = set(re.findall(r"^  (\w+)[,:]", formats.partition("};")[0], re.MULTILINE))

    assert {topic: shown["label"] for topic, shown in msgspec.json.decode(script).items()} == {
        topic: event.declaration.label for topic, event in EVENT_CLASSES.items()
    }
    for event in EVENT_CLASSES.values():
        assert f'<symbol id="g-{event.declaration.icon}"' in page, event
        assert set(re.findall(r":(\w+)\}", event.declaration.details)) <= known, event
