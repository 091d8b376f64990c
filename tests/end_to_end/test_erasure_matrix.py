"""An owner with every kind of personal fact is erased, and everything is searched for each value.

The values are those that the history shows before: a personal field that is declared later is
searched as well, and fails the test while the story below records none of it.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psycopg
import pytest
from aiohttp import ClientSession, web
from PIL import Image

from application.pipeline import Pipeline, Step
from domain.catalogue import EVENT_CLASSES
from domain.event import Event, Personal, event_type
from domain.webhook.events import DELIVERED_TOPICS
from infrastructure.erasure import eraser, keyring
from infrastructure.event_store import event_log
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.settings import Settings
from interfaces.bootstrap.container import open_database
from tests.interfaces.conftest import LiveServer, serving
from tests.support import eventually, free_port

OWNER = "tenant-7"
TOKEN = "geheim7"  # in every text of the story that is personal
PUBLIC_TEXTS = {"image/png", "thumbnail"}  # a usual media type, the name of a step
MIN_LENGTH = 8  # characters: a shorter text may be anywhere by chance

# Text that stays readable, by its place in docs/audit.md, "Not covered".
WEBHOOK_LABEL = "chosen by its owner"

SECRETS = {
    "bytes of a file": "inh\u00e4lt-geheim7 dear diary",
    "bytes of an unfinished upload": "halb-\u00fcbertragen-geheim7",
    "metadata of a part": "teil-\u00e4ngabe-geheim7",
    "name of a rejected file": "abgel\u00e4hnt-geheim7.exe",
    "what a service answered": "\u00e4ntwort-geheim7",
}
PART_BYTES = "teil-b\u00fctes-geheim7"  # stay until the part expires
CONTENT = SECRETS["bytes of a file"].encode()
CHECKSUM = f"sha256:{sha256(CONTENT).hexdigest()}"


class Partner:
    """A service of an `http` step, and receivers of webhooks that repeat what they were sent."""

    def __init__(self) -> None:
        self.url = ""
        self.errands: list[dict[str, Any]] = []
        self.refused = self.accepted = 0

    async def step(self, request: web.Request) -> web.Response:
        data = (await request.json())["data"]
        path = data["path"]
        if "fl\u00e4ky" in path:
            error = {"message": f"{path}: kein Pl\u00e4tz-geheim7, Versuch {data['attempt']}"}
            return web.json_response({"error": error})
        if "danger" in path or "releas" in path:
            error = {"message": f"{path}: gef\u00e4hrlich-geheim7", "kind": "quarantine"}
            return web.json_response({"error": error})
        if "w\u00e4it" in path:
            self.errands.append(data)
            return web.Response(status=202)
        answer = {"seen": path, "said": SECRETS["what a service answered"]}
        return web.json_response({"result": answer})

    async def refuse(self, request: web.Request) -> web.Response:
        self.refused += 1
        return web.Response(status=500, body=await request.read())

    async def accept(self, request: web.Request) -> web.Response:
        self.accepted += 1
        return web.Response(status=200, body=await request.read())


@asynccontextmanager
async def open_partner() -> AsyncIterator[Partner]:
    partner = Partner()
    app = web.Application()
    for name in ("step", "refuse", "accept"):
        app.router.add_post(f"/{name}", getattr(partner, name))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        partner.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield partner
    finally:
        await runner.cleanup()


class Client:
    """Requests with one key; a refusal fails the test."""

    def __init__(self, session: ClientSession, key: str) -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}"}

    async def send(self, method: str, path: str, **options: Any) -> Any:
        status, content, headers = await self.ask(method, path, **options)
        assert status < 300, (method, path, status, content)
        self.location = headers.get("Location", "")
        return json.loads(content) if content.startswith((b"{", b"[")) else content

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, bytes, Any]:
        headers = {**self._headers, **options.pop("headers", {})}
        async with self._session.request(method, path, headers=headers, **options) as response:
            return response.status, await response.read(), response.headers

    async def history(self) -> list[dict[str, Any]]:
        path = "/v1/history?format=ndjson&min_position=latest"
        status, content, _ = await self.ask("GET", path)
        assert status == 200
        return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server with an embedded database, so that all its files are in reach."""
    monkeypatch.setattr(eraser, "SETTLE_SECONDS", 0.0)
    for module in (eraser, keyring):
        monkeypatch.setattr(module, "KEY_CACHE_SECONDS", 0.3)
    monkeypatch.setattr(event_log, "SNAPSHOT_INTERVAL_EVENTS", 3)
    yield tmp_path / "data"
    EmbeddedPostgres(tmp_path / "data").discard()


