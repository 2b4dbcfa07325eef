"""From a request to a job, for every family of endpoints that takes recordings in.

    key = idempotency_key(request)
    with in_flight(service, owner, key):
        async with receiving(request, service) as received:       the file streams in, or the address is checked
            parameters = await check(service, read(received.fields))    nothing is kept until all is right
            job, new = await submit(service, Submission(owner, received.recording, parameters, ...))

The steps stand alone, for families with field names of their own (`/v1`), with files that came in pieces (`uploads`) or
with options in the query (earlier services). Whatever goes wrong, no file stays behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from stenograf.api.file_threads import run_with_files
from stenograf.api.forms import IDLE_TIMEOUT_SECONDS, FilePart, read_form, safe_name
from stenograf.api.parameters import MAX_ADDRESS_CHARACTERS, Parameters, invalid
from stenograf.api.service import Service
from stenograf.errors import (
    BadRequestError,
    DatabaseError,
    FileEmptyError,
    LanguageUnknownError,
    ModelNotInstalledError,
    RequestInFlightError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    UploadTooLargeError,
)
from stenograf.jobs.files import Incoming
from stenograf.jobs.job import SHORT_SECONDS, SYNC_PRIORITY, Job, Lane, Need, NewJob, guess_lane
from stenograf.models import catalog
from stenograf.models.catalog import CatalogEntry
from stenograf.models.choice import AUTO, is_auto

MAX_JSON_BYTES = 256 * 1024
"""Of a request that names its recording by an address: room for the longest prompt in any spelling."""

NO_FILE = "There is no file in the request."

_LOOK_UPS = CapacityLimiter(20)
"""So many names are being resolved at once; those who send more of them wait in line."""

MAX_KEY_CHARACTERS = 255
"""Of an Idempotency-Key; as wide as its column."""


@dataclass(slots=True)
class Recording:
    """What is to be transcribed: a file on its way in, a file in its place, or an address."""

    filename: str
    """Safe to show and to store."""
    incoming: Incoming | None = None
    """Received and whole, not yet in its place."""
    file: str | None = None
    """In its place already: its name in the `FileStore`."""
    url: str | None = None
    size: int = 0
    """Bytes; 0 where only the address is known."""
    digest: str | None = None
    """SHA-256 in hexadecimal; None where only the address is known."""
    handed_over: bool = False
    """Whether `submit` answers for the file now."""


@dataclass(slots=True)
class Received:
    """A request that was read to its end."""

    recording: Recording
    fields: list[tuple[str, Any]] = field(default_factory=list)
    """Names and values of all else: text from a form, any JSON type from JSON."""
    content_type: str = "application/octet-stream"
    """Of the file, as the client says."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Options that this service can do now."""

    parameters: Parameters
    """With the model by its own name, where one was given."""
    model: str
    """The model that will read it: the one that was asked for, or the service's default."""


@dataclass(frozen=True, slots=True)
class Submission:
    """All that a job is made of."""

    owner: str
    recording: Recording
    checked: Checked
    sync: bool = False
    """Whether a client waits with an open connection; then the job goes before all others."""
    idempotency_key: str | None = None
    request_id: str | None = None

    @property
    def fingerprint(self) -> str:
        """What `fingerprint` gives for it."""
        return fingerprint(self.recording, self.checked)


@asynccontextmanager
async def receiving(
    request: Request, service: Service, *, file_fields: tuple[str, ...] = ("file",), by_url: bool = False
) -> AsyncIterator[Received]:
    """Read a form with a recording in one of `file_fields`, or with `by_url` also JSON that has its address in `url`.

    At the end the file is removed, unless `submit` has taken it over. Raises what `read_form` raises,
    `FileEmptyError`, `UnsupportedMediaTypeError` for a suffix that the settings do not allow, `BadRequestError`,
    `OptionInvalidError`, `AddressRefusedError`.
    """
    incoming: Incoming | None = None
    recording: Recording | None = None

    def open_file(part: FilePart) -> Incoming:
        nonlocal incoming
        check_suffix(service, part.filename)
        incoming = service.files.create()
        return incoming

    try:
        if by_url and _media_type(request) == "application/json":
            received = await _received_json(request, service)
        else:
            form = await read_form(request, open_file, file_fields=file_fields, max_file_bytes=service.files.max_bytes)
            if form.file is None or incoming is None:
                hint = f"Send it in the field {' or '.join(file_fields)} of the form"
                raise BadRequestError(NO_FILE, f"{hint}, with a file name.")
            if incoming.size == 0:
                raise FileEmptyError(f"{form.file.filename} has no bytes.", "Record it or copy it again.")
            recording = Recording(form.file.filename, incoming=incoming, size=incoming.size, digest=incoming.digest)
            received = Received(recording, list(form.fields), form.file.content_type)
        yield received
    finally:
        if incoming is not None and not (recording is not None and recording.handed_over):
            incoming.abort()


