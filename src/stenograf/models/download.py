"""From the hub to a folder: what a repository holds, and its files, resumed and verified. A file of which a web address
and the sha256 are known comes the same way.

The listing and the HTTP session are huggingface_hub's, so its proxies and certificates hold here too. The
bytes are written here: that library (2.4) throws a broken download away instead of going on with it, and its
Xet protocol does not go through mirrors. Plain HTTP ranges do.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stenograf._version import __version__
from stenograf.errors import DownloadFailedError
from stenograf.models.layout import matches

if TYPE_CHECKING:
    from pathlib import Path

    from huggingface_hub import HfApi

    from stenograf.models.catalog import CatalogEntry

OnBytes = Callable[[int], None]
"""Called with the number of bytes that came or were there already; a negative one takes some back."""

HUB = "https://huggingface.co"

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries of one file; they begin anew whenever something came."""

_PIECE = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """A file of a repository and what identifies its content."""

    path: str
    size: int
    digest: str
    """sha256 of a large file (64 hex digits), git's sha1 of a blob of a small one (40)."""


@dataclass(frozen=True)
class Plan:
    """What is to be downloaded."""

    repo: str
    revision: str
    """The commit: what the listing says holds for the files too, whatever is pushed there meanwhile. Empty where the
    model is on no hub."""

    files: tuple[HubFile, ...]
    address: str
    """The path of a file, put behind it, makes the file's web address."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Hub:
    """A hub, or a mirror of it.

    `endpoint` is its address, None for huggingface.co. `token` is sent if it is given; the one that
    `hf auth login` left on this machine never is, since it would go to mirrors too.
    """

    def __init__(self, endpoint: str | None, token: str | None) -> None:
        self.endpoint = (endpoint or HUB).rstrip("/")
        self._token = token

    def plan(self, entry: CatalogEntry) -> Plan:
        """The files of a model, as they are on the hub now."""
        api = self._api()
        if entry.url is not None and entry.sha256 is not None:
            return self._plan_of_file(entry.name, entry.url, entry.sha256)
        with _explained(entry.repo, self.endpoint):
            info = api.model_info(entry.repo, revision="main", files_metadata=True, timeout=_timeout())
            revision = info.sha or "main"
            files = tuple(
                self._hub_file(entry.repo, revision, sibling)
                for sibling in info.siblings or []
                if _is_wanted(sibling.rfilename, entry)
            )
        if lacking := [want for want in entry.files if not any(matches(file.path, want) for file in files)]:
            raise DownloadFailedError(
                f"{entry.repo} on {self.endpoint} has no {', '.join(lacking)}.",
                "If HF_ENDPOINT names a mirror, it is not complete: try without it.",
            )
        return Plan(entry.repo, revision, files, f"{self.endpoint}/{entry.repo}/resolve/{revision}/")

    def fetch(self, plan: Plan, file: HubFile, folder: Path, on_bytes: OnBytes) -> None:
        """Download one file into `folder`; what an earlier try left there is gone on with."""
        target = folder / file.path
        if is_intact(target, file):
            on_bytes(file.size)
            return
        # The content's hash is in the name: of another version nothing is gone on with.
        part = folder / f"{file.path}.{file.digest[:12]}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        server = self.endpoint if plan.revision else _server(plan.address)
        with part.open("a+b") as out, _explained(plan.repo, server, is_hub=bool(plan.revision)):
            content = _Content(out, file, on_bytes)
            self._fetch_rest(f"{plan.address}{file.path}", content)
            digest = content.digest()
        if digest != file.digest:
            part.unlink()  # nothing of it can be trusted
            raise DownloadFailedError(
                f"What came as {file.path} of {plan.repo} is not what {server} announced: its hash differs.",
                "Nothing was installed. Pull again; if that ends so too, suspect the mirror or the proxy.",
            )
        part.replace(target)

    def _fetch_rest(self, url: str, content: _Content) -> None:
        pauses = iter(PAUSES)
        while content.size < content.file.size:
            before = content.size
            try:
                self._get(url, content)
            except _transport_error() as error:
                if not _may_pass(error):
                    raise
                if content.size > before:
                    pauses = iter(PAUSES)
                if (pause := next(pauses, None)) is None:
                    raise
                time.sleep(pause)

    def _get(self, url: str, content: _Content) -> None:
        """One request for what is still wanting; raises the errors of the HTTP library."""
        from huggingface_hub import get_session, hf_raise_for_status

        # Compressed on the way, the bytes could be neither counted nor gone on with.
        headers = {"user-agent": f"stenograf/{__version__}", "accept-encoding": "identity"}
        if self._token and url.startswith(f"{self.endpoint}/"):
            headers["authorization"] = f"Bearer {self._token}"
        if content.size:
            headers["range"] = f"bytes={content.size}-"
        with get_session().stream("GET", url, headers=headers, timeout=_timeout()) as response:
            if response.status_code == 416:
                content.begin_anew()
                return
            hf_raise_for_status(response)
            if response.status_code != 206 or not _begins_at(response.headers, content.size):
                content.begin_anew()  # no ranges here: all of it comes again
            for piece in response.iter_bytes():  # as they come: gathered ones would be lost with the connection
                content.write(piece)
        content.expect_complete()

    def _plan_of_file(self, name: str, url: str, sha256: str) -> Plan:
        from huggingface_hub import get_session, hf_raise_for_status

        headers = {"user-agent": f"stenograf/{__version__}", "accept-encoding": "identity"}
        with _explained(name, _server(url), is_hub=False):
            response = get_session().head(url, headers=headers, timeout=_timeout(), follow_redirects=True)
            hf_raise_for_status(response)
        size = str(response.headers.get("content-length", ""))
        if not size.isdecimal():
            raise DownloadFailedError(f"{_server(url)} does not say how long {name} is.", _BY_HAND)
        file = url.rsplit("/", 1)[1]
        return Plan(name, "", (HubFile(file, int(size), sha256),), url.removesuffix(file))

    def _hub_file(self, repo: str, revision: str, sibling: Any) -> HubFile:
        size, lfs = sibling.size, sibling.lfs
        if size is not None and lfs is not None:
            return HubFile(sibling.rfilename, size, lfs["sha256"])
        if size is not None and sibling.blob_id is not None:
            return HubFile(sibling.rfilename, size, sibling.blob_id)
        return self._ask(repo, revision, sibling.rfilename)  # some mirrors list names only

    def _ask(self, repo: str, revision: str, name: str) -> HubFile:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repo, name, revision=revision, endpoint=self.endpoint)
        token = self._token or False
        found = get_hf_file_metadata(url, token=token, endpoint=self.endpoint, timeout=_timeout())
        if found.size is None or found.etag is None or len(found.etag) not in {40, 64}:
            raise DownloadFailedError(
                f"{self.endpoint} does not say what size and hash {name} of {repo} should have.",
                "So it cannot be verified: use another mirror, or none (HF_ENDPOINT).",
            )
        return HubFile(name, found.size, found.etag)

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi, constants, get_session

        # No statistics about this machine in the user agent, nor a request to compute them.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        try:
            address = urlsplit(self.endpoint)
            if address.scheme not in {"http", "https"} or not address.hostname:
                raise ValueError("it is no address that begins with https://")
            get_session()
        except (ImportError, ValueError) as error:  # such as a SOCKS proxy without the library for it
            raise DownloadFailedError(
                f"{self.endpoint} cannot be asked: {_first_line(error)}.",
                "Check HF_ENDPOINT, HTTPS_PROXY and ALL_PROXY.",
            ) from error
        return HfApi(
            self.endpoint,
            token=self._token or False,
            library_name="stenograf",
            library_version=__version__,
        )


class _Content:
    """A file while it comes: written, counted and hashed in one go."""

    def __init__(self, out: IO[bytes], file: HubFile, on_bytes: OnBytes) -> None:
        self.file = file
        self.size = 0
        self._out, self._on_bytes, self._hash = out, on_bytes, _new_hash(file.digest, file.size)
        out.seek(0)
        while piece := out.read(_PIECE):
            self._hash.update(piece)
            self.size += len(piece)
        on_bytes(self.size)
        if self.size > file.size:
            self.begin_anew()

    def write(self, piece: bytes) -> None:
        """Append; more than was announced is an error at once, not a full disk later."""
        if self.size + len(piece) > self.file.size:
            self.begin_anew()
            raise DownloadFailedError(
                f"More than the {self.file.size} bytes come that were announced for {self.file.path}.",
                "Nothing was installed; suspect the mirror or the proxy.",
            )
        self._out.write(piece)
        self._hash.update(piece)
        self.size += len(piece)
        self._on_bytes(len(piece))

    def begin_anew(self) -> None:
        """Drop what came so far."""
        self._out.truncate(0)
        self._on_bytes(-self.size)
        self.size = 0
        self._hash = _new_hash(self.file.digest, self.file.size)

    def expect_complete(self) -> None:
        """A connection that ends early without an error counts as one, so that the rest is asked for."""
        if self.size < self.file.size:
            message = f"{self.size} of {self.file.size} bytes of {self.file.path} came"
            raise _transport_error()(message)

    def digest(self) -> str:
        """The hash of all of it, when it is safe on the disk."""
        self._out.flush()
        os.fsync(self._out.fileno())
        return self._hash.hexdigest()


def is_intact(path: Path, file: HubFile) -> bool:
    """Whether this is that file, by its content."""
    is_as_long = path.is_file() and path.stat().st_size == file.size
    return is_as_long and digest_of(path, file.digest) == file.digest


def digest_of(path: Path, like: str, on_bytes: OnBytes | None = None) -> str:
    """A file's hash, of the kind that `like` is: sha256 (64 hex digits) or git's sha1 of a blob (40)."""
    hasher = _new_hash(like, path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
            if on_bytes:
                on_bytes(len(piece))
    return hasher.hexdigest()


def _new_hash(like: str, size: int) -> hashlib._Hash:
    if len(like) == 64:
        return hashlib.sha256()
    hasher = hashlib.sha1(usedforsecurity=False)
    hasher.update(b"blob %d\0" % size)
    return hasher


def _is_wanted(path: str, entry: CatalogEntry) -> bool:
    """Whether the model needs this file; what does not stay inside the folder is never wanted."""
    stays_inside = not ({"", ".", ".."} & set(path.split("/")) or "\\" in path or ":" in path)
    return stays_inside and any(matches(path, pattern) for pattern in (*entry.files, *entry.optional))


def _begins_at(headers: Any, offset: int) -> bool:
    return str(headers.get("content-range", "")).removeprefix("bytes ").startswith(f"{offset}-")


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    status = _status_of(error)
    return status is None or status in {408, 429, 500, 502, 503, 504}


def _status_of(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _timeout() -> float:
    """Seconds without a byte after which a connection is given up (HF_HUB_DOWNLOAD_TIMEOUT)."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _transport_error() -> type[Exception]:
    """The base of the errors of the HTTP library: httpx with huggingface_hub 1.x, httpx2 from 2.0 on."""
    from huggingface_hub import errors

    return errors.HTTPError  # type: ignore[attr-defined]