def settings_for(data_dir: Path, partner: Partner) -> Settings:
    options = {"url": f"{partner.url}/step", "secret": "whsec_" + "b2xk" * 8}
    steps = (
        Step(processor="thumbnail", timeout=60.0),
        Step(processor="http", timeout=600.0, options=options),
    )
    return Settings(
        data_dir=data_dir,
        port=free_port(),
        allow_private_addresses=True,
        pipelines={"default": Pipeline(steps=steps)},
    )


async def test_nothing_personal_of_an_erased_owner_is_found_anywhere(data_dir: Path) -> None:
    async with open_partner() as partner:
        chosen = settings_for(data_dir, partner)
        with serving(chosen) as live:
            async with ClientSession(live.url) as session, open_database(chosen) as database:
                admin = Client(session, live.key)
                made = await admin.send(
                    "POST", "/v1/keys", json={"owner": OWNER, "scope": "operator"}
                )
                owner = Client(session, made["text"])
                story = await Story(owner, partner).tell()
                values = await personal_values(admin) | answer_hashes(database.url)
                assert_search_sees(values, live, database.url)

                erased = await admin.send("POST", "/v1/erasures", json={"owner": OWNER})

                async def is_finished() -> bool:
                    path = f"/v1/erasures/{erased['id']}"
                    return bool((await admin.send("GET", path))["finished_at"])

                await eventually(is_finished)
                answers = await all_answers((admin, owner), story)
                found = {
                    **found_in_tables(values, database.url),
                    **found_in_files(values, data_dir),
                    **found_in_answers(values, answers),
                }
                assert not found, listed(found)
                assert_only_parts_are_left(data_dir)
        found = found_in_files(values, data_dir)
        assert not found, listed(found)  # nor once the server has ended


