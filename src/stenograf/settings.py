"""Every setting, once: its name, unit, default, and the names that earlier services used for it.

A value is looked for, from the strongest to the weakest, in: what the caller passes (a command-line option), the
environment, a `.env` file in the working directory, a TOML file, the default. An empty value counts as none. A value
under an old name that makes no sense is passed over with a warning: other programs use some of these names too, such as
`LOG_LEVEL`. `STENOGRAF_CONFIG` names the TOML file;
otherwise `stenograf.toml` in the working directory is read, or else `config.toml` in the user's configuration folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs

from stenograf import setting_values as read

PREFIX = "STENOGRAF_"

CONFIG_VARIABLE = "STENOGRAF_CONFIG"
"""Names the TOML file; no setting itself."""


HOMELESS = Path(tempfile.gettempdir(), "stenograf")
"""Where data goes for a user without a home folder, such as a bare number in a container."""


def user_folder(kind: Callable[..., str], *below: str) -> Path | None:
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
        default_factory=lambda: user_folder(platformdirs.user_data_dir) or HOMELESS,
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
        "The database: sqlite:////full/path.db, or postgresql://user:password@host:5432/name where several machines "
        "share the work. Default: the SQLite file stenograf.db in data_dir.",
        str,
        None,
        secret=True,
    )
    broker_url: str | None = _setting(
        "The message broker that wakes workers on other machines: redis://host:6379/0 or amqp://user:password@host//. "
        "Empty: workers look into the database by themselves.",
        str,
        None,
        secret=True,
    )
    redis_host: str | None = _setting(
        "The Redis that is the broker, where broker_url is empty.", str, None, old=("REDIS_HOST",)
    )
    redis_port: int = _setting("Its port.", read.count(1, 65_535), 6379, old=("REDIS_PORT",))
    redis_db: int = _setting("The number of its database.", read.count(0, 1_000_000), 0, old=("REDIS_DB",))
    redis_password: str | None = _setting("Its password.", str, None, old=("REDIS_PASSWORD",), secret=True)
    queue_name: str = _setting(
        "What the names of the broker's queues begin with: stenograf.short.cpu, stenograf.long.gpu, ...",
        read.queue_name,
        "stenograf",
        old=("REDIS_QUEUE_NAME",),
    )
    gpu_models: tuple[str, ...] = _setting(
        "Models that only workers with a GPU may read with, such as large-v3,turbo; recordings that ask for others "
        "go to any worker.",
        read.listed,
        (),
    )
    needs: tuple[str, ...] = _setting(
        "What the workers of this machine take: cpu (recordings that any machine can read), gpu (those of gpu_models), "
        "or both. Empty: both where there is a GPU, else cpu.",
        read.needs,
        (),
    )
    serve_workers: str = _setting(
        "Whether stenograf serve transcribes too, beside answering: yes, no, or auto, which is yes unless "
        "there are a broker and PostgreSQL.",
        read.choice("auto", "yes", "no"),
        "auto",
    )
    storage_url: str | None = _setting(
        "Where recordings are kept: s3://bucket or s3://bucket/folder. Empty: in the folder upload_dir.",
        read.bucket,
        None,
    )
    s3_endpoint: str | None = _setting(
        "The address of the object store; empty: Amazon's.",
        read.web_address,
        None,
        old=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    )
    s3_region: str | None = _setting("Its region.", str, None, old=("AWS_REGION", "AWS_DEFAULT_REGION"))
    s3_access_key: str | None = _setting(
        "The id of the key for it; empty: as Amazon's machines give it to those that run on them.",
        str,
        None,
        old=("AWS_ACCESS_KEY_ID",),
        secret=True,
    )
    s3_secret_key: str | None = _setting("The key's secret.", str, None, old=("AWS_SECRET_ACCESS_KEY",), secret=True)
    s3_session_token: str | None = _setting(
        "Its session token, where it is a temporary one.", str, None, old=("AWS_SESSION_TOKEN",), secret=True
    )
    download_links: float = _setting(
        "A recording that is asked for is answered with a link to the object store, good for so long, and not with its "
        "bytes; 0: never. Clients must reach s3_endpoint for that.",
        read.number(0, 604_800),
        0.0,
        unit="seconds",
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
        "kept in data_dir, or in the database where that is PostgreSQL.",
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
    def broker(self) -> str | None:
        """The URL of the message broker; None where there is none."""
        if self.broker_url or not self.redis_host:
            return self.broker_url
        password = f":{quote(self.redis_password, safe='')}@" if self.redis_password else ""
        return f"redis://{password}{self.redis_host}:{self.redis_port}/{self.redis_db}"

    @property
    def transcribes(self) -> bool:
        """Whether `stenograf serve` has workers of its own."""
        is_alone = self.broker is None or self.database.startswith("sqlite")
        return self.serve_workers == "yes" or (self.serve_workers == "auto" and is_alone)

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite:///{quote(str(self.data_dir / 'stenograf.db'))}"


def documented() -> list[Field[Any]]:
    """The settings as dataclass fields; `metadata` has `help`, `unit`, `old` (names) and `secret`."""
    return list(fields(Settings))


def variable(name: str) -> str:
    """The environment variable of the setting `name`."""
    return PREFIX + name.upper()