_BY_HAND = "Get the file from another machine and put it into the models folder: its hash is checked there."


def _server(url: str) -> str:
    address = urlsplit(url)
    return f"{address.scheme}://{address.netloc}"


@contextmanager
def _explained(repo: str, endpoint: str, *, is_hub: bool = True) -> Iterator[None]:
    """The errors of the HTTP library in words that help."""
    try:
        yield
    except _transport_error() as error:
        status = _status_of(error)
        if status is None:
            raise _unreachable(endpoint, error) from error
        if not is_hub:
            raise DownloadFailedError(f"{endpoint} does not give {repo} (HTTP {status}).", _BY_HAND) from error
        raise _refused(repo, endpoint, status) from error
    except ConnectionError as error:  # such as huggingface_hub's OfflineModeIsEnabled
        raise _unreachable(endpoint, error) from error


def _unreachable(endpoint: str, error: Exception) -> DownloadFailedError:
    return DownloadFailedError(
        f"{endpoint} cannot be reached or broke off: {_first_line(error)}.",
        "Check the connection; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT. "
        "What has come is kept: the next pull goes on with it.",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _refused(repo: str, endpoint: str, status: int) -> DownloadFailedError:
    if status in {401, 403}:
        return DownloadFailedError(
            f"{endpoint} does not give {repo} to us (HTTP {status}).",
            "It is private, or wants its terms accepted first: set HF_TOKEN to a token that may read it. "
            "If one is set, it may have expired.",
        )
    if status == 404:
        return DownloadFailedError(
            f"{endpoint} has no {repo}, or not all of its files (HTTP 404).",
            "If HF_ENDPOINT names a mirror, it is not complete: try without it.",
        )
    return DownloadFailedError(f"{endpoint} answers with HTTP {status}.", "Try again in a while.")
