"""Settings: one frozen table, read from the environment, which says what is wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from serving.errors import SettingError
from serving.settings import ROOT, Settings, names, table


def refusal(**environ: str) -> str:
    with pytest.raises(SettingError) as caught:
        Settings.from_env(environ)
    return str(caught.value)


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert (settings.models, settings.port, settings.bind_address) == (("iris",), 5000, "127.0.0.1")
    assert settings.mlflow_tracking_uri == f"sqlite:///{ROOT / 'mlruns' / 'mlflow.db'}"
    assert settings.model_dir == ROOT / "models"


def test_the_process_environment_is_read_when_none_is_given() -> None:
    code = "from serving.settings import Settings; print(Settings.from_env().port)"
    got = subprocess.run([sys.executable, "-c", code], env={"PORT": "8123"}, cwd=ROOT, capture_output=True, check=True)
    assert got.stdout.strip() == b"8123"


def test_each_kind_of_value_is_read() -> None:
    settings = Settings.from_env(
        {
            "MODELS": " iris , fraud@challenger,digits/3,",
            "PORT": "8080",
            "POLL_INTERVAL_S": "0.5",
            "STATE_DIR": "/var/lib/state",
            "LOG_LEVEL": "debug",
        }
    )
    assert settings.models == ("iris", "fraud@challenger", "digits/3")
    assert (settings.port, settings.poll_interval_s, settings.log_level) == (8080, 0.5, "debug")
    assert settings.state_dir == Path("/var/lib/state")


def test_a_switch_is_said_in_many_ways() -> None:
    assert all(
        Settings.from_env({"AUTO_ROLLBACK": text}).auto_rollback for text in ("true", "True", "1", "yes", " on ")
    )
    assert not any(Settings.from_env({"AUTO_ROLLBACK": text}).auto_rollback for text in ("false", "0", "no", "OFF"))
    assert refusal(AUTO_ROLLBACK="maybe") == "AUTO_ROLLBACK must be true or false, not 'maybe'"


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Settings.from_env(dict.fromkeys(names(), "")) == Settings()


def test_a_folder_is_absolute_and_may_start_at_home() -> None:
    assert Settings.from_env({"STATE_DIR": "some/where"}).state_dir == Path.cwd() / "some" / "where"
    assert Settings.from_env({"MODEL_DIR": "~/models"}).model_dir == Path.home() / "models"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


NUMBERS = [name for name, row in names().items() if type(row.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["many", "1e", "0x10", "nan", "inf", "-inf", "1,5"])
def test_what_is_no_number_is_refused_by_name(name: str, text: str) -> None:
    expected = "a whole number" if isinstance(names()[name].default, int) else "a number"
    assert refusal(**{name: text}) == f"{name} must be {expected}, not {text!r}"


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_lower_bound_that_holds(name: str) -> None:
    least = names()[name].metadata["least"]
    assert least is not None
    assert Settings.from_env({name: f"{least:g}"})
    assert refusal(**{name: f"{least - 1:g}"}) == f"{name} must be at least {least:g}, not {least - 1:g}"


@pytest.mark.parametrize("name", [name for name in NUMBERS if names()[name].metadata["most"] is not None])
def test_an_upper_bound_holds(name: str) -> None:
    most = names()[name].metadata["most"]
    assert Settings.from_env({name: f"{most:.12g}"})
    assert refusal(**{name: str(most + 1)}) == f"{name} must be at most {most:.12g}, not {most + 1}"


@pytest.mark.parametrize(
    ("name", "allowed"), [("LOG_LEVEL", "debug, info, warning, error"), ("LOG_FORMAT", "auto, json, text")]
)
def test_a_word_that_is_none_of_the_choices_is_refused(name: str, allowed: str) -> None:
    assert refusal(**{name: "loud"}) == f"{name} must be one of {allowed}, not 'loud'"


def test_models_must_name_one() -> None:
    assert "MODELS is empty" in refusal(MODELS=" , ,")


def test_a_home_that_does_not_exist_is_refused() -> None:
    assert refusal(STATE_DIR="~nobody-of-this-name/state").startswith("STATE_DIR must be a path")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("MODEL_DIRS", "MODEL_DIR"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("POLL_INTERVAL", "POLL_INTERVAL_S"),
        ("WEB_CONCURENCY", "WEB_CONCURRENCY"),
        ("MLFLOW_TRACKING_TOKEN_FIL", "MLFLOW_TRACKING_TOKEN_FILE"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_name_that_was_meant(given: str, meant: str) -> None:
    assert refusal(**{given: "1"}) == f"unknown setting {given}; did you mean {meant}?"


def test_other_peoples_variables_are_left_alone() -> None:
    others = ("PATH", "HOSTNAME", "KUBERNETES_PORT", "OTEL_SERVICE_NAME", "AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS")
    assert Settings.from_env(dict.fromkeys(others, "x")) == Settings()


def test_every_variable_of_mlflow_itself_is_left_alone() -> None:
    import mlflow.environment_variables as mlflow_variables

    theirs = {name for name in vars(mlflow_variables) if name.startswith("MLFLOW_")} - set(names())
    assert len(theirs) > 50
    assert Settings.from_env(dict.fromkeys(theirs, "x")) == Settings()


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = [name for name, row in names().items() if row.metadata["secret"]]


def secret(name: str) -> str:
    """A value that the setting takes."""
    return "postgresql://me:s3cret@db/ledger" if name == "DATABASE_URL" else "s3cret"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_come_from_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{secret(name)} with spaces\n", encoding="utf-8")
    settings = Settings.from_env({f"{name}_FILE": str(tmp_path / "secret")})
    assert getattr(settings, name.lower()) == f"{secret(name)} with spaces"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_never_shows_in_the_settings_as_text(name: str) -> None:
    settings = Settings.from_env({name: secret(name)})
    assert getattr(settings, name.lower()) == secret(name)
    assert "s3cret" not in repr(settings)


def test_a_database_that_cannot_be_one_is_refused_without_its_password() -> None:
    assert "s3cret" not in refusal(DATABASE_URL="mysql://me:s3cret@db/ledger")
    assert "postgresql://" in refusal(DATABASE_URL="mysql://me:s3cret@db/ledger")


def test_a_secret_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one", encoding="utf-8")
    message = refusal(MLFLOW_TRACKING_TOKEN="two", MLFLOW_TRACKING_TOKEN_FILE=str(tmp_path / "secret"))
    assert message == "MLFLOW_TRACKING_TOKEN and MLFLOW_TRACKING_TOKEN_FILE are both set; give one of them"


def test_a_secrets_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = refusal(MLFLOW_TRACKING_TOKEN_FILE=str(tmp_path / "none"))
    assert message == f"MLFLOW_TRACKING_TOKEN_FILE: cannot read {tmp_path / 'none'}: No such file or directory"


def test_a_secrets_file_that_is_no_text_is_refused_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00s3cret")
    assert refusal(MLFLOW_TRACKING_TOKEN_FILE=str(tmp_path / "secret")).endswith("is not UTF-8 text")


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_one_line_for_each_setting_with_its_help() -> None:
    lines = table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(names())
    assert all(row.metadata["help"] in line for line, row in zip(lines, names().values(), strict=True))


def test_the_table_shows_no_place_of_this_machine() -> None:
    assert str(ROOT) not in table()


def test_the_table_says_which_settings_may_come_from_a_file() -> None:
    for line in table().splitlines()[2:]:
        name = line.split("`")[1]
        assert (f"{name}_FILE" in line) == (name in SECRETS)


def test_the_table_shows_defaults_as_they_are_written() -> None:
    assert "| `PORT` | `5000` |" in table()
    assert "| `MODELS` | `iris` |" in table()
