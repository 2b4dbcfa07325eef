"""The one way out to addresses that a user named: webhooks, and recordings to fetch by `url`.

Such an address may point anywhere, at this server and its neighbours too, and its name may lead elsewhere tomorrow.
So what is judged is no spelling but the addresses that a name resolves to, and the connection goes to an address that
was judged: there is no second look-up in between. TLS and the Host header keep the name. A redirect is judged as any
other address. No proxy is asked for, whatever the environment says: it would resolve the name again, out of sight.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import httpcore2
import httpx2

from stenograf._version import __version__
from stenograf.errors import (
    AddressRefusedError,
    CancelledError,
    FetchFailedError,
    FetchRefusedError,
    UploadTooLargeError,
)
from stenograf.jobs.addresses import Address, Network, Resolve, addresses_of, look_up, why_refused

RESOLVE_SECONDS = 10.0
"""How long `check` waits for a name to resolve."""

CONNECT_SECONDS = 5.0
"""How long one address of a name may take to answer, before the next one is tried."""

MAX_REDIRECTS = 5
"""How often a download follows a redirect; a link, its https and its store make three."""

ANSWER_BYTES = 4096
"""How much of the answer to a `post` is read: enough for its server to end in peace."""

_TICK_SECONDS = 0.5
"""How often a silent connection is left to ask whether the caller has cancelled."""

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-fA-F:.]+")
"""A name or an IPv6 address, the latter without a zone: that is a matter of this machine."""

_REDIRECTS = (301, 302, 303, 307, 308)
_TROUBLES = (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError)
_PARAMETER = re.compile(r""";\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)""")


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered to a `post`."""

    status: int
    """The HTTP status; a redirect (3xx) is an answer like any other."""
    headers: Mapping[str, str]
    """By names in lower case."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a `download` brought."""

    filename: str
    """What the server calls the file, or the end of the address: without folders, never empty."""
    media_type: str
    """Such as `audio/ogg`, in lower case; empty where the server does not say."""
    size: int
    """Bytes."""


