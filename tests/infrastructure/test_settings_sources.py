"""Settings from their sources: precedence, invalid values and messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infrastructure.settings import MIB, Settings
from infrastructure.settings_loader import BadSetting, load, redacted

PORT = "port = 7\n"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('port = 1\nhost = "::1"\nlog_level = "error"\n')

    sourced = load(
        {"port": 3, "data_dir": tmp_path},
        config=config,
        environ={"UPTRAIL_PORT": "2", "UPTRAIL_HOST": "127.0.0.2"},
    )

    settings = sourced.settings
    assert (settings.port, settings.host, settings.log_level) == (3, "127.0.0.2", "error")
    assert sourced.origins["port"] == "command line"
    assert sourced.origins["host"] == "UPTRAIL_HOST"
    assert sourced.origins["log_level"] == str(config)
    assert sourced.origins["max_body"] == "default"


def test_the_file_in_the_data_folder_is_read_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "uptrail.toml").write_text(PORT)
    other = tmp_path / "other.toml"
    other.write_text("port = 8\n")

    assert load({"data_dir": tmp_path}, environ={}).settings.port == 7
    assert load({"data_dir": tmp_path}, config=other, environ={}).settings.port == 8
    named = {"UPTRAIL_CONFIG": str(other), "UPTRAIL_DATA_DIR": str(tmp_path)}
    assert load(environ=named).settings.port == 8


def test_no_source_is_all_defaults(tmp_path: Path) -> None:
    defaults = load({"data_dir": tmp_path}, environ={}).settings

    assert defaults == Settings(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "bytes"), [("64", 64), ("16MiB", 16 * MIB), ("16m", 16 * MIB), ("0.5 MiB", MIB // 2)]
)
def test_sizes_may_carry_a_unit(text: str, bytes: int, tmp_path: Path) -> None:
    environ = {"UPTRAIL_MAX_BODY": text, "UPTRAIL_DATA_DIR": str(tmp_path)}

    assert load(environ=environ).settings.max_body == bytes


def test_times_and_lists_and_pipelines_are_read(tmp_path: Path) -> None:
    environ = {
        "UPTRAIL_DATA_DIR": str(tmp_path),
        "UPTRAIL_SHUTDOWN_GRACE": "2m",
        "UPTRAIL_ALLOWED_ORIGINS": "https://a.example, https://b.example",
        "UPTRAIL_PIPELINES": '{"plain": {"steps": [{"processor": "checksum"}]}}',
    }

    settings = load(environ=environ).settings

    assert settings.shutdown_grace == 120.0
    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert set(settings.pipelines) == {"default", "plain"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"UPTRAIL_PORT": "99999"}, "UPTRAIL_PORT: port must be a whole number from 0 to 65535"),
        ({"UPTRAIL_MAX_BODY": "lots"}, "UPTRAIL_MAX_BODY: max_body must be a size such as 16MiB"),
        ({"UPTRAIL_FEED_TICK": "0"}, "feed_tick must be a time above 0"),
        ({"UPTRAIL_LOG_LEVEL": "loud"}, "log_level must be debug or"),
        ({"UPTRAIL_PROT": "1"}, "no setting UPTRAIL_PROT; did you mean UPTRAIL_PORT?"),
        (
            {"UPTRAIL_FEED_DEFLATE": "false"},
            "environment: UPTRAIL_FEED_DEFLATE was removed: the feed no longer compresses",
        ),
        ({"UPTRAIL_HOST": ""}, "host must be"),
        ({"UPTRAIL_RETRY_POLICY": "{"}, "retry_policy is not valid JSON"),
        ({"UPTRAIL_RETRY_POLICY": '{"attempts": "x"}'}, r"\$.attempts"),
    ],
)
def test_a_bad_value_names_its_source_its_field_and_what_is_allowed(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(BadSetting, match=message.replace("?", r"\?")):
        load(environ=environ)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prt = 7", "no setting prt; did you mean port?"),
        ('port = "7"', "must be a whole number"),
        ("port = ", "is not valid TOML"),
        ("feed_deflate = true", "feed_deflate was removed: .* Delete it to start"),
        ("[pipelines.x]\nstep = []", "unknown field `step`"),
    ],
)
def test_a_bad_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(content)

    with pytest.raises(BadSetting, match=message.replace("?", r"\?")) as refused:
        load(config=config, environ={})
    assert str(refused.value).startswith(str(config))


def test_the_data_folder_cannot_be_moved_from_within(tmp_path: Path) -> None:
    (tmp_path / "uptrail.toml").write_text('data_dir = "/elsewhere"')

    with pytest.raises(BadSetting, match="cannot be set by the file inside it"):
        load({"data_dir": tmp_path}, environ={})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("host=h user=u password=secret", "host=h user=u password=***"),
        (Path("/data"), "/data"),
    ],
)
def test_a_password_is_never_shown(value: Any, text: str) -> None:
    assert redacted(value) == text
