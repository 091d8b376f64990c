"""What PostgreSQL is told: what a user may tune in postgresql.conf, and what always holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from infrastructure.postgres.embedded.folders import PORT
from infrastructure.postgres.embedded.home import Home

# Written into postgresql.conf when the cluster is made: fit for a laptop, the user's to tune.
INITIAL: Final = {
    "shared_buffers": "128MB",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "wal_level": "minimal",  # nobody replicates it
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


def always(home: Home, socket_folder: Path) -> dict[str, str]:
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
