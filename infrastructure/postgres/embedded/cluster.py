"""The cluster: its settings, its files (created whole or not at all), the start of its server."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Final
from urllib.parse import quote

import msgspec

from infrastructure import files
from infrastructure.postgres.embedded.binaries import MAJOR_VERSION
from infrastructure.postgres.embedded.data_directory import ServerDir
from infrastructure.postgres.embedded.postmaster import Log, clear_stale_files, spawn
from infrastructure.postgres.embedded.system import (
    PORT,
    EmbeddedPostgresError,
    SystemUser,
    make_private_dir,
)

# Parameters of PostgreSQL: those that a user may tune in postgresql.conf, and fixed ones.

# Written into postgresql.conf when the cluster is made: fit for a laptop, the user's to tune.
INITIAL: Final = {
    "shared_buffers": "128MB",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "wal_level": "minimal",  # no replication
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    # The application reports the errors of its own statements; their text is its users'.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


def forced_settings(home: ServerDir, socket_folder: Path) -> dict[str, str]:
    """Given at every start, above postgresql.conf: who gets in, and that a commit is durable."""
    quoted = str(socket_folder).replace('"', '""')
    return {
        "cluster_name": home.mark,
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0700",
        "hba_file": str(home.access_rules),
        "password_encryption": "scram-sha-256",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "log_destination": "stderr",
        "logging_collector": "off",
        "update_process_title": "on",
    }


def options(settings: Mapping[str, str]) -> Iterator[str]:
    """The settings as options of a command line."""
    for name, value in settings.items():
        yield from ("-c", f"{name}={value}")


NAME: Final = "uptrail"  # of the database, and of the role that owns it
_ACCESS_RULES = f"# Written at every start.\nlocal all {NAME} scram-sha-256\n"
# The role is no superuser: an injected statement must not reach files and programs.
_FIRST_STATEMENTS = f"""\
CREATE ROLE {NAME} LOGIN CREATEDB PASSWORD '{{password}}' IN ROLE pg_monitor
CREATE DATABASE {NAME} OWNER {NAME}
"""
# So that an erasure can have removed what is left of old rows (`infrastructure.erasure.eraser`).
_UPKEEP = (
    f"GRANT pg_maintain, pg_checkpoint TO {NAME}",
    f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {NAME}",
)
_NEW_PASSWORD = f"ALTER ROLE {NAME} PASSWORD '{{password}}'"


class Cluster(msgspec.Struct, frozen=True):
    """One PostgreSQL cluster while its server is stopped. The caller holds the lease."""

    home: ServerDir
    account: SystemUser
    binaries: Path
    lease: int

    def make_ready(self) -> None:
        """
        Make the cluster if there is none, and what a start needs anew.

        Raises EmbeddedPostgresError if it is another version's, or cannot be made.
        """
        files.write_file_atomically(self.home.access_rules, _ACCESS_RULES.encode(), mode=0o644)
        if not os.path.lexists(self.home.cluster):
            self._make()
        self._require_our_version()
        if not self.home.upkeep.exists():  # a cluster of an earlier version
            self._grant_upkeep(self.home.cluster)
            files.write_file_atomically(self.home.upkeep, b"granted\n", mode=0o644)
        if not self.home.password.exists():  # lost: the owner of the files may set another
            password = secrets.token_urlsafe(32)
            self._execute(self.home.cluster, _NEW_PASSWORD.format(password=password))
            _write_password(self.home, password)  # last: without the file it is set once more

    def _make(self) -> None:
        """Make it beside its place and move it there complete, whatever kills us meanwhile."""
        unfinished = self.home.unfinished
        if unfinished.exists():
            files.remove_tree(unfinished)
        files.mkdir(unfinished, 0o700)
        password = secrets.token_urlsafe(32)
        _write_password(self.home, password)
        self._initdb(unfinished)
        self._execute(unfinished / "data", _FIRST_STATEMENTS.format(password=password))
        self._grant_upkeep(unfinished / "data")
        files.write_file_atomically(self.home.upkeep, b"granted\n", mode=0o644)
        files.rename(unfinished / "data", self.home.cluster)
        files.sync_folder(self.home.path)
        files.remove_tree(unfinished)

    def _initdb(self, unfinished: Path) -> None:
        # initdb requires a superuser password; pg_hba.conf never accepts it, so it is not kept.
        superuser = unfinished / "superuser"
        files.write_file_atomically(superuser, secrets.token_urlsafe(32).encode())
        self.account.own(superuser)
        make_private_dir(unfinished, self.account)
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
        """Run statements, one per line, as superuser in single-user mode."""
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
            if version == str(MAJOR_VERSION):
                return
            raise EmbeddedPostgresError(
                f"{self.home.cluster} was made by PostgreSQL {version}, this is {MAJOR_VERSION}",
                f"dump it with PostgreSQL {version}, move it away, and load the dump",
            )
        raise EmbeddedPostgresError(
            f"{self.home.cluster} is no PostgreSQL cluster: it has no PG_VERSION",
            "restore it, or move it away to begin with an empty one",
        )


def url(home: ServerDir, socket_folder: str) -> str:
    """Connection URL: over the socket, with the password."""
    password = home.password.read_text().strip()
    return f"postgresql://{NAME}:{password}@/{NAME}?host={quote(socket_folder, '')}&port={PORT}"


def _write_password(home: ServerDir, password: str) -> None:
    files.write_file_atomically(home.password, f"{password}\n".encode())


def launch(cluster: Cluster, socket_folder: Path) -> Popen[bytes]:
    """
    Start the server; it runs on when we die.

    Raises EmbeddedPostgresError if a server that is not ours runs on the cluster already.
    """
    home = cluster.home
    clear_stale_files(home, socket_folder)
    program = str(cluster.binaries / "postgres")
    command = (program, "-D", str(home.cluster), *options(forced_settings(home, socket_folder)))
    log = Log(home.log).open()
    try:
        process = spawn(command, cluster.account, log=log, lease=cluster.lease)
    finally:
        os.close(log)
    # Reaps the postmaster whenever it exits, so that it does not remain as a zombie.
    threading.Thread(target=process.wait, name="uptrail-postgres-exit", daemon=True).start()
    return process