class Story:
    """Everything that an owner may do which leaves personal data."""

    def __init__(self, client: Client, partner: Partner) -> None:
        self._client = client
        self._partner = partner
        self.batches: list[str] = []
        self.uploads: list[str] = []
        self.webhooks: list[str] = []

    async def tell(self) -> Story:
        await self._add_webhooks()
        await self._process_files()
        await self._pause_and_rename()
        await self._cancel()
        await self._leave_a_part()
        await self._wait_for_deliveries()
        return self

    async def _send(self, method: str, path: str, **options: Any) -> Any:
        return await self._client.send(method, path, **options)

    async def _add_webhooks(self) -> None:
        for place in ("refuse", "accept"):
            form = {
                "url": f"{self._partner.url}/{place}",
                "events": list(DELIVERED_TOPICS),
                "description": "of this owner",
            }
            added = await self._send("POST", "/v1/webhooks", json=form)
            self.webhooks.append(added["webhook"]["id"])
        form = {
            "url": f"{self._partner.url}/accept",
            "events": ["batch.completed"],
            "label": WEBHOOK_LABEL,
        }
        await self._send("POST", "/v1/webhooks", json=form)

    async def _start(self, key: str, **form: Any) -> str:
        form.setdefault("label", f"t\u00e4gebuch-geheim7 {key}")
        headers = {"Idempotency-Key": f"once-{key}"}
        started = await self._send("POST", "/v1/batches", json=form, headers=headers)
        self.batches.append(started["id"])
        self.uploads += started["uploads"]
        return str(started["id"])

    async def _put(self, upload: str, content: bytes) -> None:
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
        }
        await self._send("PATCH", f"/v1/uploads/{upload}", headers=headers, data=content)

    async def _state(self, upload: str, *states: str) -> None:
        async def reached() -> bool:
            found = await self._send("GET", f"/v1/uploads/{upload}")
            return found["state"] in states

        await eventually(reached)

    async def _process_files(self) -> None:
        """Success with results and an artifact, failures, quarantine, a release, a rejection."""
        picture = BytesIO()
        Image.new("RGB", (64, 64)).save(picture, "PNG")
        files: dict[str, bytes] = {
            "\u00fcrlaub-geheim7/gut/1.txt": CONTENT,
            "\u00fcrlaub-geheim7/bild.png": picture.getvalue(),
            "\u00fcrlaub-geheim7/fl\u00e4ky.txt": CONTENT,
            "\u00fcrlaub-geheim7/danger.txt": CONTENT,
            "\u00fcrlaub-geheim7/releas.txt": CONTENT,
        }
        declared = [
            {
                "path": path,
                "size": len(content),
                "media_type": "image/png"
                if path.endswith("png")
                else "application/x-taeglich-geheim7",
                "metadata": {
                    "sch\u00fcssel-geheim7": f"f\u00fcr alice-geheim7@example.org {number}"
                },
                **({"checksum": CHECKSUM} if content == CONTENT else {}),
            }
            for number, (path, content) in enumerate(files.items())
        ]
        await self._start(
            "first",
            files=declared,
            metadata={"\u00fcber-geheim7": "k\u00fcndin-geheim7"},
            notify=self.webhooks[0],
            retry_policy={"attempts": 3, "first_delay": 0.05, "longest_delay": 0.05},
        )
        uploads = dict(zip(files, self.uploads, strict=True))
        for path, upload in uploads.items():
            await self._put(upload, files[path])
        batch = self.batches[0]
        rejected = {
            "path": SECRETS["name of a rejected file"],
            "size": 2**50,
            "media_type": "application/x-abgelehnt-geheim7",
        }
        lines = json.dumps(rejected).encode()
        headers = {"Content-Type": "application/x-ndjson"}
        await self._send("POST", f"/v1/batches/{batch}/uploads", data=lines, headers=headers)
        by_name = {path.rpartition("/")[2]: upload for path, upload in uploads.items()}
        await self._state(by_name["1.txt"], "completed")
        await self._state(by_name["bild.png"], "completed")
        await self._state(by_name["fl\u00e4ky.txt"], "failed")
        await self._state(by_name["danger.txt"], "quarantined")
        await self._state(by_name["releas.txt"], "quarantined")
        await self._send(
            "POST",
            f"/v1/uploads/{by_name['releas.txt']}/release",
            json={"reason": "mit \u00e4lice besprochen-geheim7"},
            headers={"Idempotency-Key": "release"},
        )
        await self._send("GET", f"/v1/batches/{batch}/report.csv")
        await self._send("GET", f"/v1/uploads/{by_name['bild.png']}/content")

    async def _pause_and_rename(self) -> None:
        """An open batch, with an upload of which a part arrived."""
        content = SECRETS["bytes of an unfinished upload"].encode()
        first = len(self.uploads)
        batch = await self._start(
            "second", files=[{"path": "h\u00e4lb-geheim7", "size": 1_000_000}]
        )
        await self._put(self.uploads[first], content)
        await self._send("POST", f"/v1/batches/{batch}/pause")
        for number in range(4):
            label = f"\u00fcmbenannt-geheim7 {number}"
            await self._send("PATCH", f"/v1/batches/{batch}", json={"label": label})

    async def _cancel(self) -> None:
        """An upload cancelled while a service works at it, a whole batch, and one still at work."""
        first = len(self.uploads)
        files = [{"path": f"w\u00e4it-geheim7-{n}", "size": len(CONTENT)} for n in range(2)]
        await self._start("third", files=files)
        for upload in self.uploads[first:]:
            await self._put(upload, CONTENT)
        await eventually(lambda: len(self._partner.errands) == 2)
        callback = self._partner.errands[0]["callback_url"]
        progress = {"progress": {"done": 3, "total": 10}}
        await self._send("POST", callback, json=progress)
        await self._send(
            "POST",
            f"/v1/uploads/{self._partner.errands[0]['upload']}/cancel",
            json={"reason": "\u00e4lice bat darum-geheim7"},
            headers={"Idempotency-Key": "cancel"},
        )
        batch = await self._start("fourth")
        await self._send(
            "POST", f"/v1/batches/{batch}/cancel", json={"reason": "f\u00e4lscher Ordner-geheim7"}
        )

    async def _leave_a_part(self) -> None:
        """A tus partial upload that is never joined, in steps, so that it has a snapshot."""
        content = PART_BYTES.encode()
        metadata = b64encode(SECRETS["metadata of a part"].encode()).decode()
        tus = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
        creation = {
            "Upload-Concat": "partial",
            "Upload-Length": "1000000",
            "Upload-Metadata": f"beschreibung-geheim7 {metadata}",
        }
        await self._send("POST", "/v1/uploads", headers={**tus, **creation}, data=content)
        part = self._client.location
        for number in range(1, 6):
            offset = {"Upload-Offset": str(number * len(content))}
            await self._send("PATCH", part, headers={**tus, **offset}, data=content)

    async def _wait_for_deliveries(self) -> None:
        async def are_made() -> bool:
            pages = [
                await self._send("GET", f"/v1/webhooks/{id}/deliveries") for id in self.webhooks
            ]
            refused, accepted = (page["items"] for page in pages)
            return any(one["last"] for one in refused) and any(
                one["state"] == "delivered" or one["ended_at"] for one in accepted
            )

        await eventually(are_made)


