"""The embedded server through kills, shared use, upgrades and other users."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infrastructure.postgres.embedded import binaries, server, system
from infrastructure.postgres.embedded.cluster import url as url_of
from infrastructure.postgres.embedded.data_directory import ServerDir, server_dir_path
from infrastructure.postgres.embedded.postmaster import Log, Postmaster, find_tagged
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.embedded.system import EmbeddedPostgresError

ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parents[3]
as_root = pytest.mark.skipif(not ROOT, reason="only root runs the server as another user")
PACKAGES = os.environ.get("PYTHONPATH")
PATIENCE = 120.0

# A process that uses the server until a line arrives. It may become another user first.
USER = """
import os, sys
from pathlib import Path
import psycopg
from infrastructure.postgres.embedded.server import EmbeddedPostgres
data_dir, uid, gid, body = sys.argv[1:]
try:  # loads what a connection loads late, while every folder can be read
    psycopg.connect("host=/nonexistent connect_timeout=1")
except psycopg.OperationalError:
    pass
if int(uid) != os.geteuid():
    os.setgroups([]), os.setgid(int(gid)), os.setuid(int(uid))
server = EmbeddedPostgres(Path(data_dir))
exec(body)
"""
USE_IT = "print(server.start(), flush=True); sys.stdin.readline(); server.stop()"


class User:
    """A process of its own that uses the server of a data directory."""

    def __init__(
        self, data_dir: Path, *, body: str = USE_IT, uid: int = os.geteuid(), packages: str = ""
    ) -> None:
        path = os.pathsep.join(filter(None, [packages, str(REPOSITORY), PACKAGES]))
        gid = pwd.getpwuid(uid).pw_gid
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", USER, data_dir, str(uid), str(gid), body],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )

    def url(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, "the process ended without a server"
        return line

    def end(self) -> None:
        self.process.communicate("\n", timeout=PATIENCE)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the server's user can pass through, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="uptrail-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A data directory whose cluster has been made, to copy."""
    folder = Path(tempfile.mkdtemp(prefix="uptrail-test-"))
    folder.chmod(0o711)
    with EmbeddedPostgres(folder / "data"):
        pass
    yield folder / "data"
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(template: Path, reachable: Path) -> Iterator[Path]:
    """A data directory with a cluster that has been used before."""
    subprocess.run(["cp", "-a", template, reachable], check=True)
    yield from _swept(reachable / "data")


@pytest.fixture(scope="module")
def running(template: Path) -> Iterator[Path]:
    """The data directory of a running server, for tests that only look at it."""
    folder = template.with_name("running")
    subprocess.run(["cp", "-a", template, folder], check=True)
    with EmbeddedPostgres(folder):
        yield folder


@pytest.fixture
def running_url(running: Path) -> str:
    return url_of(home_of(running), postmaster_of(running).socket_folder)


@pytest.fixture
def new_dir(reachable: Path) -> Iterator[Path]:
    """A data directory that does not exist yet."""
    yield from _swept(reachable / "new")


@pytest.fixture
def users() -> Iterator[list[User]]:
    """Processes that use a server in this test; they are killed after it."""
    everyone: list[User] = []
    yield everyone
    for user in everyone:
        with user.process as process:  # which closes its pipes
            process.kill()


@pytest.fixture
def use(users: list[User]) -> Callable[..., User]:
    def begin(data_dir: Path, body: str = USE_IT) -> User:
        users.append(User(data_dir, body=body))
        return users[-1]

    return begin


def _swept(data_dir: Path) -> Iterator[Path]:
    yield data_dir
    if server_dir_path(data_dir).exists():
        server.stop_server(home_of(data_dir))


def home_of(data_dir: Path) -> ServerDir:
    return ServerDir(server_dir_path(data_dir).resolve())


