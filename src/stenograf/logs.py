"""Logging of the service and of its worker processes: one line a record, as text or as JSON, without secrets.

`setup` is called once in each process, before anything logs. uvicorn must then be run with `log_config=None` and
without a `log_level`, so that it leaves the loggers alone: its lines, access log included, go the same way as all
others.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any

from filelock import FileLock

from stenograf.errors import SettingInvalidError

FILE_BYTES = 10_000_000
"""The log file is put aside before a line would make it longer than this."""

OLD_FILES = 5
"""How many files that were put aside are kept, `name.1` the newest."""

MASK = "***"
"""What stands in a line for a secret."""

NOISY = (
    "alembic",
    "asyncio",
    "faster_whisper",
    "filelock",  # must stay quiet: it would log in the middle of writing a line of the log
    "httpcore2",
    "httpx2",
    "huggingface_hub",
    "multipart",
    "python_multipart",
    "urllib3",
)
"""Libraries of which only warnings are logged, whatever the level."""

UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the HTTP request that is being answered; None outside of one. Set it with `bind`."""

task_id: ContextVar[str | None] = ContextVar("task_id", default=None)
"""The id of the task that is being worked on; None outside of one. Set it with `bind`."""

_CONTEXT = (request_id, task_id)


def setup(*, level: str, json: bool, file: Path | None = None, process: str = "api") -> None:
    """Send all that is logged in this process to stdout, and to `file` as well where one is given.

    `level` is debug, info, warning or error; it holds for libraries too. `json` chooses JSON lines over text. `file` is
    put aside at `FILE_BYTES`; other processes of this machine may write it at the same time through this function, if
    it is on a local disk. `process` names this process in each line, such as `api` or `worker-1`. May be called again:
    what it set up before is replaced, handlers of others stay.

    Raises `SettingInvalidError` where `file` cannot be written.
    """
    formatter = JsonFormatter(process) if json else TextFormatter(process)
    handlers = [StdoutHandler(), *([SharedFileHandler(file)] if file is not None else [])]
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, LineHandler)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        # A library's logger with a level of its own passes the root's by; it does not pass the handler's.
        handler.setLevel(level.upper())
        handler.addFilter(_add_context)
        root.addHandler(handler)
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in UVICORN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@contextmanager
def bind(*, request_id: str | None = None, task_id: str | None = None) -> Iterator[None]:
    """Put the ids on every record that is logged inside; None leaves an id as it is.

    They follow `await` and Starlette's thread pool; a thread of our own starts without them.
    """
    before = [(variable, variable.get()) for variable in _CONTEXT]
    for variable, value in zip(_CONTEXT, (request_id, task_id), strict=True):
        if value is not None:
            variable.set(value)
    try:
        yield
    finally:
        # By value, not by token: a generator may be closed in another context than the one that it was opened in.
        for variable, value in before:
            variable.set(value)


def new_request_id() -> str:
    """A fresh id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def valid_request_id(text: str | None) -> str:
    """`text`, the value of an incoming `X-Request-ID`, if it may be used as an id; otherwise a new one.

    It may be used if it is 1 to 128 characters of printable ASCII without a space at either end.
    """
    return text if text is not None and _REQUEST_ID.fullmatch(text) else new_request_id()


_REQUEST_ID = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")

# What secrets look like. Every repetition is bounded, or eats what it has read, so that no text makes them slow.
_SECRET = r"(?:[\w-]{0,40}[_-])?(?:authorization|token|api[_-]?key|secret|password|passwd|signature)"  # noqa: S105
_SECRET_NAME = re.compile(_SECRET, re.I)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # "name": "value", 'name': 'value' and (b'name', b'value'), also where the quotes are escaped
    (
        re.compile(
            rf"""(["']{_SECRET}\\*["']\s{{0,8}}[:,]\s{{0,8}}b?)(\\*["'])(?:(?!\2)(?:\\.|[^\\]))*""", re.I | re.S
        ),
        rf"\1\2{MASK}",
    ),
    # a header; its value may hold spaces and commas, so it goes up to the end of the line or a quote
    (re.compile(r"""((?:authorization|x-api-key)[ \t]{0,8}[:=][ \t]{0,8}["']?)[^'"\\\r\n]+""", re.I), rf"\1{MASK}"),
    (re.compile(rf'([?&](?:{_SECRET}|key)=)[^\s&#"]*', re.I), rf"\1{MASK}"),
    # name=value in running text, as in a connection string
    (re.compile(rf"""(?<![\w?&-])({_SECRET}\s?=\s?)(?:"[^"]*"|'[^']*'|\S+)""", re.I), rf"\1{MASK}"),
    # scheme://user:password@host, up to the last @; what looks like a port is none
    (
        re.compile(
            r"""([a-z][a-z0-9+.-]{0,30}://[^\s/?#@:"]{0,256}:)(?!\d{1,5}(?:[/?#]|$))(?:[^\s@"]{1,256}@)+""",
            re.I,
        ),
        rf"\1{MASK}@",
    ),
    # Our keys begin stg_; others' sk_ or sk-, which must not be the end of "task_" but may follow %3D or \n.
    (
        re.compile(
            r"(stg_|(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))sk[_-])[A-Za-z0-9_-]{20,}",
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(whsec_)[A-Za-z0-9+/=_-]+"), rf"\1{MASK}"),
)
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{4,}((?:\.[A-Za-z0-9_-]*){2,4})?")


def redact(text: str) -> str:
    """`text` with `MASK` for what looks like a secret.

    That is: values of the headers Authorization and X-API-Key; values named password, token, secret, signature or API
    key, in a query, in JSON or as `name=value`; API keys; JSON Web Tokens; secrets of webhooks; passwords in URLs.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    # A run without the two dots is matched as well and put back: otherwise each eyJ in it would be a start of its own.
    return _JWT.sub(lambda found: MASK if found[1] else found[0], text)


def _plain(value: object, depth: int = 0) -> Any:
    """`value` as something that JSON can say, its texts redacted."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if depth < 8:  # something that holds itself ends here
        if isinstance(value, Mapping):
            return {redact(_text(key)): _named(_text(key), item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
            return [_plain(value[0]), _named(_text(value[0]), value[1], depth + 1)]  # a header, as ASGI has them
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1) for item in value]
    return redact(str(value))


def _named(name: str, value: object, depth: int = 0) -> Any:
    return MASK if value is not None and _SECRET_NAME.fullmatch(name) else _plain(value, depth)


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)


