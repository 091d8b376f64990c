"""Every path, setting, command and route that the documentation names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from cyclopts import App

from infrastructure.settings import Settings
from infrastructure.settings_loader import fields
from interfaces.cli.main import make_app
from interfaces.rest.app import OPERATIONS, build_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Variables that are not settings: the client's, the tests', and a placeholder of docs/deploy.
OTHER_VARIABLES = {"CONFIG", "URL", "KEY", "TEST_DATABASE_URL", "DOMAIN"}
TOP_FOLDERS = (
    "domain|application|infrastructure|interfaces|tests|benchmarks|docs|clients|examples|js"
)
PATH = re.compile(rf"(?:{TOP_FOLDERS})/[\w@.*/-]*(?::[\w.]+)?")
MEDIA_TYPE = re.compile(r"application/(?:zip|pdf|[\w.]+[-+][\w.+-]+)")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
ROUTE = re.compile(
    r"((?:(?:GET|POST|HEAD|PATCH|PUT|DELETE) )*)(/(?!etc/|var/|url$|problems/)[^ ]*)"
)
NOT_ROUTES = re.compile(r"/files/\d")  # JSON Pointers into a list of files
ROUTE_PREFIXES = ("/v1/", "/files", "/log", "/healthz", "/readyz", "/metrics", "/openapi", "/async")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_the_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name) if name else page
        if not linked.exists() or (anchor and anchor not in headings(linked)):
            missing.append(target)

    assert missing == []


@pages
def test_the_paths_exist(page: Path) -> None:
    missing = []
    for text in inline_code(page):
        if not PATH.fullmatch(text) or MEDIA_TYPE.fullmatch(text):
            continue
        name, _, symbol = text.partition(":")
        base = {"js": ROOT / "interfaces/web/static", "examples": ROOT / "docs"}
        found = list(base.get(name.split("/")[0], ROOT).glob(name.rstrip("/")))
        if not found or (symbol and symbol not in symbols(found[0])):
            missing.append(text)

    assert missing == []


@pages
def test_the_settings_exist(page: Path) -> None:
    text = page.read_text()
    named = {name.lower() for name in re.findall(r"UPTRAIL_([A-Z_]+[A-Z])", text)}
    named -= {name.lower() for name in OTHER_VARIABLES}
    named |= set(re.findall(r"\bsettings? `([a-z_]+)`", text))

    assert named <= set(fields())


def test_the_table_of_settings_has_no_setting_that_is_gone() -> None:
    manual = (ROOT / "docs/operating.md").read_text()
    table = manual.partition("| setting | default |")[2].partition("\n\n")[0]

    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(fields())


@pages
def test_the_commands_and_their_options_exist(page: Path) -> None:
    assert [line for line in command_lines(page) if not is_command(line)] == []


@pages
def test_the_routes_exist(page: Path) -> None:
    assert missing_routes(page) == []


@pages
def test_the_query_parameters_of_routes_exist(page: Path) -> None:
    known = {
        (operation.method, normal(operation.path)): set(operation.query) for operation in OPERATIONS
    }
    missing = [
        f"{text}: {name}"
        for text in inline_code(page)
        if (match := re.fullmatch(r"GET (/v1/[^ ?]*)\?([\w&={},*]+)", text))
        for path in alternatives(match[1])
        for name in re.findall(r"(?:^|&)(\w+)", match[2])
        if name not in known.get(("GET", normal(path)), {name})
    ]

    assert missing == []


def test_the_api_manual_names_every_route() -> None:
    named = {normal(path) for _, path in named_routes(ROOT / "docs/api.md")}
    own = {"/", "/favicon.ico", "/static/*"}  # the dashboard

    assert set(routes()) - named - own == set()


def test_every_entry_of_the_changelog_names_its_area() -> None:
    """A merge by union may put an old form of an entry back; entries of old had no area."""
    text = (ROOT / "CHANGELOG.md").read_text()

    entries = re.findall(r"^- .*$", text, re.MULTILINE)
    assert [entry for entry in entries if not re.match(r"- \*\*[A-Z][\w ]+\*\*", entry)] == []
    assert len(set(entries)) == len(entries)


def test_stale_references_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`application/gone.py` [gone](gone.md) [none](page.md#none) the setting `no_such_setting`"
        " `uptrail gone` `uptrail batch show --gone` `POST /v1/gone` `DELETE /v1/batches`\n"
    )

    for check in (
        test_the_links_lead_to_files_and_headings_that_exist,
        test_the_paths_exist,
        test_the_settings_exist,
    ):
        with pytest.raises(AssertionError):
            check(page)
    assert [is_command(line) for line in command_lines(page)] == [False, False]
    assert missing_routes(page) == ["POST /v1/gone", "DELETE /v1/batches"]


def without_fences(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    return INLINE.findall(without_fences(page))


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them."""
    lines = re.findall(r"^#+ (.*)$", without_fences(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@cache
def symbols(module: Path) -> set[str]:
    """Return the functions, classes and methods that a Python module defines."""
    if module.suffix != ".py":
        return set(re.findall(r"\b(\w+)\s*\(", module.read_text()))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(module.read_bytes())
    top = [node for node in tree.body if isinstance(node, definitions)]
    inner = (
        f"{node.name}.{child.name}"
        for node in top
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, definitions)
    )
    return {node.name for node in top} | set(inner)


def command_lines(page: Path) -> Iterator[str]:
    """Yield the `uptrail` command lines of inline code and of shell blocks."""
    for text in inline_code(page):
        if text.startswith("uptrail "):
            yield text
    for language, block in FENCE.findall(page.read_text()):
        prompt = {"": r"\$ ", "console": r"\$ ", "sh": ""}.get(language)
        if prompt is not None:
            for line in re.findall(rf"^{prompt}(uptrail [a-z].*)$", block, re.MULTILINE):
                yield line.partition(" #")[0]


def is_command(line: str) -> bool:
    """Whether a command, or each of several (`a | b`), exists with its options."""
    tokens = re.findall(r"[^\s`]+", line.partition(": ")[0])[1:]
    app: App = make_app()
    while tokens and re.fullmatch(r"[a-z]+", tokens[0]) and tokens[0] in set(app):
        app = app[tokens.pop(0)]
    if app.default_command is None and (tokens or app.name == ("uptrail",)):
        return bool(tokens) and tokens[0] in {"--help", "--version", "upload|worker"}
    options = {token.partition("=")[0] for token in tokens if token.startswith("--")}
    known = {"--help", "--debug"} | {
        name for argument in app.assemble_argument_collection() for name in argument.names
    }
    return options <= known


@cache
def routes() -> dict[str, set[str]]:
    """Return the methods of every path that a server of default settings routes."""
    services: Any = MagicMock()
    services.settings = Settings()
    found: dict[str, set[str]] = {}
    for route in build_app(services).router.routes():
        assert route.resource is not None
        found.setdefault(normal(route.resource.canonical), set()).add(route.method)
    return found


def missing_routes(page: Path) -> list[str]:
    known = routes()
    return [
        f"{method} {path}".strip()
        for methods, path in named_routes(page)
        for method in methods or [""]
        if normal(path) not in known or (method and method not in known[normal(path)])
    ]


def named_routes(page: Path) -> Iterator[tuple[list[str], str]]:
    """Yield the methods and path of every route in inline code."""
    for text in inline_code(page):
        match = ROUTE.fullmatch(text)
        if match is None or "..." in text or NOT_ROUTES.match(match[2]):
            continue
        if match[1] or match[2].startswith(ROUTE_PREFIXES):
            for path in alternatives(match[2].partition("?")[0]):
                yield match[1].split(), path


def alternatives(path: str) -> list[str]:
    """Expand `{a,b}` into one path each; `{id}` stays. A group may contain `{id}`."""
    pieces = re.split(r"\{((?:[^{}]|\{\w+\})*,(?:[^{}]|\{\w+\})*)\}", path)
    choices = [piece.split(",") if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def normal(path: str) -> str:
    """Return a path with its variables as `*` and without a slash at the end."""
    return re.sub(r"\{\w+\}", "*", path).rstrip("/") or "/"
