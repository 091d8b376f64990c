"""Checks of the repository: packages, layers, files and dependencies."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from infrastructure.settings_loader import fields
from interfaces.cli.main import make_app

ROOT = Path(__file__).parents[1]
PACKAGES = ("domain", "application", "infrastructure", "interfaces")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEXTS = {".py", ".md", ".toml", ".txt", ".lock", ".js", ".css", ".html", ".sql", ".json", ""}


def tracked() -> list[Path]:
    """Every text file of the repository, as git knows them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.suffix in TEXTS and path.is_file()]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_layers_import_only_each_other(package: str) -> None:
    assert set(packages_distributions()[package]) == {"uptrail"}


def test_every_module_opens_with_a_docstring() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert silent == []


def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """Install the wheel as an image does; a checkout would find files that the wheel lacks."""
    ours = {str(p.relative_to(ROOT)) for p in tracked() if p.relative_to(ROOT).parts[0] in PACKAGES}
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    options = ["--no-index", "--no-build-isolation", "--no-deps", "--quiet", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(tmp_path)], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert ours - set(opened.namelist()) == set()


def test_every_advisory_lock_has_a_number_of_its_own() -> None:
    numbers = [
        number for path in MODULES for number in re.findall(r"(0x75707472\w*)", path.read_text())
    ]

    assert [number for number, count in Counter(numbers).items() if count > 1] == []
    assert len(numbers) >= 5


def test_requirements_lock_has_hashes_and_names_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\w)", lock)

    assert "://" not in lock
    assert "index" not in lock.replace("importlib", "")
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.]+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]


def test_requirements_lock_holds_every_dependency_and_the_build_backend() -> None:
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    named = {_name(text) for text in PROJECT["project"]["dependencies"]}
    groups = PROJECT["dependency-groups"]
    named |= {_name(text) for group in groups.values() for text in group if isinstance(text, str)}

    assert named - locked == set()
    assert "setuptools" in locked


def test_each_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs/decisions/0001-dependencies-and-layers.md").read_text()

    for text in PROJECT["project"]["dependencies"]:
        assert f"`{_name(text)}`" in reasons, text


def test_no_file_names_a_home_folder() -> None:
    home = re.compile(r"/(?:home|Users)/\w+/|/root/\.?\w+|/work/\w+")
    exempt = Path(__file__)

    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path != exempt and (match := home.search(path.read_text(errors="replace")))
    ]

    assert found == []


def test_the_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    known = {name for name in make_app() if not name.startswith("-")}
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))

    commands = set(re.findall(r"(?:^|[`\s/])uptrail ([a-z]+)\b", readme))
    assert commands <= known
    assert set(re.findall(r"(?:^|[`$] ?)make ([a-z]+)", readme, re.MULTILINE)) <= targets
    assert {"serve", "upload", "batch", "history", "verify", "doctor"} <= commands


def test_the_readme_points_at_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()

    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_every_setting_is_in_the_operating_manual() -> None:
    manual = (ROOT / "docs/operating.md").read_text()

    for field in fields().values():
        row = re.search(rf"^\| `{field.name}` \|.*$", manual, re.MULTILINE)
        assert row, field.name
        assert field.description in row[0]


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return match[0]


def test_nothing_is_raised_in_an_except_star_block() -> None:
    """Before Python 3.11.4 it comes out in a group, so that callers do not catch it."""
    found = [
        f"{path.relative_to(ROOT)}:{statement.lineno}"
        for path in MODULES
        for tree in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(tree, ast.TryStar)
        for handler in tree.handlers
        for statement in ast.walk(handler)
        if isinstance(statement, ast.Raise) and statement.exc is not None
    ]

    assert found == []
