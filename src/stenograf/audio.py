"""Any media file -> blocks of 16 kHz mono float32, never the whole file in memory.

The one place that decodes. It reads through FFmpeg's libraries (PyAV brings its own), so no `ffmpeg` program is
needed. The recording's own clock is kept: where a container says that sound starts late or has a hole, silence
stands in for it, so that a subtitle made from the result fits the video.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer

from stenograf.endings import has_its_end
from stenograf.errors import (
    AudioDamagedError,
    DiskFullError,
    FileEmptyError,
    FileForbiddenError,
    FileMissingError,
    InputError,
    NoAudioError,
    NotMediaError,
    RecordingTooLongError,
)
from stenograf.resampling import BROKEN, Resampler, is_sound
from stenograf.resampling import SAMPLE_RATE as SAMPLE_RATE
from stenograf.resampling import Samples as Samples
from stenograf.transcript import TranscriptWarning

Source = str | os.PathLike[str] | BinaryIO
"""A path, or an open binary file (seekable, if the format wants it: mp4 does)."""

BLOCK_SECONDS = 10
"""Length of a block: long enough that the VAD runs in large batches, short enough to be no memory to speak of."""

HOLE_SECONDS = 0.1
"""A jump of the recording's clock below this is jitter of the muxer; above it silence is put in."""

LONGEST_HOLE_SECONDS = 600
"""A jump above this is a broken timestamp and not a pause; it is not filled."""

MISSING_SHARE = 0.02
"""A file that ends this much (and a second) before the length that its header claims was cut off."""

MEDIA_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".asf", ".au", ".avi",
    ".awb", ".caf", ".dts", ".flac", ".flv", ".gsm", ".m2ts", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov",
    ".mp1", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".mpga", ".mts", ".oga", ".ogg", ".ogv", ".opus", ".ra",
    ".rm", ".spx", ".tta", ".voc", ".w64", ".wav", ".weba", ".webm", ".wma", ".wmv", ".wv",
})  # fmt: skip
"""What counts as a recording in a folder. A file named on its own is tried whatever its name is."""

# Formats whose length is a guess from the bit rate, so that a shorter recording is no sign of damage.
_LENGTH_IS_A_GUESS = {"mp3", "aac", "amr", "ac3", "eac3", "dts", "mpegts", "mpeg", "loas"}

# Formats whose container counts its length from zero, and not from where the recording starts.
_LENGTH_COUNTS_FROM_ZERO = {"matroska,webm", "asf"}

# Demuxers that open other files or addresses named inside the file: never for a recording that a stranger sent.
_NO_OTHER_FILES = {"protocol_whitelist": "none"}

# Titles in any encoding: PyAV takes them from version 19 on, before it that had to be asked for.
_ANY_TITLES: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}

_DAMAGE_LIMIT = 100_000


@contextmanager
def rereadable(source: Source) -> Iterator[tuple[Source, Callable[[], object]]]:
    """A recording that can be read twice, and what brings it back to its beginning: a pipe is copied to a file."""
    if isinstance(source, str | os.PathLike):
        yield source, lambda: None
    elif source.seekable():
        yield source, partial(source.seek, source.tell())
    else:
        with ExitStack() as closing:
            copy = _spool(source, "The recording", closing)
            yield copy, partial(copy.seek, 0)


