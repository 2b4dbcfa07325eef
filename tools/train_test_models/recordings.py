"""Writes recordings, and cuts them at silences as the product does, by the VAD in faster-whisper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np
import soxr
from speech import RATE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _frames(audio: np.ndarray, rate: int) -> Iterator[av.AudioFrame]:
    """Blocks of 20 ms of int16, as PyAV takes them."""
    samples = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)[None, :]
    for begin in range(0, samples.shape[1], rate // 50):
        block = np.ascontiguousarray(samples[:, begin : begin + rate // 50])
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
        frame.sample_rate = rate
        frame.pts = begin
        yield frame


_KINDS = {  # file ending: container, codec, sampling rate
    ".ogg": ("ogg", "libopus", 48_000),
    ".m4a": ("ipod", "aac", 44_100),
    ".flac": ("flac", "flac", RATE),
}


def write(path: Path, audio: np.ndarray, bit_rate: int = 24_000) -> None:
    """The ending says the format. `bitexact` keeps random serial numbers and dates out of the file."""
    container_format, codec, rate = _KINDS[path.suffix]
    if rate != RATE:
        audio = soxr.resample(audio, RATE, rate)
    with av.open(str(path), "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        stream.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
        if codec == "flac":
            stream.format = "s16"
        else:
            stream.bit_rate = bit_rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for frame in _frames(audio, rate):
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        container.mux(stream.encode(None))


def read(path: Path) -> np.ndarray:
    from faster_whisper import decode_audio

    return decode_audio(str(path), sampling_rate=RATE)


def chunks(audio: np.ndarray, limit: float, padding_ms: int, silence_ms: int) -> list[tuple[float, np.ndarray]]:
    """(start in seconds, audio): neighbouring speech regions, joined up to `limit` seconds."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(
        min_silence_duration_ms=silence_ms,
        speech_pad_ms=padding_ms,
        max_speech_duration_s=limit - 2 * padding_ms / 1000,
    )
    joined: list[list[int]] = []
    for region in get_speech_timestamps(audio, options):
        if joined and region["end"] - joined[-1][0] <= limit * RATE:
            joined[-1][1] = region["end"]
        else:
            joined.append([region["start"], region["end"]])
    return [(begin / RATE, audio[begin:end]) for begin, end in joined]
