"""Every setting, once: its name, unit, default, and the names that earlier services used for it.

A value is looked for, from the strongest to the weakest, in: what the caller passes (a command-line option), the
environment, a `.env` file in the working directory, a TOML file, the default. An empty value counts as none. A value
under an old name that makes no sense is passed over with a warning: other programs use some of these names too, such as
`LOG_LEVEL`. `STENOGRAF_CONFIG` names the TOML file;
otherwise `stenograf.toml` in the working directory is read, or else `config.toml` in the user's configuration folder.
"""

from __future__ import annotations

import difflib
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs

from stenograf import setting_values as read
from stenograf.errors import SettingInvalidError

PREFIX = "STENOGRAF_"

CONFIG_VARIABLE = "STENOGRAF_CONFIG"
"""Names the TOML file; no setting itself."""


_HOMELESS = Path(tempfile.gettempdir(), "stenograf")
"""Where data goes for a user without a home folder, such as a bare number in a container."""


def _user_folder(kind: Callable[..., str], *below: str) -> Path | None:
    """The user's own folder of a kind; None where the user has no home."""
    try:
        return Path(kind("stenograf", appauthor=False), *below)
    except RuntimeError:
        return None


def _setting(
    help: str,  # noqa: A002
    parse: Callable[[str], Any],
    default: Any = MISSING,
    *,
    default_factory: Any = MISSING,
    unit: str = "",
    old: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    metadata = {"help": help, "parse": parse, "unit": unit, "old": old, "secret": secret}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of all settings. A field `name` is the variable `STENOGRAF_NAME` and the TOML key `name`."""

    data_dir: Path = _setting(
        "Where Stenograf keeps what it must remember.",
        read.path_of,
        default_factory=lambda: _user_folder(platformdirs.user_data_dir) or _HOMELESS,
    )
    models_dir: Path | None = _setting(
        "Where models are kept, each in a folder of its own; it may be read-only. Default: models in data_dir.",
        read.path_of,
        None,
    )
    default_model: str = _setting(
        "The model to use where none is named: a catalog name, a folder in models_dir, or a path. "
        "auto: the one that suits the language and the machine.",
        read.model,
        "auto",
        old=("DEFAULT_MODEL",),
    )
    default_language: str | None = _setting(
        "The language to read where none is named, such as ru; empty or auto: detect it.",
        read.language,
        None,
        old=("DEFAULT_LANGUAGE",),
    )
    default_trim: float | None = _setting(
        "Read only the start of each recording, where no trim is given; empty or 0: all of it.",
        read.seconds,
        None,
        unit="seconds",
        old=("DEFAULT_DURATION",),
    )
    device: str = _setting("What to compute on: auto, cpu, cuda or cuda:N.", read.device, "auto")
    compute_type: str = _setting(
        "Number format of the model: auto, or such as int8, float16, float32.", read.choice(*read.COMPUTE_TYPES), "auto"
    )
    threads: int = _setting("Processor cores to use; 0: all.", read.count(0, 1024), 0, unit="cores")
    beam_size: int = _setting(
        "Candidates kept while decoding; 1 is greedy: faster, a little less exact.",
        read.count(1, 20),
        5,
        old=("WHISPER_BEAM_SIZE",),
    )
    vad: bool = _setting("Look for speech first and leave out the rest.", read.flag, True)
    offline: bool = _setting(
        "Never ask the model hub; use only what is on this machine.", read.flag, False, old=("HF_HUB_OFFLINE",)
    )
    hub_endpoint: str | None = _setting(
        "Address of the model hub or of a mirror; empty: huggingface.co.", str, None, old=("HF_ENDPOINT",)
    )
    hub_token: str | None = _setting("Token for the model hub.", str, None, old=("HF_TOKEN",), secret=True)
    log_level: str = _setting(
        "How much to log: debug, info, warning or error. The service logs from info on, unless this is set.",
        read.level,
        "warning",
        old=("LOG_LEVEL",),
    )
    log_format: str = _setting("How the service logs: text or json.", read.choice("text", "json"), "text")
    log_file: bool = _setting("Let the service also log to logs/service.log in data_dir, rotating.", read.flag, False)
    host: str = _setting("The address that the service listens on; 0.0.0.0: all of this machine's.", str, "127.0.0.1")
    port: int = _setting("The port that the service listens on; 0: a free one.", read.count(0, 65_535), 8000)
    public_url: str | None = _setting(
        "The address by which clients reach the service, for links in webhooks.", read.web_address, None
    )
    workers: int = _setting(
        "Processes that transcribe. With two or more, one is kept for long recordings and gives way to the others; "
        "0: two on a processor, one on a GPU.",
        read.count(0, 64),
        0,
    )
    slots: int = _setting(
        "Recordings that the service works on at once, over all its workers. With two or more, one place is kept for "
        "short recordings.",
        read.count(1, 256),
        3,
    )
    worker_memory: int = _setting(
        "A worker that takes more memory than this is replaced by a fresh one when its recordings are done; "
        "0: half of the machine's, or what its models may take and 1000 MB, whichever is more.",
        read.count(0, 10_000_000),
        0,
        unit="MB",
    )
    database_url: str | None = _setting(
        "The database; default: the SQLite file stenograf.db in data_dir.", str, None, secret=True
    )
    upload_dir: Path | None = _setting(
        "Where the service keeps recordings until they are removed. Default: files in data_dir.",
        read.path_of,
        None,
        old=("UPLOAD_DIR",),
    )
    max_upload: int = _setting(
        "The largest recording that the service takes.", read.count(1, 1_000_000), 2048, unit="MB"
    )
    max_duration: float = _setting(
        "The longest recording that the service takes; 0: any.", read.number(0, 1e9), 43_200.0, unit="seconds"
    )
    max_queued: int = _setting(
        "So many recordings may wait; more are refused with 503. 0: any number.", read.count(0, 100_000_000), 100_000
    )
    allowed_extensions: tuple[str, ...] = _setting(
        "Take only files whose names end so, such as mp3,ogg; empty: any file that can be read.",
        read.suffixes,
        (),
        old=("ALLOWED_EXTENSIONS",),
    )
    retention: float = _setting(
        "Recordings and results are removed so long after their end; 0: never.",
        read.number(0, 1e10),
        86_400.0,
        unit="seconds",
    )
    max_models: int = _setting(
        "How many models a worker holds in memory, with auto at least 2; the one not used for longest goes first.",
        read.count(1, 100),
        4,
        old=("MAX_MODELS",),
    )
    preload_models: tuple[str, ...] = _setting(
        "Models that workers load when they start, such as small,base; empty: those that the default model needs.",
        read.listed,
        (),
        old=("PRELOAD_MODELS",),
    )
    model_memory: int = _setting(
        "What the models of a worker may take of the machine's memory, all together; "
        "0: three quarters of it, shared among the workers.",
        read.count(0, 10_000_000),
        0,
        unit="MB",
    )
    gpu_memory: int = _setting(
        "What they may take of a GPU's memory; 0: nine tenths of it.", read.count(0, 10_000_000), 0, unit="MB"
    )
    model_idle: float = _setting(
        "A model that nobody used for so long leaves the memory, and is loaded again when it is wanted; 0: never.",
        read.number(0, 1e8),
        1800.0,
        unit="seconds",
    )
    max_attempts: int = _setting("How often a recording is tried before it ends in error.", read.count(1, 100), 3)
    lease: float = _setting(
        "A worker that shows no sign of life for so long loses its recording to another.",
        read.number(1, 3600),
        30.0,
        unit="seconds",
    )
    stall: float = _setting(
        "A worker that makes no headway for so long is taken for hung and replaced.",
        read.number(5, 86_400),
        900.0,
        unit="seconds",
    )
    auth: bool = _setting(
        "Ask for API keys. Off: anyone who reaches the port may do anything. On this machine's own address (127.0.0.1) "
        "no key is asked for while there is none.",
        read.flag,
        True,
    )
    api_keys: tuple[str, ...] = _setting(
        "API keys that are good without having been made by `stenograf keys`, separated by commas. "
        "Give each 16 characters or more: shorter ones can be guessed.",
        read.listed,
        (),
        old=("API_KEYS",),
        secret=True,
    )
    jwt_secret: str | None = _setting(
        "What tokens of /api/v1/token are signed with, 32 characters or more. Default: made at the first start and "
        "kept in data_dir.",
        str,
        None,
        secret=True,
    )
    token_lifetime: int = _setting("How long a token is good.", read.count(60, 86_400), 3600, unit="seconds")
    rate_uploads: int = _setting(
        "Recordings a minute that a key may send, unless the key says otherwise; 0: any number.",
        read.count(0, 1_000_000),
        10,
    )
    rate_requests: int = _setting(
        "Other requests a minute that a key may make; 0: any number.", read.count(0, 10_000_000), 30
    )
    allowed_ips: tuple[str, ...] = _setting(
        "Only these addresses and networks may come in; empty: any.", read.networks, ()
    )
    trusted_proxies: tuple[str, ...] = _setting(
        "Addresses and networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
        read.networks,
        (),
    )
    cors_origins: tuple[str, ...] = _setting(
        "Web pages of these origins may call the API from a browser, such as https://app.example.org; *: any.",
        read.origins,
        (),
    )
    private_networks: tuple[str, ...] = _setting(
        "Networks that webhooks and `url` recordings may reach although they are not public, such as 10.1.0.0/16.",
        read.networks,
        (),
    )
    webhook_secret: str | None = _setting(
        "Webhooks that name no secret are signed with this: whsec_ and base64 of 24 to 64 bytes.",
        str,
        None,
        secret=True,
    )

    @property
    def models_path(self) -> Path:
        """Where models are kept."""
        return self.models_dir or self.data_dir / "models"

    @property
    def files_path(self) -> Path:
        """Where the service keeps recordings."""
        return self.upload_dir or self.data_dir / "files"

    @property
    def log_path(self) -> Path | None:
        """The file that the service logs to; None where it is to log to stdout alone."""
        return self.data_dir / "logs" / "service.log" if self.log_file else None

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite:///{quote(str(self.data_dir / 'stenograf.db'))}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the value of a setting came from."""

    kind: str
    """`option`, `environment`, `.env`, `file` or `default`."""
    detail: str = ""
    """The variable's name or the file's path."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, with where each came from, and what was found beside them."""

    settings: Settings
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...] = ()


