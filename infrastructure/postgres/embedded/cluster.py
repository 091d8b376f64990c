"""The cluster's files: made whole or not at all, and ours to connect to."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Final
from urllib.parse import quote

import msgspec

from infrastructure.postgres.embedded.account import Account
from infrastructure.postgres.embedded.binaries import MAJOR
from infrastructure.postgres.embedded.errors import EmbeddedPostgresError
from infrastructure.postgres.embedded.folders import PORT, private, sync, write_whole
from infrastructure.postgres.embedded.home import Home
from infrastructure.postgres.embedded.log import Log
from infrastructure.postgres.embedded.processes import spawn
from infrastructure.postgres.embedded.settings import INITIAL, options

NAME: Final = "uptrail"  # of the database, and of the role that owns it
_ACCESS_RULES = f"# Written at every start.\nlocal all {NAME} scram-sha-256\n"
# The role is no superuser: an injected statement must not reach files and programs.
_FIRST_STATEMENTS = f"""\
CREATE ROLE {NAME} LOGIN CREATEDB PASSWORD '{{password}}' IN ROLE pg_monitor
CREATE DATABASE {NAME} OWNER {NAME}
"""
# So that an erasure can have removed what is left of old rows (`infrastructure.erasure.rewriting`).
_UPKEEP = (
    f"GRANT pg_maintain, pg_checkpoint TO {NAME}",
    f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {NAME}",
)
_NEW_PASSWORD = f"ALTER ROLE {NAME} PASSWORD '{{password}}'"


class Cluster(msgspec.Struct, frozen=True):
    """One PostgreSQL database cluster, while nobody runs it: whoever calls holds the lease."""

    home: Home
    account: Account
    binaries: Path
    lease: int

    def make_ready(self) -> None:
        """
        Make the cluster if there is none, and what a start needs anew.

        Raises EmbeddedPostgresError if it is another version's, or cannot be made.
        """
        write_whole(self.home.access_rules, _ACCESS_RULES, mode=0o644)
        if not os.path.lexists(self.home.cluster):
            self._make()
        self._require_our_version()
        if not self.home.upkeep.exists():  # a cluster of an earlier version
            self._grant_upkeep(self.home.cluster)
            write_whole(self.home.upkeep, "granted\n", mode=0o644)
        if not self.home.password.exists():  # lost: whoever can read the files may set another
            password = _new_password(self.home)
            self._execute(self.home.cluster, _NEW_PASSWORD.format(password=password))

    def _make(self) -> None:
        """Make it beside its place and move it there complete, whatever kills us meanwhile."""
        unfinished = self.home.unfinished
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        password = _new_password(self.home)
        self._initdb(unfinished)
        self._execute(unfinished / "data", _FIRST_STATEMENTS.format(password=password))
        self._grant_upkeep(unfinished / "data")
        write_whole(self.home.upkeep, "granted\n", mode=0o644)
        (unfinished / "data").rename(self.home.cluster)
        sync(self.home.path)
        shutil.rmtree(unfinished)

    def _initdb(self, unfinished: Path) -> None:
        # The superuser needs a password, and no rule lets it in: nobody keeps this one.
        superuser = unfinished / "superuser"
        write_whole(superuser, secrets.token_urlsafe(32), mode=0o600)
        self.account.own(superuser)
        private(unfinished, self.account)
        self._run(
            "initdb",
            f"--pgdata={unfinished / 'data'}",
            "--username=postgres",
            "--auth=scram-sha-256",
            f"--pwfile={superuser}",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *options(INITIAL),
        )

    def _grant_upkeep(self, cluster: Path) -> None:
        """Functions are granted in each database by itself."""
        self._execute(cluster, "\n".join(_UPKEEP) + "\n", NAME)

    def _execute(self, cluster: Path, statements: str, database: str = "postgres") -> None:
        """Run statements, one a line, as superuser in a server that nobody else can reach."""
        quiet = {
            "exit_on_error": "on",
            "log_checkpoints": "off",
            "log_min_error_statement": "panic",
        }
        arguments = ("--single", *options(quiet), "-D", str(cluster), database)
        self._run("postgres", *arguments, stdin=statements.encode())

    def _run(self, program: str, *arguments: str, stdin: bytes = b"") -> None:
        log = Log(self.home.log)
        command = (str(self.binaries / program), *arguments)
        fd = log.open()
        try:
            process = spawn(command, self.account, log=fd, lease=self.lease, stdin=PIPE)
        finally:
            os.close(fd)
        with process:
            process.communicate(stdin)
        if process.returncode != 0:
            raise EmbeddedPostgresError(
                f"the database could not be set up: {program} failed ({process.returncode})",
                "read why below, put it right and start again",
                log.tail(),
            )

    def _require_our_version(self) -> None:
        with suppress(FileNotFoundError):
            version = (self.home.cluster / "PG_VERSION").read_text().strip()
            if version == str(MAJOR):
                return
            raise EmbeddedPostgresError(
                f"{self.home.cluster} was made by PostgreSQL {version}, this is {MAJOR}",
                f"dump it with PostgreSQL {version}, move it away, and load the dump",
            )
        raise EmbeddedPostgresError(
            f"{self.home.cluster} is no PostgreSQL cluster: it has no PG_VERSION",
            "restore it, or move it away to begin with an empty one",
        )


def url(home: Home, socket_folder: str) -> str:
    """How to connect: over the socket, with the password."""
    password = home.password.read_text().strip()
    return f"postgresql://{NAME}:{password}@/{NAME}?host={quote(socket_folder, '')}&port={PORT}"


def _new_password(home: Home) -> str:
    password = secrets.token_urlsafe(32)
    write_whole(home.password, f"{password}\n", mode=0o600)
    return password
