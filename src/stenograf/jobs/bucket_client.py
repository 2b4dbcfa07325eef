"""What is asked of an object store, with errors that a person can read: obstore's own hold signed addresses."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from stenograf.errors import FileMissingError, SettingInvalidError, StorageError
from stenograf.jobs import signing
from stenograf.jobs.files import missing
from stenograf.settings import Settings

if TYPE_CHECKING:
    import httpx2
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, S3Config, S3Store

PART = 8 * 1024 * 1024
"""Bytes of a large object that are sent at once. S3 takes 5 MiB to 5 GiB."""

MAX_PARTS = 10_000
"""So many parts may an object have, by S3."""

AT_ONCE = 2
"""Parts of one object that are on their way at the same time."""

CONNECT_SECONDS = 5
REQUEST_SECONDS = 60
"""For all of a request that carries a part; over a line of less than 2.3 Mbit/s two parts at once take longer."""

SHORT_SECONDS = 15
"""For all of a request that carries next to nothing."""

RETRY_SECONDS = 12
"""What fails is tried again for so long."""

CHECK_SECONDS = 4
"""How long the store may take to say that it is there."""

DEFAULT_REGION = "us-east-1"
"""What object stores other than Amazon's most often call themselves, and obstore's own default."""

_REFUSED = {"AccessDenied", "AccountProblem", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
            "RequestTimeTooSkewed", "SignatureDoesNotMatch", "401", "403"}  # fmt: skip
_METADATA = re.compile(r"169\.254\.\d|/latest/(api|meta-data)|fd00:ec2")
"""Where Amazon's machines are asked for keys."""

log = logging.getLogger(__name__)