# What is searched for: every personal text of the history, and what no event has.


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_in(key)
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def missing_fields(
    events: Iterable[Mapping[str, Any]], classes: Mapping[str, type[Event]]
) -> set[str]:
    """Return the personal fields that no event has a value of."""
    wanted = {
        f"{topic}.{name}"
        for topic, event_class in classes.items()
        for name in event_class.declaration.personal
    }
    return wanted - {
        f"{event['type']}.{name}"
        for event in events
        for name, value in event["data"].items()
        if value
    }


async def personal_values(admin: Client) -> dict[str, str]:
    """The personal texts by what they are, those that no event has included."""
    events = [event for event in await admin.history() if event["type"] in EVENT_CLASSES]
    assert missing_fields(events, EVENT_CLASSES) == set()
    values = dict(SECRETS)
    for event in events:
        for name in EVENT_CLASSES[event["type"]].declaration.personal:
            if (event["type"], name) == ("batch.started", "notify"):
                continue  # the id of a webhook, which stays
            for text in texts_in(event["data"].get(name)):
                if len(text) >= MIN_LENGTH and text not in PUBLIC_TEXTS:
                    values[f"{event['type']}.{name}: {text}"] = text
    return values


def answer_hashes(url: str) -> dict[str, str]:
    """Fingerprints of commands: hashes of what was asked for, such as a reason."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT fingerprint FROM command_answers").fetchall()
    assert rows
    return {f"fingerprint {number}": text for number, (text,) in enumerate(rows)}


def spellings(value: str) -> set[bytes]:
    """The value in plain text, in JSON, in a URL, in base64 and in hex digits."""
    plain = value.encode()
    escaped = json.dumps(value)[1:-1]
    found = {plain, escaped.encode(), escaped.replace("/", r"\/").encode(), plain.hex().encode()}
    for safe in ("", "/"):
        found |= {quote(value, safe).encode(), quote(value, safe).lower().encode()}
    found.add(quote_plus(value).encode())
    for shift in range(3):  # where it may begin in a longer text
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(bytes(shift) + plain)
            first = (shift * 8 + 5) // 6
            last = (shift + len(plain)) * 8 // 6
            found.add(encoded[first:last])
    return found


class Search:
    """The spellings of all values; one that contains TOKEN is found by that, however it is cut."""

    def __init__(self, values: Mapping[str, str]) -> None:
        shorter = {TOKEN if TOKEN in value else value for value in values.values()}
        self._spellings = {text for value in shorter for text in spellings(value)}

    def found_in(self, content: bytes) -> list[bytes]:
        """Return each value with what is around it."""
        content = ZEROS.sub(b"\0", content)  # free space of files would only take time
        places = (content.find(text) for text in self._spellings)
        return [content[max(0, at - 60) : at + 60] for at in places if at >= 0]


ZEROS = re.compile(rb"\0{64,}")


def listed(found: Mapping[str, Iterable[bytes]]) -> str:
    return "\n".join(f"{place}: {text!r}" for place, texts in found.items() for text in texts)


READABLE_TABLES = b"""SELECT schemaname, tablename FROM pg_tables
WHERE has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT')"""


def found_in_tables(values: Mapping[str, str], url: str) -> dict[str, list[bytes]]:
    """Every column of every table of every schema; the files have the catalogs, too."""
    search, found = Search(values), {}
    with psycopg.connect(url) as connection:
        tables = connection.execute(READABLE_TABLES).fetchall()
        for schema, table in tables:
            cursor = connection.execute(f'SELECT * FROM "{schema}"."{table}"'.encode())
            rows = b"\n".join(
                value
                if isinstance(value, bytes)
                else json.dumps(value, default=str, ensure_ascii=False).encode()
                for row in cursor
                for value in row
            )
            if names := search.found_in(rows):
                found[f"table {schema}.{table}"] = names
    return found


def found_in_files(values: Mapping[str, str], data_dir: Path) -> dict[str, list[bytes]]:
    """Every file of the data directory: bytes, logs, keys, and the database with its WAL."""
    search, found = Search(values), {}
    cluster = Path(os.path.realpath(data_dir / "postgres"))
    for place in {data_dir, cluster}:
        for path in place.rglob("*"):
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:  # removed meanwhile
                continue
            if path.parent.parent.name == "blobs" and PART_BYTES.encode() in content:
                continue  # documented: they stay until the part expires
            if names := search.found_in(content):
                found[f"file {path.relative_to(place)}"] = names
    return found


