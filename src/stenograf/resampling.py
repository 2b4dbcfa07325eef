"""Decoded frames of any shape -> mono float32 at one rate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.error import FFmpegError

Samples = npt.NDArray[np.float32]
"""Mono sound, shape (samples,), -1 to 1, at `SAMPLE_RATE`."""

SAMPLE_RATE = 16_000
"""Hertz: what every model here was trained on."""

BROKEN = (FFmpegError, OSError, ValueError, IndexError, MemoryError)
"""What PyAV raises at damaged files: FFmpeg's own errors, and others where a header holds nonsense."""

RATES = (1_000, 1_600_000)
"""Hertz: the slowest and fastest that is taken for a recording. At 1 Hz a kilobyte would be a quarter of an hour."""

MIXED_BY_FFMPEG = 8
"""FFmpeg's resampler mixes the layouts that have a name, up to so many channels."""


def is_sound(frame: AudioFrame) -> bool:
    """Whether a frame can be what someone recorded, and can be reached.

    PyAV reaches eight planes; what it takes for the ninth is no memory of ours, and reading it ends the process.
    """
    reachable = not frame.format.is_planar or frame.layout.nb_channels <= MIXED_BY_FFMPEG
    return reachable and RATES[0] <= frame.sample_rate <= RATES[1]


class Resampler:
    """Frames of one shape -> mono float32 at `SAMPLE_RATE`.

    Mixed and resampled as 32-bit integers: with these FFmpeg keeps the sum of all channels within the range, and what
    is no number in a damaged float recording becomes one.
    """

    def __init__(self, frame: AudioFrame) -> None:
        self._shape = self._shape_of(frame)
        # More channels, or such without a name, are mixed here.
        self._mixes = frame.layout.nb_channels > MIXED_BY_FFMPEG or not frame.layout.name[0].isalnum()
        self._resampler = av.AudioResampler("s32", "mono", SAMPLE_RATE)

    def fits(self, frame: AudioFrame) -> bool:
        """Whether a frame has the shape that this one was made for."""
        return self._shape == self._shape_of(frame)

    def resample(self, frame: AudioFrame) -> Iterator[Samples]:
        """The sound of a frame, as far as it is ready. Raises one of `BROKEN` for a frame that makes no sense."""
        frame = _mixed(frame) if self._mixes else frame
        frame.pts = None
        yield from self._arrays(self._resampler.resample(frame))

    def rest(self) -> Iterator[Samples]:
        """What is still on its way, after the last frame."""
        with contextlib.suppress(*BROKEN):  # nothing was put in
            yield from self._arrays(self._resampler.resample(None))

    @staticmethod
    def _shape_of(frame: AudioFrame) -> tuple[str, str, int, int]:
        return frame.format.name, frame.layout.name, frame.layout.nb_channels, frame.sample_rate

    @staticmethod
    def _arrays(frames: list[AudioFrame]) -> Iterator[Samples]:
        for frame in frames:
            yield frame.to_ndarray().reshape(-1).astype(np.float32) / np.float32(2**31)


def _mixed(frame: AudioFrame) -> AudioFrame:
    """A frame of any number of channels as their mean."""
    channels = frame.layout.nb_channels
    samples: npt.NDArray[Any] = frame.to_ndarray()
    samples = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    if samples.dtype.kind in "iu":
        info = np.iinfo(samples.dtype)
        middle = 0 if samples.dtype.kind == "i" else info.max // 2 + 1
        samples = (samples.astype(np.float64) - middle) / (info.max - middle + 1)
    mean = np.nan_to_num(samples.mean(axis=0), posinf=0, neginf=0).astype(np.float32)
    mono = AudioFrame.from_ndarray(mean.reshape(1, -1), format="flt", layout="mono")
    mono.sample_rate = frame.sample_rate
    return mono
