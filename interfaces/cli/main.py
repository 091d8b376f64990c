"""The command `uptrail`: run a command and report errors in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from cyclopts import App, CycloptsError, Group

from interfaces.cli.console import CommandError, Exit

_RUN = Group("Run", sort_key=1)
_WORK = Group("Work", sort_key=2)
_LOOK = Group("Look back", sort_key=3)
_KEEP = Group("Keep in order", sort_key=4)

# Each command is imported when it is called, so that the others stay quick.
_COMMANDS = (
    (
        "serve",
        "serve:serve",
        _RUN,
        "Run the server: API, orchestrator and worker, or some.",
    ),
    ("worker", "serve:worker", _RUN, "Run one more worker on the same database and blobs."),
    ("demo", "demo:demo", _RUN, "Upload a folder, watch it live, and read what happened."),
    ("upload", "upload:app", _WORK, "Send files and folders as one batch; resumes after a kill."),
    ("batch", "batch:app", _WORK, "Start, list, show, watch and steer batches."),
    ("history", "history:app", _LOOK, "Read recorded events: who did what, and when."),
    ("verify", "verify:verify", _LOOK, "Check the log by its seals, and what is shown by the log."),
    ("seal", "seal:app", _LOOK, "Read and make the signed seals over the log."),
    ("projection", "projection:app", _LOOK, "List or rebuild what was projected from the log."),
    ("database", "database:app", _LOOK, "Migrate the database, and limit the role that serves."),
    ("workers", "workers:workers", _KEEP, "List the processes of all machines, and their work."),
    (
        "webhook",
        "webhook:app",
        _KEEP,
        "Tell your own systems what happened, and see what they heard.",
    ),
    ("key", "key:app", _KEEP, "Create, list and revoke API keys."),
    ("erase", "erase:app", _KEEP, "Destroy everything personal of an owner, for good."),
    ("doctor", "doctor:doctor", _KEEP, "Check this machine and the server, with what to do."),
    ("config", "config:app", _KEEP, "Show every setting and where its value came from."),
)


def make_app() -> App:
    """Return the command line; commands are imported when they are called."""
    app = App(
        name="uptrail",
        help="Event-sourced upload orchestrator.",
        help_epilogue="Exit codes: 0 ok, 1 error, 2 usage, 3 completed with failures, "
        "4 cancelled, 5 unreachable. --debug shows tracebacks.",
        version=_version,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for name, place, group, help in _COMMANDS:
        app.command(f"interfaces.cli.{place}", name=name, group=group, help=help)
    return app


def main() -> None:
    """Run the installed command."""
    sys.exit(run(sys.argv[1:]))


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    words = [word for word in tokens if word != "--debug"]
    return run_reporting_errors(
        lambda: make_app()(words, exit_on_error=False, print_error=False),
        debug="--debug" in tokens,
    )


def run_reporting_errors(command: Callable[[], object], *, debug: bool = False) -> int:
    """Return the exit code of the command; report errors in one sentence, unless `debug`."""
    try:
        result = command()
        return result if isinstance(result, int) else Exit.OK
    except CycloptsError as error:
        return _tell(str(error).strip(), "uptrail --help lists the commands", Exit.USAGE)
    except CommandError as error:
        if debug:
            raise
        return _tell(str(error), error.hint, error.code)
    except KeyboardInterrupt:
        return _tell("stopped", "", Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return Exit.OK
    except Exception as error:
        if debug:
            raise
        return _unexpected(error)


def _unexpected(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    name = type(error).__name__
    for known, message, hint, code in _known_errors():
        if name == known:
            return _tell(message.format(error), hint or getattr(error, "hint", ""), code)
    return _tell(f"{name}: {error}", "run it again with --debug to see where", Exit.ERROR)


def _known_errors() -> tuple[tuple[str, str, str, Exit], ...]:
    """Return errors of other layers by name: importing them would slow down every command."""
    return (
        ("BadSetting", "{}", "uptrail config show lists the settings", Exit.USAGE),
        ("EmbeddedPostgresError", "{}", "", Exit.ERROR),
        ("BucketUnusable", "{}", "", Exit.ERROR),
        ("BadLocation", "{}", "check UPTRAIL_BLOBS or --blobs", Exit.USAGE),
        ("TaskFailed", "{}", "", Exit.ERROR),
        ("StartupFailed", "{}", "", Exit.ERROR),
        ("NoDatabase", "{}", "", Exit.USAGE),
        ("BlobStoreMismatch", "{}", "", Exit.USAGE),
        ("NoMasterKey", "{}", "", Exit.USAGE),
        ("BadRole", "{}", "", Exit.USAGE),
        (
            "InsufficientPrivilege",
            "the database refuses: {}",
            "migrate as its owner: uptrail database migrate --database-url OWNERS_URL",
            Exit.ERROR,
        ),
        ("InvalidKeyFile", "{}", "", Exit.USAGE),
        ("NewerDatabase", "{}", "run the newer version of Uptrail", Exit.ERROR),
        ("BadDatabaseUrl", "{}", "", Exit.USAGE),
        ("UnfitDatabase", "{}", "", Exit.ERROR),
        ("TooFewConnections", "{}", "", Exit.ERROR),
        ("ReadOnlyDatabase", "{}", "", Exit.UNREACHABLE),
        # The database or the bucket went away while the server or a command was starting.
        ("Unavailable", "{}", "uptrail doctor helps", Exit.UNREACHABLE),
        (
            "OperationalError",
            "the database cannot be reached: {}",
            "check UPTRAIL_DATABASE_URL; uptrail doctor helps",
            Exit.UNREACHABLE,
        ),
    )


def _tell(message: str, hint: str, code: int) -> int:
    print(f"uptrail: {message}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)
    return code


def _version() -> str:
    from importlib.metadata import version

    return f"uptrail {version('uptrail')}"


if __name__ == "__main__":
    main()