def postmaster_of(data_dir: Path) -> Postmaster:
    found = Postmaster.read(home_of(data_dir))
    assert found is not None
    return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def until_gone(home: ServerDir) -> None:
    until(lambda: system.is_free(home.running_lock))


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def kill_whole_server(data_dir: Path) -> None:
    home = home_of(data_dir)
    for pid in find_tagged(home.mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until_gone(home)


# Starting and ending.


def test_the_url_leads_to_the_database_uptrail_in_utf8_with_durable_commits(
    running_url: str,
) -> None:
    names = "SELECT current_database(), current_user"
    assert execute(running_url, names) == [("uptrail", "uptrail")]
    assert execute(running_url, "SHOW server_encoding") == [("UTF8",)]
    assert execute(running_url, "SHOW fsync") == [("on",)]
    assert execute(running_url, "SHOW synchronous_commit") == [("on",)]
    assert execute(running_url, "SELECT lower('ÄÖ'), 'Z' < 'a'") == [("äö", True)]


def test_data_outlives_a_restart(new_dir: Path) -> None:
    with EmbeddedPostgres(new_dir) as url:
        execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(new_dir) as url:
        assert execute(url, "SELECT answer FROM kept") == [(42,)]


def test_a_clean_end_leaves_no_process_even_with_clients_connected(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    with psycopg.connect(server.start()):
        server.stop()

    assert not find_tagged(home_of(data_dir).mark)
    assert not (home_of(data_dir).cluster / "postmaster.pid").exists()
    server.stop()  # again does nothing


def test_a_process_that_forgets_to_stop_stops_the_server_as_it_exits(
    data_dir: Path, use: Callable[..., User]
) -> None:
    user = use(data_dir, "print(server.start(), flush=True)")
    user.url()
    user.end()

    assert system.is_free(home_of(data_dir).running_lock)


def test_a_forked_child_that_exits_leaves_the_server_to_its_parent(
    data_dir: Path, use: Callable[..., User]
) -> None:
    fork = "pid = os.fork(); pid or sys.exit(); os.waitpid(pid, 0); print(url, flush=True)"
    user = use(data_dir, f"url = server.start(); {fork}; sys.stdin.readline()")

    assert execute(user.url(), "SELECT 1") == [(1,)]
    user.end()


def test_a_discarded_database_begins_empty(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    execute(server.start(), "CREATE TABLE gone ()")
    server.discard()

    assert list(data_dir.iterdir()) == []
    with server as url:
        assert execute(url, "SELECT to_regclass('gone')") == [(None,)]


def test_a_server_in_use_is_not_discarded(data_dir: Path, use: Callable[..., User]) -> None:
    url = use(data_dir).url()

    with pytest.raises(EmbeddedPostgresError, match="another process uses"):
        EmbeddedPostgres(data_dir).discard()
    assert execute(url, "SELECT 1") == [(1,)]


# Sharing.


def test_a_second_process_shares_the_server_and_the_last_one_stops_it(
    new_dir: Path, use: Callable[..., User]
) -> None:
    first, second = use(new_dir), use(new_dir)  # both at once, on an empty folder
    url = first.url()
    assert second.url() == url
    pid = postmaster_of(new_dir).pid

    first.end()
    assert execute(url, "SELECT 1") == [(1,)]
    assert postmaster_of(new_dir).pid == pid

    second.end()
    assert system.is_free(home_of(new_dir).running_lock)
    assert not find_tagged(home_of(new_dir).mark)


def test_two_servers_in_one_process_are_two_users(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as outer:
        with EmbeddedPostgres(data_dir) as inner:
            assert inner == outer
        assert execute(outer, "SELECT 1") == [(1,)]
    assert system.is_free(home_of(data_dir).running_lock)


# Kills.


def test_a_killed_app_leaves_a_server_that_the_next_one_finds_and_ends(
    data_dir: Path, use: Callable[..., User]
) -> None:
    app = use(data_dir)
    execute(app.url(), "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = postmaster_of(data_dir).pid
    app.kill()

    with EmbeddedPostgres(data_dir) as url:
        assert postmaster_of(data_dir).pid == pid
        assert execute(url, "SELECT answer FROM kept") == [(42,)]
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_signals_to_the_apps_process_group_do_not_reach_the_server(
    data_dir: Path, use: Callable[..., User]
) -> None:
    app = use(data_dir)
    url = app.url()
    os.killpg(app.process.pid, signal.SIGTERM)
    app.process.communicate(timeout=PATIENCE)

    assert execute(url, "SELECT 1") == [(1,)]
    assert os.getsid(postmaster_of(data_dir).pid) != app.process.pid


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(600)", "SELECT count(*) FROM kept, kept b"])
def test_a_killed_postmaster_with_living_children_loses_nothing_committed(
    data_dir: Path, statement: str
) -> None:
    server = EmbeddedPostgres(data_dir)
    url = server.start()
    execute(url, "CREATE TABLE kept AS SELECT generate_series(1, 1000000) AS n")
    busy = threading.Thread(target=_until_cut_off, args=(url, statement))
    busy.start()
    running = f"SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = '{statement}'"
    until(lambda: execute(url, running))

    os.kill(postmaster_of(data_dir).pid, signal.SIGKILL)
    assert server.start() == url  # called again, it revives the server

    busy.join(PATIENCE)
    assert execute(url, "SELECT count(*) FROM kept") == [(1000000,)]
    server.stop()
    assert not find_tagged(home_of(data_dir).mark)


def _until_cut_off(url: str, statement: str) -> None:
    with contextlib.suppress(psycopg.OperationalError):
        execute(url, statement)


def test_a_postmaster_killed_before_the_end_leaves_nothing_behind(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        os.kill(postmaster_of(data_dir).pid, signal.SIGKILL)

    assert system.is_free(home_of(data_dir).running_lock)


def test_a_server_reports_whether_it_runs(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    assert not server.runs()
    server.start()
    assert server.runs()

    os.kill(postmaster_of(data_dir).pid, signal.SIGKILL)
    until(lambda: not server.runs())

    server.start()
    assert server.runs()
    server.stop()
    assert not server.runs()


def test_a_power_cut_loses_nothing_committed(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as url:
        execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        kill_whole_server(data_dir)
    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, "SELECT answer FROM kept") == [(42,)]


def test_a_server_found_shutting_down_is_waited_for_and_started_anew(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    server.start()
    pid = postmaster_of(data_dir).pid
    os.kill(pid, signal.SIGINT)

    url = server.start()
    assert execute(url, "SELECT 1") == [(1,)]
    assert postmaster_of(data_dir).pid != pid
    server.stop()


def test_a_stop_amid_the_recovery_from_a_crash_ends_and_loses_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_INSISTENCE", ((0.5, "SIGINT"), (10.0, "SIGQUIT")))
    home = home_of(data_dir)
    with EmbeddedPostgres(data_dir) as url:
        execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        writer = next(pid for pid, line in find_tagged(home.mark).items() if "walwriter" in line)
        os.kill(writer, signal.SIGKILL)
        until(lambda: "reinitializing" in home.log.read_text())
    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, "SELECT answer FROM kept") == [(42,)]


@pytest.mark.parametrize("alive", [True, False])
def test_stale_pid_files_never_block_a_start(data_dir: Path, alive: bool) -> None:
    with EmbeddedPostgres(data_dir) as url:
        execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        kill_whole_server(data_dir)
    owner = home_of(data_dir).cluster.stat()
    stranger = subprocess.Popen(
        ["sleep", "600"], user=owner.st_uid if ROOT else None, stdin=subprocess.DEVNULL
    )
    if not alive:
        stranger.kill()
        stranger.wait()
    socket = Path(postmaster_of(data_dir).socket_folder) / f"{system.SOCKET}.lock"
    for pid_file in (home_of(data_dir).cluster / "postmaster.pid", socket):
        _, *rest = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{stranger.pid}\n", *rest]))

    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, "SELECT answer FROM kept") == [(42,)]
    assert (stranger.poll() is None) == alive
    stranger.kill()
    stranger.wait()


@pytest.mark.parametrize("made", ["data", "data/global/pg_control"])
def test_an_interrupted_initdb_does_not_poison_the_data_directory(
    new_dir: Path, use: Callable[..., User], made: str
) -> None:
    app = use(new_dir)
    until(lambda: (home_of(new_dir).unfinished / made).exists())
    app.kill()

    with EmbeddedPostgres(new_dir) as url:
        assert execute(url, "SELECT current_database()") == [("uptrail",)]
    assert not home_of(new_dir).unfinished.exists()


def test_a_start_interrupted_after_initdb_goes_on_from_there(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        pass
    leftover = home_of(data_dir).unfinished
    leftover.mkdir()
    (leftover / "superuser").write_text("x")
    (home_of(data_dir).path / "password.new").write_text("half")

    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, "SELECT 1") == [(1,)]


# Authentication.


def test_password_and_folders_are_private(running: Path) -> None:
    home = home_of(running)
    socket = Path(postmaster_of(running).socket_folder)
    assert mode(home.password) == mode(home.log) == 0o600
    assert mode(home.cluster) == mode(socket) == 0o700
    assert mode(home.path) == mode(running) == (0o711 if ROOT else 0o700)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"password": None}, "no password supplied"),
        ({"user": "postgres"}, "no pg_hba.conf entry"),
        ({"user": "postgres", "dbname": "replication"}, "no pg_hba.conf entry"),
    ],
)
def test_a_stranger_is_refused(
    running_url: str, changes: dict[str, str | None], refusal: str
) -> None:
    parts = {**conninfo_to_dict(running_url), **changes}
    with pytest.raises(psycopg.OperationalError, match=refusal):
        psycopg.connect(make_conninfo("", **parts))


def test_no_rule_anywhere_trusts(running: Path) -> None:
    home = home_of(running)
    for rules in (home.access_rules, home.cluster / "pg_hba.conf"):
        lines = [line for line in rules.read_text().splitlines() if line[:1] not in ("", "#")]
        assert lines
        assert all(line.endswith("scram-sha-256") for line in lines)


def test_the_role_can_make_databases_but_not_run_programs(running_url: str) -> None:
    execute(running_url, "CREATE DATABASE another")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(running_url, "COPY (SELECT 1) TO PROGRAM 'cat'")


MAY = """SELECT pg_has_role('pg_maintain', 'USAGE'), pg_has_role('pg_checkpoint', 'USAGE'),
has_function_privilege('pg_switch_wal()', 'EXECUTE'),
(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"""


def test_the_role_may_remove_what_is_left_of_old_rows(data_dir: Path) -> None:
    """Also in a cluster that an earlier version made, whose role could not."""
    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, MAY) == [(True, True, True, False)]
    home_of(data_dir).upkeep.unlink()

    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, MAY) == [(True, True, True, False)]


