"""What the command line shows while it works: bars on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from stenograf.errors import DiskFullError, OutputError, StenografError
from stenograf.models import PullProgress
from stenograf.transcriber import Progress as TranscriptionProgress
from stenograf.transcript import Transcript

PLAIN_STEP = 0.1
"""Where there is no terminal: a line for each tenth of a recording,"""

WIDE = 1000
"""Columns of a table where there is no terminal: wider than any row."""

PLAIN_SECONDS = 10.0
"""and not more often than this."""


OF_THE_MODEL = frozenset({"second_best", "device_fallback", "option_ignored"})
"""Codes of warnings that tell of the model and not of the recording."""


class Reporter:
    """Tells a person how the work goes; `quiet` leaves errors only, `verbose` adds the segments as they come."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._said: set[str] = set()

    @property
    def live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self.console.is_terminal and not self.quiet

    def say(self, message: str, style: str = "") -> None:
        """A line for the person, unless they want quiet."""
        if not self.quiet:
            self.console.print(Text(message, style))

    def fail(self, error: StenografError, position: str = "") -> None:
        """What went wrong with one file."""
        self.console.print(Text("✗ ", "red") + Text(position + error.message))
        if error.hint:
            self.console.print(Text(f"  {error.hint}", "yellow"))
        if self.verbose:
            self.console.print(Text(traceback.format_exc(), "dim"))

    def finished(self, name: str, transcript: Transcript, written: str) -> None:
        """One recording is done."""
        seconds = transcript.timings["total"]
        speed = f", {transcript.duration / seconds:.1f}x" if seconds > 0 else ""
        spoken = transcript.language or "no speech"
        self.say(f"✓ {name}: {spoken}, {clock(transcript.duration)} in {seconds:.1f} s{speed}{written}")
        for warning in transcript.warnings:
            if warning.code in OF_THE_MODEL:  # said once, not for each of two hundred recordings
                if warning.message in self._said:
                    continue
                self._said.add(warning.message)
            self.say(f"  ! {warning.message}", "yellow")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something takes its time."""
        with self.console.status(what) if self.live else contextlib.nullcontext():
            yield

    @contextmanager
    def transcribing(self, name: str, position: str) -> Iterator[_Shown]:
        """Show one recording's progress, by audio time, with speed and time left."""
        shown = _Bar(self, f"{position}{name}") if self.live else _Lines(self, f"{position}{name}")
        try:
            yield shown
        finally:
            shown.close()

    @contextmanager
    def pulling(self, name: str) -> Iterator[_Download]:
        """Show a download."""
        download = _Download(self, name)
        try:
            yield download
        finally:
            download.close()


class _Shown(ABC):
    """How a recording's progress is shown; `update` is what the transcriber calls."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._started = time.monotonic()

    def update(self, progress: TranscriptionProgress) -> None:
        if self._reporter.verbose:
            for segment in progress.segments:
                self._reporter.say(f"  [{clock(segment.start)} - {clock(segment.end)}] {segment.text}", "dim")
        self._show(progress)

    def close(self) -> None:  # noqa: B027 - lines leave nothing behind that wants closing
        """The recording is done, or failed."""

    @abstractmethod
    def _show(self, progress: TranscriptionProgress) -> None: ...

    def _pace(self, progress: TranscriptionProgress) -> str:
        """Audio time, speed, and time left."""
        spent = time.monotonic() - self._started
        speed = progress.position / spent if spent > 0 else 0.0
        if progress.duration is None:
            return f"{clock(progress.position)}, {speed:.1f}x"
        left = max(progress.duration - progress.position, 0) / speed if speed else 0
        return f"{clock(progress.position)} of {clock(progress.duration)}, {speed:.1f}x, {clock(left)} left"


class _Bar(_Shown):
    def __init__(self, reporter: Reporter, name: str) -> None:
        super().__init__(reporter, name)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[pace]}", markup=False),
            console=reporter.console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(_short(name), total=None, pace="")

    def _show(self, progress: TranscriptionProgress) -> None:
        self._progress.update(
            self._task, total=progress.duration, completed=progress.position, pace=self._pace(progress)
        )

    def close(self) -> None:
        self._progress.stop()


class _Lines(_Shown):
    def __init__(self, reporter: Reporter, name: str) -> None:
        super().__init__(reporter, name)
        self._told_at = self._started
        self._told = 0.0

    def _show(self, progress: TranscriptionProgress) -> None:
        now = time.monotonic()
        fraction = progress.fraction
        if now - self._told_at < PLAIN_SECONDS or (fraction is not None and fraction < self._told + PLAIN_STEP):
            return
        self._told_at, self._told = now, fraction or 0.0
        percent = "" if fraction is None else f"{fraction:.0%}, "
        self._reporter.say(f"  {self._name}: {percent}{self._pace(progress)}")


class _Download:
    """A download's progress; nothing is shown unless there is one."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._told = ("", 0)
        self._progress: Progress | None = None

    def update(self, progress: PullProgress) -> None:
        what = {
            "waiting": f"Waiting for another download of {self._name}",
            "verifying": f"Verifying {self._name}",
            "downloading": f"Downloading {self._name}",
        }[progress.phase]
        if self._reporter.live:
            bar = self._bar()
            bar.update(bar.task_ids[0], description=what, total=progress.total or None, completed=progress.done)
            return
        tenth = 10 * progress.done // progress.total if progress.total else 0
        if (what, tenth) != self._told:
            self._told = (what, tenth)
            amount = f": {size(progress.done)} of {size(progress.total)}" if progress.total else ""
            self._reporter.say(f"  {what}{amount}")

    def _bar(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._reporter.console,
                transient=True,
            )
            self._progress.add_task(f"Downloading {self._name}", total=None)
            self._progress.start()
        return self._progress

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def discard_output() -> None:
    """From now on what goes to stdout goes nowhere; else the interpreter would stumble over the rest at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def printing() -> Iterator[None]:
    """Turn what the system says about standard output into our errors; a reader that went away is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        kind = DiskFullError if error.errno == errno.ENOSPC else OutputError
        raise kind(f"The text cannot be printed: {error.strerror}.", "Give --output to write files.") from error


def new_table(*titles: str, right: tuple[str, ...] = ()) -> Table:
    """A table whose first column is never cut: it is what one copies."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(titles):
        justify: JustifyMethod = "right" if title in right else "left"
        table.add_column(title, justify=justify, no_wrap=number == 0, overflow="fold")
    return table


def table_width() -> int:
    """The columns that a table has: those of the terminal; a file or a program gets a line for each row."""
    console = Console()
    return console.width if console.is_terminal else WIDE


def print_table(table: Table) -> None:
    """On stdout."""
    Console(highlight=False, width=table_width()).print(table)


def printable(name: str) -> str:
    """A name as it may be shown: line breaks and control characters in it are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def clock(seconds: float) -> str:
    """`3:25` or `1:03:25`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def size(count: float) -> str:
    """`145 MB`, `1.6 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _short(name: str, width: int = 40) -> str:
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-width // 2 :]}"