def documented() -> list[Field[Any]]:
    """The settings as dataclass fields; `metadata` has `help`, `unit`, `old` (names) and `secret`."""
    return list(fields(Settings))


def variable(name: str) -> str:
    """The environment variable of the setting `name`."""
    return PREFIX + name.upper()


def load(
    environ: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedSettings:
    """Read the settings. `overrides` win over all else, texts among them are parsed; None counts as not given.

    Raises `SettingInvalidError` for a value that makes no sense, naming where it stands, and for a file that cannot
    be read.
    """
    environ = os.environ if environ is None else environ
    directory = directory or Path.cwd()
    dotenv = _read_dotenv(directory / ".env")
    toml_path, toml = _read_toml(environ.get(CONFIG_VARIABLE) or dotenv.get(CONFIG_VARIABLE), directory)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    warnings = _unknown(environ, dotenv)
    if _user_folder(platformdirs.user_data_dir) is None and not environ.get(variable("data_dir")):
        warnings.append(f"You have no home folder; data goes to {_HOMELESS}. Set STENOGRAF_DATA_DIR to choose another.")
    for item in fields(Settings):
        origins[item.name] = Origin("default")
        for text, origin in _found(item, overrides or {}, environ, dotenv, toml, toml_path):
            try:
                values[item.name] = _parse(item, text, origin)
            except SettingInvalidError as error:
                if origin.detail not in item.metadata["old"]:
                    raise
                warnings.append(f"{error.message} It is passed over.")
                continue
            origins[item.name] = origin
            break
    return LoadedSettings(Settings(**values), origins, tuple(warnings))


def _found(
    item: Field[Any],
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    dotenv: Mapping[str, str],
    toml: Mapping[str, Any],
    toml_path: Path | None,
) -> Iterator[tuple[str, Origin]]:
    """The texts that were given for a setting, the strongest first."""
    if overrides.get(item.name) is not None:
        yield str(overrides[item.name]), Origin("option", "--" + item.name.replace("_", "-"))
    for kind, source in (("environment", environ), (".env", dotenv)):
        for name in (variable(item.name), *item.metadata["old"]):
            if source.get(name, "").strip():
                yield source[name].strip(), Origin(kind, name)
    if str(toml.get(item.name, "")).strip():
        yield str(toml[item.name]).strip(), Origin("file", str(toml_path))


def _parse(item: Field[Any], text: str, origin: Origin) -> Any:
    try:
        return item.metadata["parse"](text)
    except ValueError as error:
        shown = "a value that makes no sense" if item.metadata["secret"] else f"the value {text!r}"
        where = {
            "option": f"The option {origin.detail}",
            "environment": f"The setting {origin.detail}",
            "file": f"The setting {item.name} in {origin.detail}",
        }.get(origin.kind, f"The setting {origin.detail} in {origin.kind}")
        reason = str(error)
        unit = f", in {item.metadata['unit']}" if item.metadata["unit"] and "second" not in reason else ""
        hint = reason[0].upper() + reason[1:] + unit
        raise SettingInvalidError(f"{where} has {shown}.", f"{hint.rstrip('.')}.") from None


def _read_dotenv(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    try:
        if not path.is_file():
            return {}
        return {name: value or "" for name, value in dotenv_values(path, encoding="utf-8-sig").items()}
    except (OSError, UnicodeDecodeError) as error:
        hint = "Save it as UTF-8, or remove it." if isinstance(error, UnicodeDecodeError) else "Check its permissions."
        raise SettingInvalidError(f"{path} cannot be read ({error}).", hint) from error


def _read_toml(named: str | None, directory: Path) -> tuple[Path | None, dict[str, Any]]:
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingInvalidError(
                f"{CONFIG_VARIABLE} names {path}, which is no file.", "Create it or unset the variable."
            )
    else:
        folders = (directory / "stenograf.toml", _user_folder(platformdirs.user_config_dir, "config.toml"))
        found = next((p for p in folders if p is not None and p.is_file()), None)
        if found is None:
            return None, {}
        path = found
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingInvalidError(f"{path} cannot be read ({error}).", "Write one `name = value` on a line.") from error
    known = [item.name for item in fields(Settings)]
    section = values.pop("stenograf", None)
    if isinstance(section, dict):
        values |= section  # under a heading of our own, as other programs want it
    for name, value in values.items():
        if name not in known:
            raise SettingInvalidError(
                f"{path} has {name!r}, which is no setting.",
                _nearest(name, known, "See stenograf config --help-settings."),
            )
        if isinstance(value, dict | list):
            raise SettingInvalidError(f"{path}: {name} holds a table or a list.", "Write a single value.")
    return path, values


def _unknown(environ: Mapping[str, str], dotenv: Mapping[str, str]) -> list[str]:
    known = [variable(item.name) for item in fields(Settings)] + [CONFIG_VARIABLE]
    found = sorted({n for n in (*environ, *dotenv) if n.startswith(PREFIX) and n not in known})
    return [f"{name} is no setting. {_nearest(name, known, 'See stenograf config --help-settings.')}" for name in found]


def _nearest(name: str, known: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else otherwise