def test_nothing_listens_on_a_network(running: Path, running_url: str) -> None:
    assert execute(running_url, "SHOW listen_addresses") == [("",)]
    connected = {each.pid for each in psutil.net_connections(kind="inet")}
    assert not connected & set(find_tagged(home_of(running).mark))


def test_a_lost_password_is_replaced_by_a_new_one(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as lost:
        execute(lost, "CREATE TABLE kept AS SELECT 42 AS answer")
    home_of(data_dir).password.unlink()

    with EmbeddedPostgres(data_dir) as url:
        assert url != lost
        assert execute(url, "SELECT answer FROM kept") == [(42,)]


def test_an_altered_password_is_an_error_with_a_remedy(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        pass
    home_of(data_dir).password.write_text("altered\n")

    with pytest.raises(EmbeddedPostgresError, match=r"refuses us.*\n(.*\n)*What to do: .*password"):
        EmbeddedPostgres(data_dir).start()
    assert system.is_free(home_of(data_dir).running_lock)


# Errors at the start.


def test_a_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        pass
    (home_of(data_dir).cluster / "PG_VERSION").write_text("17\n")

    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 17, this is 18"):
        EmbeddedPostgres(data_dir).start()


def test_a_server_that_dies_while_starting_is_reported_with_its_log(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        pass
    with (home_of(data_dir).cluster / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")

    with pytest.raises(EmbeddedPostgresError, match="no_such_setting") as caught:
        EmbeddedPostgres(data_dir).start()
    assert "UPTRAIL_DATABASE_URL" in str(caught.value)
    assert system.is_free(home_of(data_dir).running_lock)


def test_a_data_directory_that_cannot_be_is_an_error(reachable: Path) -> None:
    (reachable / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="permissions and the space"):
        EmbeddedPostgres(reachable / "file" / "data").start()


def test_a_server_started_by_hand_is_not_disturbed(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        home = home_of(data_dir)
        socket = postmaster_of(data_dir).socket_folder
    runner = system.SystemUser.of(home.cluster)
    program = binaries.binaries_dir(runner) / "postgres"
    by_hand = subprocess.Popen(
        [program, "-D", home.cluster, "-k", socket, "-c", "listen_addresses="],
        user=runner.uid if ROOT else None,
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    until(lambda: (found := Postmaster.read(home)) and found.is_ready)

    with pytest.raises(EmbeddedPostgresError, match="did not start"):
        EmbeddedPostgres(data_dir).start()
    assert by_hand.poll() is None
    by_hand.send_signal(signal.SIGINT)
    assert by_hand.wait(PATIENCE) == 0


def test_a_server_whose_socket_was_removed_starts_anew_after_its_last_user(
    data_dir: Path, use: Callable[..., User]
) -> None:
    app = use(data_dir)
    app.url()
    for file in Path(postmaster_of(data_dir).socket_folder).iterdir():
        file.unlink()
    with pytest.raises(EmbeddedPostgresError, match="removed its socket"):
        EmbeddedPostgres(data_dir).start()

    app.end()
    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, "SELECT 1") == [(1,)]


# Where things lie.


@pytest.mark.parametrize("name", ["a" * 120, 'it\'s 100% "odd", & long', "данные"])
def test_any_data_folder_is_accepted(reachable: Path, name: str) -> None:
    folder = reachable / name
    folder.mkdir(mode=0o711)
    with EmbeddedPostgres(folder / "data") as url:
        assert execute(url, "SELECT 1") == [(1,)]
        socket = Path(postmaster_of(folder / "data").socket_folder)
        assert mode(socket) == 0o700
        assert socket.stat().st_uid == home_of(folder / "data").cluster.stat().st_uid
    assert socket.exists() == socket.is_relative_to(folder)  # outside, nothing stays behind


@pytest.mark.parametrize("trap", ["open folder", "link", "file"])
def test_a_socket_folder_prepared_by_another_is_refused(reachable: Path, trap: str) -> None:
    target, elsewhere = reachable / "socket", reachable / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if trap == "open folder":
        target.mkdir()
        target.chmod(0o777)
    elif trap == "link":
        target.symlink_to(elsewhere)
    else:
        target.touch()

    with pytest.raises(EmbeddedPostgresError, match="not a private folder"):
        system.make_private_dir(target, system.server_user())


def test_the_log_never_grows_without_bound(tmp_path: Path) -> None:
    log = Log(tmp_path / "server.log")
    fd = log.open()
    for line in ("first\n", "second\n", "third\n"):
        os.write(fd, line.encode())
        log.trim(limit=8)
    os.write(fd, b"fourth\n")
    os.close(fd)

    assert log.tail() == "third\nfourth"
    assert (tmp_path / "server.log.1").read_text() == "first\nsecond\n"


# Root and others.


@pytest.fixture
def system_folder(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(system, "SYSTEM_FOLDER", reachable / "system")
    return reachable / "system"


@pytest.fixture
def walled(reachable: Path) -> Iterator[Path]:
    """A data directory that root can reach, and the server's user cannot."""
    (reachable / "walled").mkdir(mode=0o700)
    yield from _swept(reachable / "walled" / "data")


@as_root
def test_for_root_the_server_runs_as_a_user_of_its_own(running: Path, running_url: str) -> None:
    with psycopg.connect(running_url) as connection:
        for pid in (postmaster_of(running).pid, connection.info.backend_pid):
            assert psutil.Process(pid).username() == "uptrail"
            assert psutil.Process(pid).gids().real == pwd.getpwnam("uptrail").pw_gid
            assert _groups(pid) == []


def _groups(pid: int) -> list[str]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in status if line.startswith("Groups:"))


@as_root
def test_roots_data_directory_out_of_reach_is_kept_elsewhere_and_stays_closed(
    walled: Path, system_folder: Path
) -> None:
    with EmbeddedPostgres(walled) as url:
        execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert home_of(walled).path.parent == system_folder / "clusters"
        assert (home_of(walled).path / "data-directory").read_text() == f"{walled}\n"
        assert mode(walled.parent) == 0o700
    walled.rename(walled.with_name("moved"))

    with EmbeddedPostgres(walled.with_name("moved")) as url:
        assert execute(url, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_a_database_kept_elsewhere_and_lost_is_an_error_not_an_empty_one(
    walled: Path, system_folder: Path
) -> None:
    with EmbeddedPostgres(walled):
        pass
    shutil.rmtree(system_folder / "clusters")

    with pytest.raises(EmbeddedPostgresError, match="is gone"):
        EmbeddedPostgres(walled).start()


@as_root
def test_binaries_out_of_reach_are_copied_and_stay_closed(
    reachable: Path, data_dir: Path, system_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _copied_wheel(reachable / "closed", 0o700)
    monkeypatch.syspath_prepend(str(wheel))
    system_folder.mkdir()
    (system_folder / ".postgres-interrupted").mkdir()

    for _ in range(2):
        with EmbeddedPostgres(data_dir) as url:
            assert execute(url, "SELECT 1") == [(1,)]
            program = Path(psutil.Process(postmaster_of(data_dir).pid).exe())
            assert program.is_relative_to(system_folder)
            assert program.stat().st_uid == 0
    assert mode(wheel) == 0o700
    assert [path.name for path in system_folder.glob(".postgres-*")] == []


@as_root
def test_a_cluster_of_a_user_that_is_no_more_runs_as_its_number(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as url:
        execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    nameless = next(uid for uid in range(61000, 62000) if not system.SystemUser(uid, uid).is_named)
    home = home_of(data_dir)
    for path in (home.cluster, *home.cluster.rglob("*"), home.path / "socket"):
        os.chown(path, nameless, nameless, follow_symlinks=False)

    with EmbeddedPostgres(data_dir) as url:
        assert execute(url, "SELECT answer FROM kept") == [(42,)]
        assert psutil.Process(postmaster_of(data_dir).pid).uids().real == nameless


@as_root
def test_the_server_of_an_unprivileged_user_runs_as_that_user(
    reachable: Path, users: list[User]
) -> None:
    nobody = pwd.getpwnam("nobody")
    wheel = _copied_wheel(reachable / "open", 0o755)
    home = reachable / "nobody"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    user = User(home / "data", uid=nobody.pw_uid, packages=str(wheel))
    users.append(user)

    assert execute(user.url(), "SELECT current_database()") == [("uptrail",)]
    assert psutil.Process(postmaster_of(home / "data").pid).username() == "nobody"
    for path in (home / "data", server_dir_path(home / "data"), home_of(home / "data").cluster):
        assert mode(path) == 0o700
        assert path.owner() == "nobody"
    with pytest.raises(EmbeddedPostgresError, match="belongs to nobody"):
        EmbeddedPostgres(home / "data").start()

    user.end()
    assert not find_tagged(home_of(home / "data").mark)


def _copied_wheel(folder: Path, access: int) -> Path:
    """A folder with the wheel's package in it, found before the installed one."""
    package = binaries._package()
    folder.mkdir()
    shutil.copytree(package, folder / package.name, ignore=binaries._NOT_COPIED, symlinks=True)
    (folder / package.name / "__init__.py").touch()
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    folder.chmod(access)
    return folder
