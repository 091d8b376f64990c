"""Apply each mutant to a copy of the tree and run the tests that must notice it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent
TIMEOUT = 600.0  # seconds for the tests of one mutant; a mutant that makes them hang is noticed
TESTS_FAILED = 1  # exit code of pytest


@dataclass(frozen=True)
class Edit:
    """Replacement of a text that occurs exactly once in a file."""

    file: str
    old: str
    new: str

    def problem(self, tree: Path) -> str | None:
        """Return why the edit does not apply; None if it does."""
        path = tree / self.file
        if not path.is_file():
            return f"{self.file} does not exist"
        count = path.read_text().count(self.old)
        return None if count == 1 else f"`old` occurs {count} times in {self.file}, not once"

    def apply(self, tree: Path) -> None:
        path = tree / self.file
        path.write_text(path.read_text().replace(self.old, self.new))

    def revert(self, tree: Path) -> None:
        shutil.copyfile(ROOT / self.file, tree / self.file)


@dataclass(frozen=True)
class Mutant:
    """Small change to the product, and the pytest arguments of tests that must fail by it."""

    name: str
    reason: str
    edits: tuple[Edit, ...]
    tests: str
    survives: str

    @property
    def problem(self) -> str | None:
        """Return why the mutant does not apply to this tree; None if it does."""
        return next((found for edit in self.edits if (found := edit.problem(ROOT))), None)


@dataclass(frozen=True)
class Outcome:
    """Result of one mutant: `killed`, `survived`, `broken` or `outdated`. Seconds of its tests."""

    mutant: Mutant
    result: str
    seconds: float = 0.0
    detail: str = ""

    @property
    def is_expected(self) -> bool:
        return self.result == ("survived" if self.mutant.survives else "killed")


def load_mutants(patterns: Sequence[str] = ("*",)) -> list[Mutant]:
    """Return the mutants whose `<area>-<name>` matches one of the patterns."""
    mutants = [mutant for path in sorted(FOLDER.glob("*.toml")) for mutant in _read(path)]
    return [one for one in mutants if any(fnmatch(one.name, pattern) for pattern in patterns)]


def _read(path: Path) -> Iterator[Mutant]:
    for entry in tomllib.loads(path.read_text()).get("mutant", []):
        places: list[dict[str, Any]] = [entry, *entry.get("more", [])]
        yield Mutant(
            name=f"{path.stem}-{entry['name']}",
            reason=entry["reason"],
            edits=tuple(Edit(one["file"], one["old"], one["new"]) for one in places),
            tests=entry["tests"],
            survives=entry.get("survives", ""),
        )


def main() -> int:
    arguments = _arguments()
    mutants = load_mutants(arguments.patterns or ("*",))
    if not mutants:
        print("no mutant has such a name")
        return 2
    with TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.parallel):
            trees.put(_copy_tree(Path(folder) / str(number)))
        with ThreadPoolExecutor(arguments.parallel) as threads:
            outcomes = []
            for outcome in threads.map(lambda mutant: _try(mutant, trees), mutants):
                outcomes.append(outcome)
                print(
                    f"{outcome.result:9} {outcome.seconds:5.0f} s  {outcome.mutant.name}"
                    f"{'  ' + outcome.detail if outcome.detail else ''}",
                    flush=True,
                )
                if arguments.table:
                    _update_table(arguments.table, outcomes)
    unexpected = [outcome for outcome in outcomes if not outcome.is_expected]
    print(f"{len(outcomes)} mutants, {len(unexpected)} not as expected")
    return 1 if unexpected else 0


def _copy_tree(target: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def _try(mutant: Mutant, trees: SimpleQueue[Path]) -> Outcome:
    if problem := mutant.problem:
        return Outcome(mutant, "outdated", detail=problem)
    tree = trees.get()
    try:
        for edit in mutant.edits:
            edit.apply(tree)
        return _test(mutant, tree)
    finally:
        for edit in mutant.edits:
            edit.revert(tree)
        trees.put(tree)


def _test(mutant: Mutant, tree: Path) -> Outcome:
    """Run the tests in the tree. Child processes of the tests import the tree as well."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *shlex.split(mutant.tests)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Outcome(mutant, "killed", TIMEOUT, "timeout")
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Outcome(mutant, "survived", seconds, mutant.survives)
    if done.returncode == TESTS_FAILED:
        return Outcome(mutant, "killed", seconds)
    last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    return Outcome(mutant, "broken", seconds, f"pytest ended with {done.returncode}: {last}")


def _update_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes, and keep the earlier ones of mutants that this run does not have."""
    rows = dict(
        re.findall(r"^\| `(\S+)` (\|.*\|)$", path.read_text(), re.M) if path.exists() else ()
    )
    for outcome in outcomes:
        reason = f": {outcome.mutant.survives}" if outcome.mutant.survives else ""
        rows[outcome.mutant.name] = f"| {outcome.mutant.reason} | {outcome.result}{reason} |"
    listed = [mutant.name for mutant in load_mutants()]
    known = [name for name in listed if name in rows]
    killed = sum("| killed |" in rows[name] for name in known)
    lines = [
        "# Mutants",
        "",
        f"`make mutants TABLE=docs/mutants.md`: of {len(listed)} small changes to the product,",
        f"{len(known)} were run, and {killed} of these are noticed by the tests beside them.",
        "[The list](../tests/mutants/README.md) has the changes.",
        "",
        "| mutant | breaks | result |",
        "|---|---|---|",
        *(f"| `{name}` {rows[name]}" for name in known),
    ]
    path.write_text("\n".join(lines) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument(
        "patterns", nargs="*", metavar="NAME", help="such as 'audit-*'; all without"
    )
    parser.add_argument("--parallel", type=int, default=2, help="mutants at the same time")
    parser.add_argument("--table", type=Path, help="write the results here, in Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
