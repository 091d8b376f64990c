"""A server whose database role owns nothing works fully and cannot alter the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from infrastructure.settings import Settings
from interfaces.cli.main import run
from tests.interfaces.cli.conftest import Command, command
from tests.interfaces.conftest import serving
from tests.system_postgres import system_postgres

__all__ = ["command"]


class Roles(NamedTuple):
    """URLs of one database for its owner and for a serving role."""

    owner: str
    serving: str


@pytest.fixture(scope="module")
def roles() -> Iterator[Roles]:
    with system_postgres() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE owner LOGIN")
            connection.execute("CREATE ROLE serving LOGIN")
            connection.execute(
                "CREATE DATABASE uptrail OWNER owner ENCODING 'UTF8' TEMPLATE template0"
            )
        named = url.replace("/postgres?", "/uptrail?")
        yield Roles(
            named.replace("//postgres@", "//owner@"), named.replace("//postgres@", "//serving@")
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving") / "data"


@pytest.fixture(scope="module")
def granted(roles: Roles, folder: Path) -> Roles:
    """Grant the roles as in docs/operating.md."""
    store = ("--database-url", roles.owner, "--data-dir", str(folder))
    assert run(["database", "migrate", *store]) == 0
    assert run(["database", "grant", "serving", *store]) == 0
    return roles


def test_a_server_works_with_a_role_that_owns_nothing(
    granted: Roles, folder: Path, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    settings = Settings(data_dir=folder, database_url=granted.serving, port=0)
    place = ("--data-dir", folder)
    with serving(settings):
        sent = command("upload", tmp_path / "a.txt", "--wait", "--json", *place)
        assert sent.code == 0, sent
        made = command("key", "create", "--scope", "viewer", "--json", *place).json
        assert command("key", "revoke", made["key"]["id"], *place).code == 0
        hook = command("webhook", "add", "https://hooks.example/", *place)
        assert hook.code == 0, hook.err
        assert command("seal", "now", "--database-url", granted.serving, *place).code == 0
        assert command("history", "show", sent.json["id"], *place).code == 0
        owner = ("--database-url", granted.owner)
        verified = command("verify", *owner, *place)
        assert verified.code == 0, verified.out
        # As after an upgrade: the owner rebuilds, and the server goes on with the new tables.
        assert command("projection", "rebuild", *owner, *place).code == 0
        again = command("batch", "start", "--json", *place)
        shown = command("batch", "show", again.json["id"], *place)
        assert (again.code, shown.code) == (0, 0), shown.err


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE stored_events SET topic = 'x'",
        "DELETE FROM stored_events",
        "TRUNCATE stored_events",
        "INSERT INTO stored_events VALUES (gen_random_uuid(), 1, 'x', '', 5)",
        "ALTER TABLE stored_events DISABLE TRIGGER ALL",
        "DROP TABLE stored_events",
        "SELECT setval('stored_events_notification_id_seq', 1)",
        "UPDATE audit.seals SET at = now()",
        "DELETE FROM audit.seals",
        "DELETE FROM api_keys",
        "DELETE FROM audit.erasures",
        "UPDATE alembic_version SET version_num = '0001'",
    ],
)
def test_the_serving_role_is_refused_what_alters_the_log(granted: Roles, statement: str) -> None:
    with (
        psycopg.connect(granted.serving, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


@pytest.mark.parametrize(("role", "problem"), [("owner", "owns the log"), ("nobody", "no role")])
def test_a_role_that_cannot_be_limited_is_refused(
    granted: Roles, folder: Path, command: Command, role: str, problem: str
) -> None:
    store = ("--database-url", granted.owner, "--data-dir", folder)

    refused = command("database", "grant", role, *store)

    assert refused.code == 2
    assert problem in refused.err
