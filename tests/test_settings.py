"""Every setting, once: where its value comes from, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stenograf.errors import SettingInvalidError
from stenograf.setting_sources import Origin, load
from stenograf.settings import documented, variable


def test_defaults(tmp_path: Path) -> None:
    loaded = load({}, directory=tmp_path)
    assert loaded.settings.default_model == "auto"
    assert loaded.settings.models_path == loaded.settings.data_dir / "models"
    assert set(loaded.origins.values()) == {Origin("default")}


def test_the_stronger_source_wins(tmp_path: Path) -> None:
    (tmp_path / "stenograf.toml").write_text('default_model = "toml"\nbeam_size = 2\nthreads = 3\ndevice = "cpu"\n')
    (tmp_path / ".env").write_text("STENOGRAF_DEFAULT_MODEL=dotenv\nSTENOGRAF_BEAM_SIZE=3\nSTENOGRAF_DEVICE=cuda\n")
    loaded = load(
        {"STENOGRAF_DEFAULT_MODEL": "env", "STENOGRAF_DEVICE": "cuda:1"},
        directory=tmp_path,
        overrides={"device": "AUTO", "compute_type": None},
    )
    settings = loaded.settings
    assert (settings.device, settings.default_model, settings.beam_size, settings.threads) == ("auto", "env", 3, 3)
    assert loaded.origins["device"] == Origin("option", "--device")
    assert loaded.origins["default_model"] == Origin("environment", "STENOGRAF_DEFAULT_MODEL")
    assert loaded.origins["beam_size"] == Origin(".env", "STENOGRAF_BEAM_SIZE")
    assert loaded.origins["threads"].kind == "file"
    assert loaded.origins["compute_type"] == Origin("default")


def test_names_of_earlier_services_in_their_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# an earlier service\nDEFAULT_MODEL = base\nDEFAULT_LANGUAGE = ru\nDEFAULT_DURATION = 30\n"
        "LOG_LEVEL = INFO\nWHISPER_BEAM_SIZE = 1\nREDIS_HOST = redis\n"
    )
    settings = load({}, directory=tmp_path).settings
    assert settings.default_model == "base"
    assert settings.default_language == "ru"
    assert settings.default_trim == 30
    assert settings.log_level == "info"
    assert settings.beam_size == 1


def test_the_new_name_wins_over_the_old_one(tmp_path: Path) -> None:
    environ = {"DEFAULT_MODEL": "old", "STENOGRAF_DEFAULT_MODEL": "new"}
    assert load(environ, directory=tmp_path).settings.default_model == "new"


def test_mirror_token_and_offline_by_the_hubs_own_names(tmp_path: Path) -> None:
    environ = {"HF_ENDPOINT": "https://mirror.example", "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1"}
    settings = load(environ, directory=tmp_path).settings
    assert (settings.hub_endpoint, settings.hub_token, settings.offline) == ("https://mirror.example", "secret", True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STENOGRAF_BEAM_SIZE", "0"),
        ("STENOGRAF_BEAM_SIZE", "many"),
        ("STENOGRAF_DEVICE", "gpu"),
        ("STENOGRAF_COMPUTE_TYPE", "int3"),
        ("STENOGRAF_DEFAULT_LANGUAGE", "klingon"),
        ("STENOGRAF_DEFAULT_TRIM", "-3"),
        ("STENOGRAF_DEFAULT_TRIM", "long"),
        ("STENOGRAF_OFFLINE", "perhaps"),
        ("STENOGRAF_LOG_LEVEL", "loud"),
        ("STENOGRAF_THREADS", "²"),
        ("STENOGRAF_THREADS", "-1"),
        ("STENOGRAF_CORS_ORIGINS", "app.example.org"),
        ("STENOGRAF_CORS_ORIGINS", "https://app.example.org/page"),
    ],
)
def test_a_wrong_value_names_the_setting_and_says_what_to_write(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingInvalidError) as caught:
        load({name: value}, directory=tmp_path)
    assert name in caught.value.message
    assert value in caught.value.message
    assert caught.value.hint


def test_an_empty_value_counts_as_none(tmp_path: Path) -> None:
    names = [variable(item.name) for item in documented()]
    loaded = load(dict.fromkeys(names, " "), directory=tmp_path)
    assert set(loaded.origins.values()) == {Origin("default")}


def test_another_programs_variable_does_not_stop_us(tmp_path: Path) -> None:
    loaded = load({"LOG_LEVEL": "verbose-ish", "DEFAULT_DURATION": "long"}, directory=tmp_path)
    assert loaded.settings.log_level == "warning"
    assert [part in " ".join(loaded.warnings) for part in ("LOG_LEVEL", "DEFAULT_DURATION")] == [True, True]
    assert load({"LOG_LEVEL": "WARN"}, directory=tmp_path).settings.log_level == "warning"
    assert load({"LOG_LEVEL": "Critical"}, directory=tmp_path).settings.log_level == "error"


def test_an_option_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalidError, match="The option --device has the value 'tpu'"):
        load({}, directory=tmp_path, overrides={"device": "tpu"})


def test_a_toml_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("vad = false\ndefault_trim = 12.5\n")
    settings = load({"STENOGRAF_CONFIG": str(file)}, directory=tmp_path).settings
    assert settings.vad is False
    assert settings.default_trim == 12.5


def test_a_toml_file_with_a_heading(tmp_path: Path) -> None:
    (tmp_path / "stenograf.toml").write_text("[stenograf]\nbeam_size = 4\n")
    assert load({}, directory=tmp_path).settings.beam_size == 4


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(*_: object, **__: object) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_data_dir", no_home)
    monkeypatch.setattr("platformdirs.user_config_dir", no_home)
    loaded = load({}, directory=tmp_path)
    assert loaded.settings.data_dir.is_absolute()
    assert "STENOGRAF_DATA_DIR" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("beam_sise = 3", "beam_size"),
        ("beam_size = ", "cannot be read"),
        ("beam_size = [1]", "single value"),
        ("beam_size = 99", "from 1 to 20"),
    ],
)
def test_a_wrong_toml_file(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "stenograf.toml").write_text(content)
    with pytest.raises(SettingInvalidError) as caught:
        load({}, directory=tmp_path)
    assert part in str(caught.value)


def test_a_toml_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalidError, match="is no file"):
        load({"STENOGRAF_CONFIG": str(tmp_path / "none.toml")}, directory=tmp_path)


def test_a_misspelt_variable_is_noticed(tmp_path: Path) -> None:
    (warning,) = load({"STENOGRAF_DEFAULT_MODLE": "base"}, directory=tmp_path).warnings
    assert "STENOGRAF_DEFAULT_MODEL" in warning


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text("utf-8")
    for item in documented():
        assert f"`{variable(item.name)}`" in page, item.name
        assert item.metadata["help"] in page, item.name
        for old in item.metadata["old"]:
            assert f"`{old}`" in page, old


# Several machines


def test_the_broker_of_earlier_services(tmp_path: Path) -> None:
    environ = {"REDIS_HOST": "redis.test", "REDIS_DB": "3", "REDIS_PASSWORD": "p@ss/w:rd", "REDIS_QUEUE_NAME": "speech"}
    assert load(environ, directory=tmp_path).settings.transcribes  # on SQLite nobody else could
    environ["STENOGRAF_DATABASE_URL"] = "postgresql://db.test/name"
    settings = load(environ, directory=tmp_path).settings
    assert settings.broker == "redis://:p%40ss%2Fw%3Ard@redis.test:6379/3"
    assert settings.queue_name == "speech"
    assert not settings.transcribes
    settings = load({**environ, "STENOGRAF_BROKER_URL": "amqp://mq.test//"}, directory=tmp_path).settings
    assert settings.broker == "amqp://mq.test//"


def test_one_machine_has_no_broker_and_reads_by_itself(tmp_path: Path) -> None:
    settings = load({"REDIS_PORT": "6380"}, directory=tmp_path).settings
    assert settings.broker is None
    assert settings.transcribes
    broker = {"STENOGRAF_BROKER_URL": "redis://redis.test"}
    assert load({**broker, "STENOGRAF_SERVE_WORKERS": "yes"}, directory=tmp_path).settings.transcribes
    assert not load({"STENOGRAF_SERVE_WORKERS": "no"}, directory=tmp_path).settings.transcribes


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("STORAGE_URL", "https://bucket", "s3://bucket"),
        ("STORAGE_URL", "s3://b", "s3://bucket"),
        ("NEEDS", "gpu,tpu", "gpu,cpu"),
        ("QUEUE_NAME", "a queue", "letters"),
        ("REDIS_PORT", "0", "1 to 65535"),
        ("S3_ENDPOINT", "s3.internal", "https://"),
    ],
)
def test_a_fleet_that_cannot_be(tmp_path: Path, name: str, text: str, wanted: str) -> None:
    with pytest.raises(SettingInvalidError, match=name) as caught:
        load({f"STENOGRAF_{name}": text}, directory=tmp_path)
    assert wanted in str(caught.value)


def test_secrets_of_a_fleet_are_not_shown(tmp_path: Path) -> None:
    secret = [item.name for item in documented() if item.metadata["secret"]]
    assert {"database_url", "broker_url", "redis_password", "s3_access_key", "s3_secret_key"} <= set(secret)
    with pytest.raises(SettingInvalidError) as caught:
        load({"STENOGRAF_STORAGE_URL": "s3://user:secret@bucket"}, directory=tmp_path)
    assert "s3://bucket" in caught.value.hint