def check_suffix(service: Service, filename: str) -> None:
    """Raises `UnsupportedMediaTypeError` where the settings do not allow files that are named so."""
    allowed = service.settings.allowed_extensions
    if allowed and PurePath(filename).suffix.lower() not in allowed:
        raise UnsupportedMediaTypeError(
            f"{filename} is none of the files that this service takes.", f"It takes {', '.join(allowed)}."
        )


async def check(service: Service, parameters: Parameters) -> Checked:
    """Hold the options against the models and the network: may they be done here?

    Raises `ModelUnknownError`, `ModelNotInstalledError`, `ModelDamagedError`, `ModelTooLargeError`,
    `LanguageUnknownError`, `OptionInvalidError`, `AddressRefusedError`.
    """
    checked = await run_in_threadpool(_check, service, parameters)
    if parameters.webhook_url is not None:
        await _look_up(service, parameters.webhook_url)
    return checked


async def submit(service: Service, submission: Submission) -> tuple[Job, bool]:
    """Put the file in its place and the job into the database; returns it, and whether it is new.

    Once this returns, the job is durable. Where the idempotency key stands for a job already, that one is returned
    and the new file removed. Raises `IdempotencyError`, `QueueFullError`, `DatabaseError`, `DiskFullError`; then a
    file that was in its place before stays there.
    """
    # All in one thread: a request that is broken off between two steps would leave a half of it behind.
    return await run_with_files(_submit, service, submission)


