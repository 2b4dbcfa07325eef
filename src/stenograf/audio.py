"""Any media file -> blocks of 16 kHz mono float32, never the whole file in memory.

The one place that decodes. It reads through FFmpeg's libraries (PyAV brings its own), so no `ffmpeg` program is
needed. The recording's own clock is kept: where a container says that sound starts late or has a hole, silence
stands in for it, so that a subtitle made from the result fits the video.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError

from stenograf.errors import (
    AudioDamagedError,
    FileEmptyError,
    FileForbiddenError,
    FileMissingError,
    InputError,
    NoAudioError,
    NotMediaError,
)
from stenograf.transcript import TranscriptWarning

Samples = npt.NDArray[np.float32]
"""Mono sound, shape (samples,), -1 to 1, at `SAMPLE_RATE`."""

Source = str | os.PathLike[str] | BinaryIO
"""A path, or an open binary file (seekable, if the format wants it: mp4 does)."""

SAMPLE_RATE = 16_000
"""Hertz: what every model here was trained on."""

BLOCK_SECONDS = 10
"""Length of a block: long enough that the VAD runs in large batches, short enough to be no memory to speak of."""

HOLE_SECONDS = 0.1
"""A jump of the recording's clock below this is jitter of the muxer; above it silence is put in."""

LONGEST_HOLE_SECONDS = 600
"""A jump above this is a broken timestamp and not a pause; it is not filled."""

MISSING_SHARE = 0.02
"""A file that ends this much (and a second) before the length that its header claims was cut off."""

MEDIA_SUFFIXES = frozenset({
    ".3gp", ".aac", ".ac3", ".aif", ".aiff", ".alac", ".amr", ".ape", ".au", ".avi", ".awb", ".caf", ".dts",
    ".flac", ".flv", ".gsm", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp1", ".mp2", ".mp3", ".mp4",
    ".mpeg", ".mpg", ".mpga", ".mts", ".oga", ".ogg", ".ogv", ".opus", ".ra", ".spx", ".tta", ".ts", ".voc",
    ".w64", ".wav", ".weba", ".webm", ".wma", ".wmv", ".wv",
})  # fmt: skip
"""What counts as a recording in a folder. A file named on its own is tried whatever its name is."""

# Formats whose length is a guess from the bit rate, so that a shorter recording is no sign of damage.
_LENGTH_IS_A_GUESS = {"mp3", "aac", "amr", "ac3", "eac3", "dts", "mpegts", "mpeg", "loas"}

# Demuxers that open other files or addresses named inside the file: never for a recording that a stranger sent.
_NO_OTHER_FILES = {"protocol_whitelist": "none"}

_DAMAGE_LIMIT = 100_000

_OGG_PAGE_LIMIT = 65_307
"""Bytes: the largest page there can be (RFC 3533: 27 + 255 + 255 * 255)."""