async def all_answers(clients: Iterable[Client], story: Story) -> dict[str, bytes]:
    paths = ["/v1/batches", "/v1/webhooks", "/v1/workers", "/v1/erasures", "/metrics"]
    paths += ["/v1/history?format=ndjson", "/v1/history?limit=1000", "/v1/history/export"]
    for id in story.batches:
        base = f"/v1/batches/{id}"
        paths += [base, f"{base}?at=1000000", f"{base}/uploads", f"{base}/history"]
        paths += [f"{base}/report.json", f"{base}/report.csv", f"{base}/history/export"]
    for id in story.uploads:
        base = f"/v1/uploads/{id}"
        paths += [base, f"{base}/attempts", f"{base}/history", f"{base}/content"]
        paths += [f"{base}/artifacts/thumbnail.webp"]
    for id in story.webhooks:
        base = f"/v1/webhooks/{id}"
        paths += [base, f"{base}/history", f"{base}/deliveries"]
    answers = {}
    for number, client in enumerate(clients):
        for path in paths[:8] if number else paths:
            _, content, headers = await client.ask("GET", path)
            answers[f"{number} {path}"] = content + repr(dict(headers)).encode()
    return answers


def found_in_answers(
    values: Mapping[str, str], answers: Mapping[str, bytes]
) -> dict[str, list[bytes]]:
    search = Search(values)
    return {
        f"answer {path}": names
        for path, content in answers.items()
        if (names := search.found_in(content))
    }


def assert_search_sees(values: Mapping[str, str], live: LiveServer, url: str) -> None:
    """The search finds what is there before the erasure, in each kind of place."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        connection.execute("CHECKPOINT")
    tables, files = found_in_tables(values, url), found_in_files(values, live.data_dir)
    assert set(tables) >= {
        "table read_model.batches",
        "table read_model.uploads",
        "table read_model.attempts",
        "table public.stored_snapshots",
        "table public.command_answers",
        "table webhooks.deliveries",
    }, tables
    assert "table public.stored_events" not in tables
    assert any("/blobs/" in f"/{file.removeprefix('file ')}" for file in files), files
    assert any("base/" in file for file in files), files


def assert_only_parts_are_left(data_dir: Path) -> None:
    """Bytes that are documented to stay: of a partial upload, until it expires."""
    left = [path for path in (data_dir / "blobs").rglob("*") if path.is_file()]
    named = [path for path in left if path.name != "store-id"]
    assert all(PART_BYTES.encode() in path.read_bytes() for path in named), named


# That nothing is left out: fields, and spellings.


def test_a_personal_field_of_which_nothing_is_recorded_is_named() -> None:
    class Annotated_(Event, frozen=True, kw_only=True, tag="batch.annotated"):
        count: int
        note: Personal[str]
        more: Personal[Mapping[str, Any]] = {}

    classes = {"batch.annotated": event_type("Annotated")(Annotated_)}
    events = [{"type": "batch.annotated", "data": {"count": 1, "note": "", "more": {"a": "b"}}}]

    assert missing_fields(events, classes) == {"batch.annotated.note"}


def test_a_text_field_of_an_event_is_classified_before_it_can_be_recorded() -> None:
    class Annotated_(Event, frozen=True, kw_only=True, tag="batch.annotated"):
        note: str

    with pytest.raises(TypeError, match=r"note may hold text"):
        event_type("Annotated")(Annotated_)


@pytest.mark.parametrize(
    "written",
    [
        "t\u00e4gebuch/q7".encode(),
        json.dumps({"label": "t\u00e4gebuch/q7"}).encode(),
        quote("https://x/?label=t\u00e4gebuch/q7").encode(),
        quote("a t\u00e4gebuch/q7", safe="").encode(),
        *(b64encode(b"x" * n + "t\u00e4gebuch/q7 and more".encode()) for n in range(3)),
        *(urlsafe_b64encode(b"x" * n + "t\u00e4gebuch/q7".encode()) for n in range(3)),
        b"\\x" + "t\u00e4gebuch/q7".encode().hex().encode(),
    ],
)
def test_the_search_finds_a_value_in_every_spelling(written: bytes) -> None:
    assert Search({"label": "t\u00e4gebuch/q7"}).found_in(b"before " + written + b" after")