# Control characters, line ends of Unicode, and marks that turn the direction of writing around.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _add_context(record: logging.LogRecord) -> bool:
    for variable in _CONTEXT:
        if getattr(record, variable.name, None) is None:  # an id given as `extra` is nearer
            setattr(record, variable.name, variable.get())
    return True


class _Formatter(logging.Formatter):
    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {
        *("message", "asctime", "taskName", "request_id", "task_id"),
        *("color_message", "websocket"),  # uvicorn's and websockets' own
    }

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return redact(record.getMessage())
        except Exception:
            # A wrong call is no reason to lose the line, nor to let logging print its arguments as they are.
            return redact(f"{record.msg} (the arguments do not fit: {record.args!r})")

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        ids = {name: _plain(getattr(record, name, None)) for name in ("request_id", "task_id")}
        extras = {name: _named(name, value) for name, value in vars(record).items() if name not in self._OWN}
        return {"process": self.process, **ids, **extras}

    def _exception(self, record: logging.LogRecord) -> str:
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return redact("\n".join(parts))


class TextFormatter(_Formatter):
    """For people: local time, level, logger, message, then `key=value`; a traceback follows, indented.

    What came from outside cannot start a line of its own, nor steer a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(" ", "milliseconds")
        fields = (f"{name}={_shown(value)}" for name, value in self._fields(record).items() if value is not None)
        line = _escape(" ".join((when, f"{record.levelname:<7}", record.name, self._message(record), *fields)))
        return "\n    ".join((line, *map(_escape, self._exception(record).splitlines())))


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value if re.fullmatch(r"[^\s\"=]+", value) else dumps(value, ensure_ascii=False)
    return dumps(value, ensure_ascii=False)


class JsonFormatter(_Formatter):
    """For machines: one JSON object a line, in UTC.

    It has `ts`, `level`, `logger`, `message`, `process`, `request_id`, `task_id` (null where there is none), each
    `extra` under its own name, and `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        own = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": self._message(record),
        }
        exception = self._exception(record)
        values = self._fields(record) | own | ({"exception": exception} if exception else {})
        line = dumps({name: values[name] for name in dict.fromkeys((*own, *values))}, ensure_ascii=False)
        # dumps leaves some characters alone at which other programs break a line
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


class LineHandler(logging.Handler):
    """Writes each record with one call of the system, so that lines of several processes do not mix."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # A lone surrogate, as in a file name that is no UTF-8, becomes the escape that JSON has for it.
            self.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def write(self, line: bytes) -> None:
        """Write a line that is complete with its end."""
        raise NotImplementedError


class StdoutHandler(LineHandler):
    """To what is stdout at that moment."""

    def write(self, line: bytes) -> None:
        if sys.stdout is None:  # a program without a console
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(line)  # UTF-8, whatever the locale; an empty buffer lets it through in one piece
        sys.stdout.buffer.flush()


class SharedFileHandler(LineHandler):
    """A rotating file that several processes write at once.

    A line is one appending write to the file that has the name at that moment, so a process can neither tear another's
    line nor keep on writing to a file that was put aside. Only the putting aside takes a lock, and who does not get it
    writes on: a process that was stopped with the lock in its hands holds up nobody.
    """

    def __init__(self, file: Path, *, limit: int = FILE_BYTES, keep: int = OLD_FILES) -> None:
        super().__init__()
        self.file, self.limit, self.keep = file.absolute(), limit, keep
        self._turn = FileLock(f"{self.file}.lock")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as error:
            raise SettingInvalidError(
                f"The log file {file} cannot be written ({error.strerror or error}).",
                "Check the permissions of its folder, or set log_file to another path.",
            ) from error

    def write(self, line: bytes) -> None:
        # Windows has no appending write that is whole by itself: there each line takes the lock.
        with self._turn if sys.platform == "win32" else nullcontext():
            if self._is_full(line):
                self._put_aside(line)
            number = self._open()
            try:
                while line:
                    line = line[os.write(number, line) :]
            finally:
                os.close(number)

    def _open(self) -> int:
        return os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o640)

    def _is_full(self, line: bytes) -> bool:
        try:
            size = self.file.stat().st_size
        except FileNotFoundError:
            return False
        return size > 0 and size + len(line) > self.limit

    def _put_aside(self, line: bytes) -> None:
        try:
            with self._turn.acquire(timeout=0):
                if not self._is_full(line):  # another process was quicker
                    return
                for number in range(self.keep, 0, -1):
                    newer = Path(f"{self.file}.{number - 1}") if number > 1 else self.file
                    if newer.exists():
                        newer.replace(f"{self.file}.{number}")
        except OSError:
            pass  # another process is at it, or on Windows has the file open: the next line tries again