def fingerprint(recording: Recording, checked: Checked) -> str:
    """SHA-256 over the recording and what is asked of it: two requests that share it want the same."""
    parameters = checked.parameters
    what = {
        "digest": recording.digest,
        "url": recording.url,
        "model": checked.model,
        "options": {name: value for name, value in parameters.options.items() if name != "model"},
        "priority": parameters.priority,
        "retention": parameters.retention,
        "webhook": [parameters.webhook_url, parameters.webhook_secret],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def idempotency_key(request: Request) -> str | None:
    """The header Idempotency-Key, with or without quotes; raises `BadRequestError` for one that is none."""
    sent = request.headers.get("idempotency-key")
    if sent is None:
        return None
    key = sent.strip()
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    if not re.fullmatch(rf"[\x20-\x7e]{{1,{MAX_KEY_CHARACTERS}}}", key):
        raise BadRequestError(
            "The Idempotency-Key is empty, too long or holds odd characters.",
            f"Take 1 to {MAX_KEY_CHARACTERS} letters of ASCII, such as a UUID.",
        )
    return key


@contextmanager
def in_flight(service: Service, owner: str, key: str | None) -> Iterator[None]:
    """While one request with this idempotency key is received, another one raises `RequestInFlightError`."""
    if key is None:
        yield
        return
    mark = (owner, key)
    if mark in service.in_flight:
        raise RequestInFlightError(
            f"A request with the Idempotency-Key {key!r} is being received just now.", "Wait for its answer."
        )
    service.in_flight.add(mark)
    try:
        yield
    finally:
        service.in_flight.discard(mark)


def request_id(request: Request) -> str | None:
    """The id of the request, for the logs."""
    return getattr(request.state, "request_id", None)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _received_json(request: Request, service: Service) -> Received:
    body = await _body(request)
    try:
        values = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body of the request is no JSON ({error}).", "Check it with a parser.") from error
    if not isinstance(values, dict):
        raise BadRequestError("The JSON of the request is no object.", 'Send {"url": "https://..."} and the options.')
    url = values.pop("url", None)
    if not isinstance(url, str) or not 0 < len(url) <= MAX_ADDRESS_CHARACTERS:
        raise invalid(
            "url",
            "The JSON names no address of a recording.",
            'Send {"url": "https://..."}, or the file itself in a form.',
        )
    await _look_up(service, url)
    return Received(Recording(_name_in(url), url=url), list(values.items()))


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(IDLE_TIMEOUT_SECONDS):
            async for data in request.stream():
                body += data
                if len(body) > MAX_JSON_BYTES:
                    raise UploadTooLargeError(f"The JSON has more than {MAX_JSON_BYTES} bytes.", "Send less text.")
    except TimeoutError:
        raise RequestTimeoutError("The JSON did not come to its end.", "Send it again.") from None
    return bytes(body)


async def _look_up(service: Service, url: str) -> None:
    # Names that resolve slowly must not take the threads that everything else runs in.
    await to_thread.run_sync(service.outbound.check, url, limiter=_LOOK_UPS)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _name_in(url: str) -> str:
    """What a recording is called, by the end of its address."""
    return safe_name(unquote(urlsplit(url).path))


def _check(service: Service, parameters: Parameters) -> Checked:
    options = dict(parameters.options)
    asked: str | None = options.get("model")
    if is_auto(asked or service.settings.default_model):
        if service.settings.transcribes:  # else the worker chooses from what its own machine has
            _can_choose(service, options)
        name = AUTO
    else:
        name, entry = _model(service, asked)
        if entry is not None:
            _suits(entry, options, service.settings.default_language)
    if asked is not None:
        options["model"] = name
    return Checked(replace(parameters, options=options), name)


def _model(service: Service, asked: str | None) -> tuple[str, CatalogEntry | None]:
    """The model by its own name, and what the catalog knows of it; only the operator may name one by its path."""
    name = asked or service.settings.default_model
    try:
        files = service.models.resolve(name, allow_path=asked is None)
    except ModelNotInstalledError:
        entry = catalog.find(name)
        if entry is not None and not service.settings.transcribes:
            return entry.name, entry  # the workers of other machines have it, or download it
        if entry is not None and not service.settings.offline:
            service.reader.available.check_size(entry.name, service.reader.available.expected(entry))
            return entry.name, entry  # the worker downloads it
        raise ModelNotInstalledError(
            f"The model {entry.name if entry else name} is not on this server, which downloads nothing.",
            "GET /api/v1/models lists those that are.",
        ) from None
    if service.settings.transcribes:
        service.reader.available.check_size(files.name, service.reader.available.size(files))
    return files.name, files.entry


def _can_choose(service: Service, options: Mapping[str, Any]) -> None:
    """Raises `ModelNotInstalledError` where no model could be chosen; a language that is not known may be any."""
    language, task = options.get("language", service.settings.default_language), options.get("task", "transcribe")
    if language in (None, "auto") and task == "transcribe":
        with suppress(ModelNotInstalledError):
            service.reader.available.choose(None)
            return
        language = "ru"  # what is here may read one language only
    service.reader.available.choose(
        None if language == "auto" else language, "translate" if task == "translate" else "read"
    )


def _suits(entry: CatalogEntry, options: dict[str, Any], default: str | None) -> None:
    language = options.get("language", default or "auto")
    if language != "auto" and language not in entry.languages:
        shown = ", ".join(entry.languages[:30])
        raise LanguageUnknownError(f"The model {entry.name} does not read {language!r}.", f"It reads {shown}.")
    if options.get("task", "transcribe") not in entry.tasks:
        raise invalid("task", f"The model {entry.name} cannot translate.", "large-v3 can.")


def lane_of(service: Service, recording: Recording, options: Mapping[str, Any]) -> Lane:
    """The lane that a recording goes to, as far as it can be told before it is opened."""
    trim = options.get("trim", service.settings.default_trim)
    if trim and trim <= SHORT_SECONDS:
        return "short"
    return guess_lane(recording.filename, recording.size)


def need_of(service: Service, model: str) -> Need:
    """What a recording that is read with this model needs of a worker's machine."""
    return "gpu" if model in service.gpu_models else "cpu"


def _submit(service: Service, submission: Submission) -> tuple[Job, bool]:
    recording, parameters = submission.recording, submission.checked.parameters
    recording.handed_over = True
    file = recording.file
    if recording.incoming is not None:
        try:
            file = recording.incoming.commit()
        except BaseException:
            recording.incoming.abort()
            raise
    new = NewJob(
        owner=submission.owner,
        options=parameters.options,
        filename=recording.filename,
        file=file,
        size=recording.size,
        digest=recording.digest,
        url=recording.url,
        lane=lane_of(service, recording, parameters.options),
        need=need_of(service, submission.checked.model),
        priority=SYNC_PRIORITY if submission.sync else parameters.priority,
        sync=submission.sync,
        retention=parameters.retention,
        webhook_url=parameters.webhook_url,
        webhook_secret=parameters.webhook_secret,
        request_id=submission.request_id,
        idempotency_key=submission.idempotency_key,
        fingerprint=submission.fingerprint,
    )
    try:
        job, is_new = service.store.add(new)
    except DatabaseError:
        raise  # it may be written all the same: if not, the sweep finds that nobody names the file
    except BaseException:
        if recording.incoming is not None:
            recording.incoming.abort()
        raise
    if is_new:
        service.wake()
    else:
        service.files.remove(file)
    return job, is_new
