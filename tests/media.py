"""Makes media files of every kind for the tests, with FFmpeg's encoders as PyAV brings them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

RATE = 16_000

# suffix -> (codec, sample format, sample rate); what people send
KINDS: dict[str, tuple[str, str, int]] = {
    ".ogg": ("libopus", "flt", 48_000),
    ".opus": ("libopus", "flt", 48_000),
    ".mp3": ("libmp3lame", "fltp", 44_100),
    ".m4a": ("aac", "fltp", 44_100),
    ".aac": ("aac", "fltp", 44_100),
    ".flac": ("flac", "s16", 44_100),
    ".webm": ("libopus", "flt", 48_000),
    ".wma": ("wmav2", "fltp", 44_100),
    ".mp4": ("aac", "fltp", 48_000),
    ".mkv": ("libopus", "flt", 48_000),
    ".mov": ("aac", "fltp", 48_000),
    ".aiff": ("pcm_s16be", "s16", 22_050),
}

WAV_CODECS = {
    "pcm_u8": "u8",
    "pcm_s16le": "s16",
    "pcm_s24le": "s32",
    "pcm_f32le": "flt",
    "pcm_mulaw": "s16",
    "pcm_alaw": "s16",
}


def tone(seconds: float, hertz: float = 440.0, loudness: float = 0.5) -> npt.NDArray[np.float32]:
    """A sine, mono, 16 kHz."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (loudness * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def write(
    path: Path,
    samples: npt.NDArray[np.float32],
    *,
    codec: str | None = None,
    sample_format: str | None = None,
    rate: int | None = None,
    layout: str = "mono",
    start: float = 0.0,
    video: bool = False,
    picture_seconds: float | None = None,
) -> Path:
    """Encode mono 16 kHz samples into `path`, by its suffix; `start` seconds late; with a picture if `video`."""
    kind = KINDS.get(path.suffix.lower(), ("pcm_s16le", "s16", RATE))
    codec, sample_format, rate = codec or kind[0], sample_format or kind[1], rate or kind[2]
    with path.open("wb") as file, av.open(file, "w", format=_container(path.suffix.lower())) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout
        stream.format = sample_format
        if codec == "wmav2":
            stream.bit_rate = 64_000  # it has no default
        picture = None
        if video:
            picture = container.add_stream("mpeg4", rate=10)
            assert isinstance(picture, av.VideoStream)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
            for number in range(round((picture_seconds or start + len(samples) / RATE) * 10)):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                frame.pts = number
                container.mux(picture.encode(frame))
        resampler = av.AudioResampler(sample_format, layout, rate)
        fifo = av.AudioFifo()
        source = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout="mono")
        source.sample_rate = RATE
        offset = round(start * rate)
        position = 0
        for resampled in (*resampler.resample(source), *resampler.resample(None)):
            resampled.pts = None
            fifo.write(resampled)
        size = stream.codec_context.frame_size or 1024
        while fifo.samples:
            piece = fifo.read(min(size, fifo.samples), partial=True)
            assert piece is not None
            piece.pts = offset + position
            position += piece.samples
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
        if picture is not None:
            container.mux(picture.encode(None))
    return path


def write_mute_video(path: Path, seconds: float = 1.0) -> Path:
    """A video without sound."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        assert isinstance(picture, av.VideoStream)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        for number in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
    return path


def _container(suffix: str) -> str:
    return {
        ".ogg": "ogg", ".opus": "ogg", ".m4a": "ipod", ".aac": "adts", ".wma": "asf", ".mkv": "matroska",
    }.get(suffix, suffix.removeprefix("."))  # fmt: skip