class Client:
    """A folder of a bucket. All that is asked of it may raise `StorageError`; paths are below the folder."""

    _used_by: ClassVar[int | None] = None
    """The process that uses obstore: its threads are not forked along, so a child of it would wait for ever."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingInvalidError` where obstore is not installed, or the keys are half."""
        if importlib.util.find_spec("obstore") is None:
            raise SettingInvalidError(
                "STENOGRAF_STORAGE_URL needs the library obstore, which is not installed.",
                "Run: pip install 'stenograf[cluster]'.",
            )
        if bool(settings.s3_access_key) != bool(settings.s3_secret_key):
            raise SettingInvalidError(
                "Of the key for the object store there is one half only.",
                "Set both STENOGRAF_S3_ACCESS_KEY and STENOGRAF_S3_SECRET_KEY, or none.",
            )
        name, _, folder = (settings.storage_url or "").removeprefix("s3://").partition("/")
        self._folder = "".join(f"{part}/" for part in folder.split("/") if part)
        region = settings.s3_region or DEFAULT_REGION
        self._bucket = signing.Bucket(settings.s3_endpoint or f"https://s3.{region}.amazonaws.com", name, region)
        parts = urlsplit(self._bucket.endpoint)
        self._endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self.shown = f"s3://{name}/{self._folder}".rstrip("/") + f" at {self._endpoint}"
        """The place, for people."""
        self.keys: signing.Keys | None = None
        """What to sign with, where the settings have it."""
        if settings.s3_access_key and settings.s3_secret_key:
            self.keys = signing.Keys(settings.s3_access_key, settings.s3_secret_key, settings.s3_session_token)

    def check(self) -> None:
        """Raises `StorageError` where the folder cannot be listed now."""
        import obstore

        with self._errors():
            obstore.list_with_delimiter(self._once, f"{self._folder}nothing")  # where there is little to list

    def head(self, path: str) -> ObjectMeta | None:
        """What there is to know of an object; None where there is none."""
        import obstore

        try:
            with self._errors():
                return obstore.head(self._short, self._folder + path)
        except FileMissingError:
            return None

    def get(self, path: str, start: int, end: int) -> bytes:
        """A stretch of an object, shorter where that ends. Raises `FileMissingError`."""
        import obstore

        with self._errors():
            return bytes(obstore.get_range(self._store, self._folder + path, start=start, end=end))

    def put(self, path: str, data: bytes) -> None:
        """Write a small object."""
        import obstore

        with self._errors():
            obstore.put(self._store, self._folder + path, data, use_multipart=False)

    def read_small(self, path: str) -> str | None:
        """The text of a small object; None where there is none."""
        found = self.head(path)
        return None if found is None else self.get(path, 0, found["size"]).decode("ascii", "replace")

    def put_new(self, path: str, data: bytes) -> None:
        """Write a small object unless there is one."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors(), contextlib.suppress(AlreadyExistsError):
            obstore.put(self._store, self._folder + path, data, use_multipart=False, mode="create")

    def put_stream(self, path: str, blocks: Iterator[bytes], size: int) -> None:
        """Write an object of at most `size` bytes (0: not known), a few parts at a time.

        What `blocks` raises comes out of this, and nothing stays behind. It may not ask this client for anything:
        obstore cannot be called from within itself.
        """
        import obstore

        part = max(PART, -(-size // MAX_PARTS))
        with self._errors():
            obstore.put(
                self._store,
                self._folder + path,
                blocks,
                use_multipart=True,
                chunk_size=part,
                max_concurrency=AT_ONCE,
            )

    def delete(self, *paths: str) -> None:
        """Remove objects, several at once; those that are gone already are fine."""
        import obstore

        if paths:
            with contextlib.suppress(FileMissingError), self._errors():
                obstore.delete(self._short, [self._folder + path for path in paths])

    def list(self, folder: str) -> Iterator[ObjectMeta]:
        """All objects below a folder, with paths as this takes them, in no order."""
        import obstore

        with self._errors():
            for page in obstore.list(self._short, self._folder + folder, chunk_size=1000):
                for found in page:
                    yield {**found, "path": found["path"].removeprefix(self._folder)}

    def link(self, path: str, disposition: str, media_type: str, seconds: float) -> str:
        """An address at which anyone can GET an object for so long.

        Without keys in the settings it is obstore that signs, and the object goes out without its name and type.
        """
        import obstore

        if self.keys is None:
            with self._errors():
                return obstore.sign(self._store, "GET", self._folder + path, timedelta(seconds=max(1, int(seconds))))
        query = {"response-content-disposition": disposition, "response-content-type": media_type}
        return signing.signed(self._bucket, self.keys, "GET", self._folder + path, query, seconds=seconds)

    def give_up_unfinished(self, folder: str, limit: float) -> int:
        """Remove uploads in parts that were begun before `limit`, seconds since 1970; returns how many. Takes keys."""
        import httpx2

        assert self.keys is not None
        count = 0
        try:
            with httpx2.Client(timeout=httpx2.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)) as web:
                for key, upload_id, begun in self.unfinished(web, folder):
                    if begun < limit:
                        signing.give_up(web, self._bucket, self.keys, key, upload_id)
                        count += 1
        except httpx2.HTTPStatusError as error:
            raise self._told(f"{error.response.text} status code: {error.response.status_code}") from None
        except httpx2.HTTPError as error:
            raise self._told(f"{type(error).__name__} kind: Connect") from None
        return count

    def unfinished(self, web: httpx2.Client, folder: str) -> tuple[tuple[str, str, float], ...]:
        """What `signing.unfinished` tells of a folder."""
        assert self.keys is not None
        return tuple(signing.unfinished(web, self._bucket, self.keys, f"{self._folder}{folder}/"))

    @cached_property
    def _store(self) -> S3Store:
        return self._connected(REQUEST_SECONDS, RETRY_SECONDS, retries=20)

    @cached_property
    def _short(self) -> S3Store:
        return self._connected(SHORT_SECONDS, RETRY_SECONDS, retries=20)

    @cached_property
    def _once(self) -> S3Store:
        return self._connected(CHECK_SECONDS, CHECK_SECONDS, retries=0)

    def _connected(self, request_seconds: float, retry_seconds: float, *, retries: int) -> S3Store:
        from obstore.store import S3Store

        config: S3Config = {
            "region": self._bucket.region,
            # What is set in the environment would win over `endpoint`.
            "aws_endpoint_url_s3": self._bucket.endpoint,
            "disable_bulk_delete": True,  # not every store has it
            "virtual_hosted_style_request": False,
        }
        if self.keys is not None:
            config |= {"access_key_id": self.keys.access, "secret_access_key": self.keys.secret}
            if self.keys.token:
                config["session_token"] = self.keys.token
        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, request_seconds)),
            "timeout": timedelta(seconds=request_seconds),
        }
        return S3Store(
            self._bucket.name,
            config=config,
            client_options=options,
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=retry_seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=200),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        if Client._used_by is None:
            Client._used_by = os.getpid()
        elif Client._used_by != os.getpid():
            raise RuntimeError("an object store was used before a fork, so it cannot be used after it")
        try:
            yield
        except FileNotFoundError as error:
            if "<Code>NoSuchBucket<" in str(error):
                raise self._told(str(error)) from None
            raise missing() from None
        except BaseError as error:
            raise self._told(str(error), type(error).__name__) from None

    def _told(self, text: str, kind: str = "") -> StorageError:
        """The error for what obstore or the store says, of which only codes are passed on."""
        code = re.search(r"<Code>(\w{1,60})</Code>", text) or re.search(r"status code: (\d{3})", text)
        reason = code[1] if code else "no answer" if re.search(r"kind: (Connect|Timeout)|timed out", text) else kind
        where = f"the bucket {self._bucket.name} at {self._endpoint}"
        log.warning("%s failed: %s", where, reason or "no reason was given")
        keys = "Check STENOGRAF_S3_ACCESS_KEY and STENOGRAF_S3_SECRET_KEY, and what that key may do in the bucket."
        if _METADATA.search(text):
            return StorageError(f"There are no keys for {where}.", keys)
        if reason == "NoSuchBucket":
            return StorageError(
                f"There is no bucket {self._bucket.name} at {self._endpoint}.",
                "Check STENOGRAF_STORAGE_URL and STENOGRAF_S3_ENDPOINT, or make the bucket.",
            )
        if reason in _REFUSED or kind in ("PermissionDeniedError", "UnauthenticatedError"):
            return StorageError(f"The object store refuses {where} ({reason}).", keys)
        if reason == "no answer":
            return StorageError(
                f"The object store that has {where} does not answer.", "See that it runs, and check its address."
            )
        return StorageError(f"The object store failed with {where} ({reason}).", "Its own log may tell more.")