class Outbound:
    """Sends requests to public addresses, and to the networks that an operator allows; threads may share one.

    `allowed` wins over every refusal: it may hold loopback, or one address as a `/32`. `resolve` is there for tests of
    names that change their addresses.
    """

    def __init__(self, allowed: Sequence[Network] = (), *, resolve: Resolve = look_up) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolve

    def check(self, url: str) -> None:
        """Look at an address when it is named; `post` and `download` look again.

        Takes up to `RESOLVE_SECONDS`. Raises `AddressRefusedError` for a URL that is malformed or no http(s), for one
        with a user or password, and where its name is unknown or any of its addresses is refused.
        """
        try:
            self._addresses(_parsed(url).raw_host.decode("ascii"), RESOLVE_SECONDS)
        except FetchFailedError as error:
            raise AddressRefusedError(error.message, "Check how the name is written.") from error

    def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Response:
        """Send `body`, and follow no redirect. `timeout_seconds` holds for the whole call, a slow server or not.

        Raises `AddressRefusedError`, `FetchFailedError` where no answer comes, and `FetchRefusedError` for a
        certificate that is not valid. A status that tells of an error is returned, not raised.
        """
        limits = _Limits(timeout_seconds, timeout_seconds)
        with self._exchange("POST", _parsed(url), headers, body, limits) as answer:
            # The status says it all: what is wrong with the rest of the answer does not matter any more.
            with suppress(*_TROUBLES):
                read = 0
                for data in answer.iter_stream():
                    read += len(data)
                    if read >= ANSWER_BYTES:
                        break
            return Response(answer.status, _headers(answer))

    def download(
        self,
        url: str,
        write: Callable[[bytes], None],
        *,
        max_bytes: int,
        timeout_seconds: float,
        idle_seconds: float = 30.0,
        on_progress: Callable[[int, int | None], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Downloaded:
        """Fetch a file, following up to `MAX_REDIRECTS` redirects; `write` gets its bytes as they come.

        `max_bytes` is the most that `write` gets, `timeout_seconds` the most that the whole call takes, `idle_seconds`
        the longest that the server may be silent. `on_progress` is called with the bytes that came and, where the
        server says it, how many there are. `cancelled` is asked twice a second or more often.

        Raises `AddressRefusedError`, `UploadTooLargeError`, `FetchFailedError` for what may pass (no connection, too
        slow, broken off, 429 or 5xx), `FetchRefusedError` for what will not, `CancelledError`, and what `write` raises.
        After an error what was written is of no use.
        """
        limits = _Limits(timeout_seconds, idle_seconds, cancelled)
        place = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            with self._exchange("GET", place, {}, None, limits) as answer:
                headers = _headers(answer)
                if answer.status in _REDIRECTS and "location" in headers:
                    place = _parsed(headers["location"], place)
                    continue
                total = _acceptable(place.host, answer.status, headers, max_bytes)
                size = 0
                for data in answer.iter_stream():
                    size += len(data)
                    if size > max_bytes:
                        raise _too_large(place.host, max_bytes)
                    write(data)
                    if on_progress is not None:
                        on_progress(size, total)
                name = _file_name(headers.get("content-disposition", ""), place.path)
                return Downloaded(name, headers.get("content-type", "").split(";")[0].strip().lower(), size)
        raise FetchRefusedError(
            f"{place.host} redirects more than {MAX_REDIRECTS} times.", "Name the address that it ends at."
        )

    @contextmanager
    def _exchange(
        self, method: str, url: httpx2.URL, headers: Mapping[str, str], body: bytes | None, limits: _Limits
    ) -> Iterator[httpcore2.Response]:
        """One request on a connection of its own, in words that a person can read where it fails."""
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": f"stenograf/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # what is small on the wire could be endless unpacked
            "Connection": "close",
            **headers,
        }
        backend = _Backend(self._addresses, limits)
        context = self._tls if url.scheme == "https" else None
        try:
            with (
                httpcore2.HTTPConnection(target.origin, context, network_backend=backend) as connection,
                connection.stream(method, target, headers=list(sent.items()), content=body) as answer,
            ):
                yield answer
        except _TROUBLES as error:
            raise _failed(url.host, error) from error

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """The system's authorities, or those that SSL_CERT_FILE or SSL_CERT_DIR name."""
        return httpcore2.default_ssl_context()

    def _addresses(self, host: str, seconds: float) -> list[Address]:
        """All addresses of a host, each of them judged. Raises `AddressRefusedError` and `FetchFailedError`."""
        addresses = addresses_of(host, self._resolve, seconds)
        for address in addresses:
            if any(address in network for network in self._allowed):
                continue
            what = why_refused(address)
            if what is not None:  # which address it is stays here: it would map the inner network for an outsider
                raise AddressRefusedError(
                    f"{host} leads to {what}, where this server sends no requests.",
                    "Name a public address, or ask the operator to allow that network.",
                )
        return addresses


class _Limits:
    """How long one call may take, in all and in silence, and whether it is still wanted."""

    def __init__(self, seconds: float, idle_seconds: float, cancelled: Callable[[], bool] | None = None) -> None:
        self._deadline = time.monotonic() + seconds
        self._idle_seconds = idle_seconds
        self._cancelled = cancelled

    def left(self, since: float | None = None) -> float:
        """Seconds that a step may take that began at `since`. Raises when they are up, or the caller has cancelled."""
        if self._cancelled is not None and self._cancelled():
            raise CancelledError("The download was cancelled.", "Start it again when you want it.")
        now = time.monotonic()
        left = min(self._deadline, (now if since is None else since) + self._idle_seconds) - now
        if left <= 0:
            raise httpcore2.TimeoutException
        return left


class _Backend(httpcore2.NetworkBackend):
    """Opens the connection of one call: to an address that was judged, and to no other."""

    def __init__(self, addresses: Callable[[str, float], list[Address]], limits: _Limits) -> None:
        self._addresses = addresses
        self._limits = limits

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        trouble: Exception | None = None
        for address in self._addresses(host, self._limits.left()):
            seconds = min(self._limits.left(), CONNECT_SECONDS)
            try:
                stream = httpcore2.SyncBackend().connect_tcp(str(address), port, seconds, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                trouble = error
            else:
                return _Stream(stream, self._limits)
        assert trouble is not None  # there is at least one address
        raise trouble


class _Stream(httpcore2.NetworkStream):
    """A connection on which each step ends within the limits of the call, so that a trickle of bytes does too."""

    def __init__(self, stream: httpcore2.NetworkStream, limits: _Limits) -> None:
        self._stream = stream
        self._limits = limits

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        since = time.monotonic()
        while True:
            with suppress(httpcore2.ReadTimeout):
                return self._stream.read(max_bytes, min(self._limits.left(since), _TICK_SECONDS))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # The time given holds for one send: pieces that fit into the socket's buffer keep it at one.
        for start in range(0, len(buffer), 16_384):
            self._stream.write(buffer[start : start + 16_384], self._limits.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._limits.left()), self._limits)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _parsed(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """A URL that may be asked, seen from `base`; one parser for the check and the request, so that both see one host.

    What does not parse is not repeated: it may hold a password.
    """
    hint = "Write it such as https://example.com/path."
    try:
        url = httpx2.URL(text) if base is None else base.join(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise AddressRefusedError("The address is no URL.", hint) from error
    if url.scheme not in ("http", "https"):
        raise AddressRefusedError(f"The address begins with {url.scheme[:20]!r}, not with http or https.", hint)
    if url.userinfo:
        raise AddressRefusedError(f"The address at {url.host} holds a user or a password.", "Leave them out.")
    # One dot at the end makes a name absolute; servers and certificates know it without.
    host = url.raw_host.decode("ascii").removesuffix(".")
    if not _HOST.fullmatch(host):
        raise AddressRefusedError("The address names no host that can be asked.", hint)
    if url.port is not None and not 0 < url.port < 65_536:
        raise AddressRefusedError(f"The address at {url.host} has the port {url.port}.", "Ports go from 1 to 65535.")
    return url.copy_with(host=host)


def _acceptable(host: str, status: int, headers: Mapping[str, str], max_bytes: int) -> int | None:
    """The size of the file that an answer brings, in bytes, where it says it. Raises where it brings none."""
    if status in (408, 425, 429) or status >= 500:
        raise FetchFailedError(f"{host} answers with the status {status}.", "Try again later.")
    if status != 200:
        raise FetchRefusedError(
            f"{host} answers with the status {status}.", "Check that the address opens without signing in."
        )
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchRefusedError(f"{host} sends the file packed ({encoding[:20]}).", "Upload the file instead.")
    total = headers.get("content-length", "")
    if not total.isdecimal():
        return None
    if int(total) > max_bytes:
        raise _too_large(host, max_bytes)
    return int(total)


def _too_large(host: str, max_bytes: int) -> UploadTooLargeError:
    return UploadTooLargeError(f"The file at {host} has more than {max_bytes:,} bytes.", "Name a smaller file.")


def _failed(host: str, error: Exception) -> FetchFailedError | FetchRefusedError:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return FetchRefusedError(
            f"The certificate of {host} is not valid: {getattr(cause, 'verify_message', cause)}.",
            "Ask whoever runs that server to mend it.",
        )
    if isinstance(error, httpcore2.TimeoutException):
        return FetchFailedError(f"{host} takes too long.", "Try again later.")
    what = "cannot be reached" if isinstance(error, httpcore2.ConnectError) else "broke off"
    return FetchFailedError(f"{host} {what}: {str(error).rstrip('.')}.", "Try again later.")


def _headers(answer: httpcore2.Response) -> dict[str, str]:
    """Headers by names in lower case; where one is repeated, the last. Names of files come as raw UTF-8 at times."""
    found = {}
    for name, value in answer.headers:
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        found[name.decode("ascii").lower()] = text
    return found


def _file_name(disposition: str, path: str) -> str:
    """The name of a file by its Content-Disposition (RFC 6266: `filename*` wins), or by the path of its address."""
    parameters = {name.lower(): value.strip() for name, value in _PARAMETER.findall(disposition[:4096])}
    extended = parameters.get("filename*", "").strip('"').split("'", 2)
    names = [re.sub(r"\\(.)", r"\1", parameters.get("filename", "").removeprefix('"').removesuffix('"')), path]
    if len(extended) == 3 and extended[0].lower() in ("utf-8", "iso-8859-1"):  # all that RFC 8187 knows
        names.insert(0, unquote(extended[2], extended[0]))
    for name in names:
        last = re.split(r"[/\\]", name)[-1]
        if clean := "".join(letter for letter in last if letter.isprintable()).strip(" .")[-200:]:
            return clean
    return "download"