class AudioReader:
    """A recording being read, block by block; a context manager.

    Raises on opening: `FileMissingError`, `FileForbiddenError`, `FileEmptyError`, `NotMediaError` (no format that
    FFmpeg knows), `NoAudioError` (a video without sound).
    """

    def __init__(self, source: Source, *, trim: float | None = None, name: str | None = None) -> None:
        """Open `source`; `trim` reads the first so many seconds only; `name` stands in messages."""
        self.name = name or _display_name(source)
        self.warnings: list[TranscriptWarning] = []
        """What was found wrong while reading; complete once `blocks` has ended."""
        self._owned: BinaryIO | None = None
        self._stopped_early = False
        self._trim_samples = None if trim is None else round(trim * SAMPLE_RATE)
        file = self._open_file(source)
        try:
            self._container = self._open_container(file)
        except BaseException:
            self.close()
            raise
        try:
            self._stream = self._audio_stream()
        except BaseException:
            self._container.close()
            self.close()
            raise
        self.duration = self._claimed_duration()
        """Seconds, as the container claims and `trim` allows; None where it says nothing (a live recording)."""
        self._samples_read = 0

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
        container = getattr(self, "_container", None)
        if container is not None:
            container.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Opening

    def _open_file(self, source: Source) -> BinaryIO:
        if not isinstance(source, str | os.PathLike):
            return source
        path = Path(source)
        try:
            # Opened here and never by FFmpeg, which would take a name such as `http:x` for a protocol.
            self._owned = path.open("rb")
            size = os.fstat(self._owned.fileno()).st_size
            seekable = self._owned.seekable()
        except FileNotFoundError:
            raise FileMissingError(f"{self.name} does not exist.", "Check the path and the spelling.") from None
        except IsADirectoryError:
            raise InputError(f"{self.name} is a folder.", "Name a file, or give the folder with --dir.") from None
        except PermissionError:
            raise FileForbiddenError(
                f"{self.name} may not be read by this user.", "Change its permissions or run as its owner."
            ) from None
        except OSError as error:
            raise InputError(f"{self.name} cannot be opened: {error.strerror}.", "Check the path.") from error
        if seekable and size == 0:
            self._owned.close()
            raise FileEmptyError(f"{self.name} is empty (0 bytes).", "Copy or record it again.")
        return self._owned

    def _open_container(self, file: BinaryIO) -> InputContainer:
        try:
            return av.open(file, mode="r", metadata_errors="replace", options=dict(_NO_OTHER_FILES))
        except (FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise NotMediaError(
                f"{self.name} is not a recording that can be read ({reason}).",
                "Check that it is an audio or video file and plays; if it was cut off on its way, copy it again.",
            ) from error

    def _audio_stream(self) -> av.AudioStream:
        stream = self._container.streams.best("audio")
        if stream is not None:
            return cast(av.AudioStream, stream)
        if any(s.type == "video" for s in self._container.streams):
            raise NoAudioError(f"{self.name} has pictures but no sound.", "Choose a file with an audio track.")
        raise NotMediaError(f"{self.name} holds no audio.", "Choose an audio file, or a video with sound.")

    def _claimed_duration(self) -> float | None:
        seconds: float | None = None
        if self._container.duration is not None:
            seconds = self._container.duration / av.time_base
        elif self._stream.duration is not None and self._stream.time_base is not None:
            seconds = float(self._stream.duration * self._stream.time_base)
        if seconds is None or seconds <= 0:
            return None
        return seconds if self._trim_samples is None else min(seconds, self._trim_samples / SAMPLE_RATE)

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
        resampler: av.AudioResampler | None = None
        shape: tuple[str, str, int] | None = None
        start = (self._container.start_time or 0) / av.time_base
        fed = 0.0  # seconds of sound given to the resampler, holes included
        for frame in self._frames():
            if frame.samples == 0:
                continue
            hole = 0.0 if frame.time is None else frame.time - start - fed
            if HOLE_SECONDS < hole < LONGEST_HOLE_SECONDS:
                if resampler is not None:
                    yield from _arrays(resampler.resample(None))
                    resampler = None
                yield from _silence(round(hole * SAMPLE_RATE))
                fed += hole
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or now != shape:  # some streams change their rate or channels on the way
                if resampler is not None:
                    yield from _arrays(resampler.resample(None))
                resampler, shape = av.AudioResampler("flt", "mono", SAMPLE_RATE), now
            fed += frame.samples / frame.sample_rate
            frame.pts = None
            yield from _arrays(resampler.resample(frame))
        if resampler is not None:
            yield from _arrays(resampler.resample(None))

    def _frames(self) -> Iterator[AudioFrame]:
        """Frames as they are decoded. A packet that cannot be decoded is passed over, as the ffmpeg program does."""
        damaged = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    try:
                        frames = packet.decode()
                    except FFmpegError:
                        damaged += 1
                        continue
                    yield from frames
                break
            except av.error.EOFError:
                break
            except FFmpegError:
                # The demuxer stumbled; it may find the next packet, or it stands still and never will.
                damaged += 1
                if damaged > _DAMAGE_LIMIT or not self._moves():
                    break
        if damaged:
            places = "one place" if damaged == 1 else f"{damaged} places"
            self.warnings.append(
                TranscriptWarning(
                    "audio_damaged",
                    f"The recording is damaged in {places}; what could be decoded was read, words may be missing.",
                )
            )

    def _moves(self) -> bool:
        """Whether the demuxer has read on since it stumbled last."""
        file = self._owned
        if file is None:
            return False
        position = file.tell()
        moved = position != getattr(self, "_stumbled_at", None)
        self._stumbled_at = position
        return moved

    def _note_missing_end(self) -> None:
        has_its_end = _END_CHECKS.get(self._container.format.name)
        if has_its_end and self._owned and self._owned.seekable() and not self._stopped_early:
            if not has_its_end(self._owned):
                self.warnings.append(
                    TranscriptWarning(
                        "audio_truncated",
                        f"The recording has no proper end (it stops at {self.seconds_read:.1f} s); "
                        "it may have been cut off.",
                    )
                )
            return
        if self.duration is None or self._container.format.name in _LENGTH_IS_A_GUESS:
            return
        missing = self.duration - self.seconds_read
        if missing > 1 and missing > self.duration * MISSING_SHARE:
            self.warnings.append(
                TranscriptWarning(
                    "audio_truncated",
                    f"The recording ends at {self.seconds_read:.1f} s although it claims {self.duration:.1f} s; "
                    "the rest is missing.",
                )
            )


def _ogg_has_its_end(file: BinaryIO) -> bool:
    """Whether the file closes with a whole page that is marked as the last (RFC 3533, section 6).

    FFmpeg passes over damaged Ogg pages in silence and takes the last good one for the end.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _OGG_PAGE_LIMIT))
    tail = file.read(_OGG_PAGE_LIMIT)
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27:
        return False
    is_last = bool(tail[page + 5] & 4)
    table = tail[page + 27 : page + 27 + tail[page + 26]]
    return is_last and page + 27 + len(table) + sum(table) == len(tail)


def _wav_has_its_end(file: BinaryIO) -> bool:
    """Whether the file is as long as its RIFF header says; programs that write to a pipe leave a huge number there."""
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    claimed = int.from_bytes(file.read(4), "little") + 8
    return claimed <= size or claimed > 0x7FFF_0000


_END_CHECKS = {"ogg": _ogg_has_its_end, "wav": _wav_has_its_end}
"""Formats whose claimed length FFmpeg corrects in silence, so that the file itself must be asked."""


def _arrays(frames: list[AudioFrame]) -> Iterator[Samples]:
    for frame in frames:
        yield cast(Samples, frame.to_ndarray().reshape(-1))


def _silence(samples: int) -> Iterator[Samples]:
    while samples > 0:
        count = min(samples, BLOCK_SECONDS * SAMPLE_RATE)
        yield np.zeros(count, np.float32)
        samples -= count


def _display_name(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    return str(getattr(source, "name", "the recording"))