class AudioReader:
    """A recording being read, block by block; a context manager.

    Raises on opening: `FileMissingError`, `FileForbiddenError`, `FileEmptyError`, `NotMediaError` (no format that
    FFmpeg knows), `NoAudioError` (a video without sound).
    """

    def __init__(
        self, source: Source, *, trim: float | None = None, name: str | None = None, longest: float | None = None
    ) -> None:
        """Open `source`; `trim` reads the first so many seconds only; `name` stands in messages.

        A recording of more than `longest` seconds is refused with `RecordingTooLongError`: on opening if it says so
        itself, else while it is read. A few kB can decode to days.
        """
        self.name = name or _display_name(source)
        self.warnings: list[TranscriptWarning] = []
        """What was found wrong while reading; complete once `blocks` has ended."""
        self._trim_samples = None if trim is None else max(1, round(trim * SAMPLE_RATE))
        self._longest = longest
        self._samples_read = 0
        self._stopped_early = False
        self._damaged = 0
        self._stumbled_at = -1
        self._closing = ExitStack()
        with ExitStack() as closing:
            self._file = self._open_file(source, closing)
            self._container = closing.enter_context(self._open_container(self._file))
            self._stream = self._audio_stream()
            self.duration, self._duration_is_sure = self._claimed_duration()
            """Seconds, as the container claims and `trim` allows; None where it says nothing (a live recording)."""
            self._expect_length(self.duration or 0.0)
            self._closing = closing.pop_all()

    @property
    def seconds_read(self) -> float:
        """Seconds of sound that `blocks` has given so far."""
        return self._samples_read / SAMPLE_RATE

    def blocks(self) -> Iterator[Samples]:
        """The sound, in blocks of at most `BLOCK_SECONDS`; to be run through once.

        What cannot be decoded is passed over and noted in `warnings`. Raises `AudioDamagedError` where nothing at
        all could be decoded.
        """
        block = np.empty(BLOCK_SECONDS * SAMPLE_RATE, np.float32)
        filled = 0
        for piece in self._trimmed(self._pieces()):
            taken = 0
            while taken < len(piece):
                count = min(len(piece) - taken, len(block) - filled)
                block[filled : filled + count] = piece[taken : taken + count]
                filled += count
                taken += count
                if filled == len(block):
                    self._samples_read += filled
                    self._expect_length(self.seconds_read)
                    yield block
                    block = np.empty_like(block)  # the consumer may keep the one it got
                    filled = 0
        if filled:
            self._samples_read += filled
            yield block[:filled]
        if not self._samples_read:
            raise AudioDamagedError(
                f"{self.name} holds no sound that can be decoded.",
                "Check that it plays; if it was copied or sent, do that again.",
            )
        self._note_missing_end()

    def close(self) -> None:
        """Close the file; what was passed in open stays open."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Opening

    def _open_file(self, source: Source, closing: ExitStack) -> BinaryIO:
        # A path is opened here and never by FFmpeg, which would take a name such as `http:x` for a protocol.
        file = source if not isinstance(source, str | os.PathLike) else closing.enter_context(self._open_path(source))
        if not file.seekable():
            file = _spool(file, self.name, closing)
        position = file.tell()
        if file.seek(0, os.SEEK_END) == 0:
            raise FileEmptyError(f"{self.name} is empty (0 bytes).", "Copy or record it again.")
        file.seek(position)
        return file

    def _open_path(self, path: str | os.PathLike[str]) -> BinaryIO:
        try:
            return Path(path).open("rb")
        except FileNotFoundError:
            raise missing(self.name) from None
        except IsADirectoryError:
            raise InputError(f"{self.name} is a folder.", "Name a file, or give the folder with --dir.") from None
        except PermissionError:
            raise FileForbiddenError(
                f"{self.name} may not be read by this user.", "Change its permissions or run as its owner."
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{self.name} cannot be opened: {reason}.", "Check the path.") from error

    def _open_container(self, file: BinaryIO) -> InputContainer:
        try:
            container: InputContainer = av.open(file, mode="r", options=dict(_NO_OTHER_FILES), **_ANY_TITLES)
        except BROKEN as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise NotMediaError(
                f"{self.name} cannot be read as audio or video ({reason}).",
                "Check that it is a recording and plays; if it was cut off on its way, copy it again.",
            ) from error
        return container

    def _audio_stream(self) -> av.AudioStream:
        stream = self._container.streams.best("audio")
        if stream is not None:
            return cast(av.AudioStream, stream)
        if any(s.type == "video" for s in self._container.streams):
            raise NoAudioError(f"{self.name} has pictures but no sound.", "Choose a file with an audio track.")
        raise NotMediaError(f"{self.name} holds no audio.", "Choose an audio file, or a video with sound.")

    def _claimed_duration(self) -> tuple[float | None, bool]:
        """Seconds of sound, and whether the file is surely damaged if there is less."""
        stream, container = self._stream, self._container
        start = (container.start_time or 0) / av.time_base
        seconds, is_sure = None, False
        if stream.duration is not None and stream.time_base is not None:
            late = max(float((stream.start_time or 0) * stream.time_base) - start, 0)
            seconds, is_sure = float(stream.duration * stream.time_base) + late, True
        elif container.duration is not None:
            seconds = container.duration / av.time_base
            if container.format.name in _LENGTH_COUNTS_FROM_ZERO:
                seconds -= start
            is_sure = len(container.streams) == 1  # else it may be the length of the pictures
        if seconds is None or seconds <= 0:
            return None, False
        if self._trim_samples is not None:
            seconds = min(seconds, self._trim_samples / SAMPLE_RATE)
        return seconds, is_sure and container.format.name not in _LENGTH_IS_A_GUESS

    def _expect_length(self, seconds: float) -> None:
        if self._longest and seconds > self._longest:
            raise RecordingTooLongError(
                f"{self.name} is longer than the {self._longest / 3600:.3g} hours that are taken here.",
                "Send it in parts, or with `trim` to have its start.",
            )

    # Reading

    def _trimmed(self, pieces: Iterator[Samples]) -> Iterator[Samples]:
        if self._trim_samples is None:
            yield from pieces
            return
        left = self._trim_samples
        for piece in pieces:
            if left <= 0:
                return
            yield piece[:left]
            left -= len(piece)
            self._stopped_early = left <= 0

    def _pieces(self) -> Iterator[Samples]:
        """Decoded, resampled sound as it comes, with silence where the recording's clock jumps ahead."""
        resampler: Resampler | None = None
        start = (self._container.start_time or 0) / av.time_base
        fed = 0.0  # seconds of sound given on, holes included
        for frame in self._frames():
            if not is_sound(frame):
                self._damaged += 1
                continue
            if frame.samples == 0:
                continue
            hole = 0.0 if frame.time is None else frame.time - start - fed
            if HOLE_SECONDS < hole < LONGEST_HOLE_SECONDS:
                if resampler is not None:
                    yield from resampler.rest()
                    resampler = None
                if fed and self._container.format.name == "ogg":
                    self._damaged += 1  # an Ogg stream has no holes: pages are missing
                yield from _silence(round(hole * SAMPLE_RATE))
                fed += hole
            try:
                if resampler is None or not resampler.fits(frame):  # some streams change their shape on the way
                    if resampler is not None:
                        yield from resampler.rest()
                    resampler = Resampler(frame)
                fed += frame.samples / frame.sample_rate
                yield from resampler.resample(frame)
            except BROKEN:
                self._damaged += 1
                resampler = None
        if resampler is not None:
            yield from resampler.rest()
        self._note_damage()

    def _frames(self) -> Iterator[AudioFrame]:
        """Frames as they are decoded. A packet that cannot be decoded is passed over, as the ffmpeg program does."""
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    try:
                        frames = packet.decode()
                    except BROKEN:
                        self._damaged += 1
                        continue
                    yield from frames
                return
            except av.error.EOFError:
                return
            except BROKEN:
                # The demuxer stumbled; it may find the next packet, or it stands still and never will.
                self._damaged += 1
                position = self._file.tell()
                if self._damaged > _DAMAGE_LIMIT or position == self._stumbled_at:
                    return
                self._stumbled_at = position

    def _note_damage(self) -> None:
        if self._damaged:
            places = "one place" if self._damaged == 1 else f"{self._damaged} places"
            self.warnings.append(
                TranscriptWarning(
                    "audio_damaged",
                    f"The recording is damaged in {places}; what could be decoded was read, words may be missing.",
                )
            )

    def _note_missing_end(self) -> None:
        if self._stopped_early:
            return
        read = f"{self.seconds_read:.1f} s"
        if has_its_end(self._file, self._container.format.name) is False:
            message = f"The recording has no proper end (it stops at {read}); it may have been cut off."
        elif self._duration_is_sure and self.duration is not None and self._misses(self.duration):
            message = f"The recording ends at {read} although it claims {self.duration:.1f} s; the rest is missing."
        else:
            return
        self.warnings.append(TranscriptWarning("audio_truncated", message))

    def _misses(self, claimed: float) -> bool:
        missing = claimed - self.seconds_read
        return missing > 1 and missing > claimed * MISSING_SHARE


def missing(name: str) -> FileMissingError:
    """The error for a recording that is not there."""
    is_address = name.startswith(("http:/", "https:/", "ftp:/"))
    hint = "Addresses are not read: download it first." if is_address else "Check the path and the spelling."
    return FileMissingError(f"{name} does not exist.", hint)


def _silence(samples: int) -> Iterator[Samples]:
    while samples > 0:
        count = min(samples, BLOCK_SECONDS * SAMPLE_RATE)
        yield np.zeros(count, np.float32)
        samples -= count


def _display_name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "The recording"


def _spool(pipe: BinaryIO, name: str, closing: ExitStack) -> BinaryIO:
    """What comes by a pipe, in a temporary file without a name: formats such as mp4 are read back and forth."""
    file = cast(BinaryIO, closing.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115
    try:
        shutil.copyfileobj(pipe, file)
    except OSError as error:
        raise DiskFullError(
            f"{name} cannot be kept while it is read: {error.strerror}.", "Free some space, or set TMPDIR."
        ) from error
    file.seek(0)
    return file
