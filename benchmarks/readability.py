"""Measures names, modules and journeys: `python -m benchmarks.readability [--commit 11c8c62]`.

Standard library only. Every row is counted by a rule simple enough to be run on any commit, so the
figures of two commits compare. Names that need a reader's judgement are not judged.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path

from benchmarks import journeys

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("domain", "application", "infrastructure", "interfaces")
MIGRATIONS = "infrastructure/postgres/migrations/"

STANDARD_NAMES = {"logging"}  # gerunds that are the field's word
NOT_GERUNDS = {"string", "ring", "keyring", "thing", "assembly", "family", "reply"}
ADVERBS = {"alone", "elsewhere", "at_hand", "at_once"}

VAGUE_WORDS = re.compile(r"\b(told|says|nobody|somebody|whoever)\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
OPENERS = {"what", "who", "whether", "how", "where"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One Python file."""

    path: str  # relative to the tree
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def is_counted(self) -> bool:
        """Return whether the file counts as a module: neither `__init__` nor a migration."""
        return not self.path.endswith("__init__.py") and not self.path.startswith(MIGRATIONS)

    @property
    def import_lines(self) -> int:
        return sum(node.end_lineno - node.lineno + 1 for node in self._imports())  # type: ignore[operator]

    def imported_names(self) -> Iterator[str]:
        """Yield every dotted name that an import may bind, module or not."""
        for node in self._imports():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif node.module and not node.level:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def docstrings(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                yield text

    def class_names(self) -> Iterator[str]:
        return (node.name for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    def _imports(self) -> Iterator[ast.Import | ast.ImportFrom]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node


@dataclass
class Report:
    """Rows of the table, and the lists behind some of them."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)


def main() -> None:
    arguments = _arguments()
    trees = [arguments.commit] if arguments.commit else []
    reports: dict[str, Report] = {}
    for commit in [*trees, None]:
        with _checked_out(commit) as tree:
            report = measure(tree)
            if not arguments.static:
                _add_journeys(report, tree)
        reports[commit or "this tree"] = report
    _print_table(reports)
    if arguments.lists:
        _print_lists(reports["this tree"])


def measure(tree: Path) -> Report:
    """Count everything that the files alone show."""
    product = _modules(tree, PRODUCT)
    tests = _modules(tree, ("tests",))
    counted = [module for module in product if module.is_counted]
    report = Report()

    places: defaultdict[str, list[str]] = defaultdict(list)
    for module in product:
        for name in module.class_names():
            places[name].append(module.path)
    shared = {name: found for name, found in places.items() if len(found) > 1}
    report.rows.append(
        (
            "class names used for more than one class",
            f"{len(shared)} names, {sum(map(len, shared.values()))} classes",
        )
    )
    report.lists["class names used for more than one class"] = [
        f"{name}: {', '.join(found)}" for name, found in sorted(shared.items())
    ]

    vague = [module.path for module in counted if is_vague_name(Path(module.path).stem)]
    report.rows.append(
        ("module names that are gerunds or adverbs", f"{len(vague)} of {len(counted)}")
    )
    report.lists["module names that are gerunds or adverbs"] = vague

    docstrings = [text for module in product for text in module.docstrings()]
    words = sum(len(WORD.findall(text)) for text in docstrings)
    found = sum(len(VAGUE_WORDS.findall(text)) for text in docstrings)
    report.rows.append(
        (
            '"told/says/nobody/somebody/whoever" per 1,000 docstring words',
            f"{1000 * found / words:.1f}",
        )
    )
    opened = sum(_first_word(text) in OPENERS for text in docstrings)
    report.rows.append(
        (
            "docstrings that open with What/Who/Whether/How/Where",
            f"{100 * opened / len(docstrings):.1f} %",
        )
    )

    median = statistics.median(module.lines for module in counted)
    report.rows.append(
        (
            "product modules (without `__init__`, migrations); median lines",
            f"{len(counted)}; {median:.0f}",
        )
    )
    single = _modules_with_one_importer(product)
    report.rows.append(("modules with exactly one importer", f"{len(single)}"))
    report.lists["modules with exactly one importer"] = single

    lines = sum(module.lines for module in product)
    imports = sum(module.import_lines for module in product)
    report.rows.append(("share of import lines", f"{100 * imports / lines:.1f} %"))
    report.rows.append(("product lines", f"{lines:,}"))
    report.rows.append(("test lines", f"{sum(module.lines for module in tests):,}"))
    return report


def is_vague_name(name: str) -> bool:
    """Return whether a module's name is an adverb, or its last word is a gerund or adverb."""
    last = name.rpartition("_")[2]
    if name in ADVERBS:
        return True
    return last.endswith(("ing", "ly")) and last not in STANDARD_NAMES | NOT_GERUNDS


def _first_word(docstring: str) -> str:
    found = WORD.match(docstring)
    return found[0].lower() if found else ""


def _modules_with_one_importer(product: Sequence[Module]) -> list[str]:
    names = {module.name for module in product}
    importers: Counter[str] = Counter()
    for module in product:
        importers.update(
            {name for name in module.imported_names() if name in names} - {module.name}
        )
    return [module.path for module in product if module.is_counted and importers[module.name] == 1]


def _modules(tree: Path, folders: Sequence[str]) -> list[Module]:
    return [
        Module(str(path.relative_to(tree)), path.read_text())
        for folder in folders
        for path in sorted((tree / folder).rglob("*.py"))
    ]


def _add_journeys(report: Report, tree: Path) -> None:
    patch, batch = journeys.trace(tree)
    report.rows.append(
        (
            "files a tus PATCH passes until its event is durable; without those of every request",
            f"{len(patch.files)}; {len(patch.files) - len(patch.of_every_request)}",
        )
    )
    report.rows.append(
        (
            "files from `POST /v1/batches` to `BatchCompleted`; run by an idle server, too",
            f"{len(batch.files)}; {len(batch.also_idle)}",
        )
    )
    report.lists["files of a tus PATCH, in order (=: of every request)"] = [
        f"{'=' if file in patch.of_every_request else ' '} {file}" for file in patch.files
    ]
    report.lists["files from `POST /v1/batches` to `BatchCompleted`, in order (~: idle, too)"] = [
        f"{'~' if file in batch.also_idle else ' '} {file}" for file in batch.files
    ]


@contextmanager
def _checked_out(commit: str | None) -> Iterator[Path]:
    """Check out a commit to a temporary folder; yield this tree if none is given."""
    if commit is None:
        yield ROOT
        return
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tempfile.TemporaryDirectory(prefix="uptrail-commit-") as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder).resolve()


def _print_table(reports: dict[str, Report]) -> None:
    print("| | " + " | ".join(reports) + " |")
    print("|---" * (len(reports) + 1) + "|")
    for rows in zip(*(report.rows for report in reports.values()), strict=True):
        print(f"| {rows[0][0]} | " + " | ".join(value for _, value in rows) + " |")


def _print_lists(report: Report) -> None:
    for title, lines in report.lists.items():
        print(f"\n## {title} ({len(lines)})\n")
        print("\n".join(f"  {line}" for line in lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readability", description=__doc__)
    parser.add_argument("--commit", help="measure this commit, too, and print both side by side")
    parser.add_argument(
        "--static", action="store_true", help="leave out the journeys, which start a server"
    )
    parser.add_argument(
        "--lists", action="store_true", help="print also the names and files behind the figures"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
