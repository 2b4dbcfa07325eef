"""Any media file -> blocks of 16 kHz mono float32."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

import media
from stenograf import errors
from stenograf.audio import BLOCK_SECONDS, SAMPLE_RATE, AudioReader, Source
from stenograf.resampling import is_sound


def read(
    source: Source, trim: float | None = None, longest: float | None = None
) -> tuple[npt.NDArray[np.float32], AudioReader]:
    with AudioReader(source, trim=trim, longest=longest) as reader:
        return np.concatenate(list(reader.blocks())), reader


def loudest_hertz(samples: npt.NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


@pytest.mark.parametrize("suffix", media.KINDS)
def test_every_format_gives_the_same_sound(tmp_path: Path, suffix: str) -> None:
    samples, reader = read(media.write(tmp_path / f"tone{suffix}", media.tone(3.0)))
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE, abs=0.12 * SAMPLE_RATE)
    assert reader.seconds_read == len(samples) / SAMPLE_RATE
    middle = samples[SAMPLE_RATE : 2 * SAMPLE_RATE]
    assert loudest_hertz(middle) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.15)
    assert reader.warnings == []


def test_amr_as_old_telephones_record_it() -> None:
    # Not every PyAV brings an encoder for it, so this one was made once: `media.tone(3.0)` by libopencore_amrnb.
    samples, reader = read(Path(__file__).parent / "audio" / "tone.amr")
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert loudest_hertz(samples[SAMPLE_RATE : 2 * SAMPLE_RATE]) == pytest.approx(440, abs=3)
    assert reader.warnings == []


@pytest.mark.parametrize(("codec", "sample_format"), media.WAV_CODECS.items())
def test_wav_in_every_depth(tmp_path: Path, codec: str, sample_format: str) -> None:
    path = media.write(tmp_path / "tone.wav", media.tone(1.0), codec=codec, sample_format=sample_format)
    samples, _ = read(path)
    assert len(samples) == SAMPLE_RATE
    assert np.max(np.abs(samples - media.tone(1.0))) < 0.03


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_video_gives_its_sound(tmp_path: Path, suffix: str) -> None:
    samples, _ = read(media.write(tmp_path / f"video{suffix}", media.tone(2.0), video=True))
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 48_000, 96_000])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_rates_and_channels(tmp_path: Path, rate: int, layout: str) -> None:
    samples, _ = read(media.write(tmp_path / "t.wav", media.tone(1.0), rate=rate, layout=layout))
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=20)
    assert loudest_hertz(samples) == pytest.approx(440, abs=2)


def test_blocks_are_bounded_and_are_the_consumers_own(tmp_path: Path) -> None:
    path = media.write(tmp_path / "t.wav", media.tone(BLOCK_SECONDS * 2.5))
    with AudioReader(path) as reader:
        blocks = list(reader.blocks())
    assert [len(block) for block in blocks] == [BLOCK_SECONDS * SAMPLE_RATE] * 2 + [BLOCK_SECONDS * SAMPLE_RATE // 2]
    assert np.allclose(np.concatenate(blocks), media.tone(BLOCK_SECONDS * 2.5), atol=1e-3)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    def peak(minutes: int) -> int:
        path = media.write(tmp_path / f"{minutes}.ogg", media.tone(60.0 * minutes))
        tracemalloc.start()
        with AudioReader(path) as reader:
            for _ in reader.blocks():
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(10) < peak(2) * 1.1


@pytest.mark.parametrize("trim", [0.5, 3.0, 12.25])
def test_trim_reads_the_start(tmp_path: Path, trim: float) -> None:
    samples, reader = read(media.write(tmp_path / "t.flac", media.tone(15.0)), trim=trim)
    assert len(samples) == trim * SAMPLE_RATE
    assert reader.duration == pytest.approx(trim)
    assert reader.warnings == []


def test_a_trim_longer_than_the_recording_reads_all_of_it(tmp_path: Path) -> None:
    samples, reader = read(media.write(tmp_path / "t.wav", media.tone(2.0)), trim=60)
    assert len(samples) == 2 * SAMPLE_RATE
    assert reader.duration == pytest.approx(2.0)


def test_an_open_file_is_read_and_left_open(tmp_path: Path) -> None:
    content = media.write(tmp_path / "t.m4a", media.tone(1.0)).read_bytes()
    file = io.BytesIO(content)
    samples, _ = read(file)
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=2000)
    assert not file.closed


@pytest.mark.parametrize(
    "name",
    ["Голосовое сообщение.ogg", "with space.ogg", "🎤 запись.ogg", "http:x.ogg", "concat:a.ogg", "я" * 125 + "a.ogg"],
)
def test_names_of_every_kind(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) <= 255
    samples, _ = read(media.write(tmp_path / name, media.tone(1.0)))
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=200)


def test_a_title_in_an_old_encoding(tmp_path: Path) -> None:
    title = "Запись".encode("cp1251")
    tag = b"TIT2" + struct.pack(">I", len(title) + 1) + b"\x00\x00\x00" + title
    whole = media.write(tmp_path / "t.mp3", media.tone(1.0)).read_bytes()
    path = tmp_path / "tagged.mp3"
    path.write_bytes(b"ID3\x03\x00\x00" + bytes([0, 0, 0, len(tag)]) + tag + whole)
    assert len(read(path)[0]) > 0.9 * SAMPLE_RATE
    wav_title = wav(1, SAMPLE_RATE, (media.tone(1.0) * 32767).astype(np.int16))
    info = b"INFOINAM" + struct.pack("<I", len(title)) + title
    path = tmp_path / "tagged.wav"
    path.write_bytes(wav_title + b"LIST" + struct.pack("<I", len(info)) + info)
    assert len(read(path)[0]) == SAMPLE_RATE


# The recording's clock


def test_sound_that_starts_late_in_a_video_keeps_its_place(tmp_path: Path) -> None:
    samples, _ = read(media.write(tmp_path / "late.mkv", media.tone(1.0), start=2.0, video=True))
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE, abs=0.05 * SAMPLE_RATE)
    assert np.max(np.abs(samples[: int(1.9 * SAMPLE_RATE)])) == 0
    assert np.max(np.abs(samples[int(2.1 * SAMPLE_RATE) :])) > 0.3


def test_a_hole_in_the_recording_becomes_silence(tmp_path: Path) -> None:
    whole = media.write(tmp_path / "whole.mkv", media.tone(6.0))
    holed = tmp_path / "holed.mkv"
    with av.open(str(whole)) as source, av.open(str(holed), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is None or 2.0 <= float(packet.pts or 0) * float(packet.time_base or 0) < 4.0:
                continue
            packet.stream = stream
            target.mux(packet)
    samples, _ = read(holed)
    assert len(samples) == pytest.approx(6 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert np.max(np.abs(samples[int(2.2 * SAMPLE_RATE) : int(3.8 * SAMPLE_RATE)])) == 0
    assert np.max(np.abs(samples[int(4.2 * SAMPLE_RATE) :])) > 0.3


# Damage


def test_a_corrupt_tail_gives_what_was_readable_and_a_warning(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(20_000)
    for suffix, share in ((".mp3", 0.6), (".flac", 0.6), (".ogg", 0.6), (".wav", 0.6)):
        whole = media.write(tmp_path / f"whole{suffix}", media.tone(6.0)).read_bytes()
        path = tmp_path / f"tail{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)] + (b"" if suffix == ".wav" else noise))
        samples, reader = read(path)
        assert len(samples) > 2 * SAMPLE_RATE, suffix
        assert loudest_hertz(samples[:SAMPLE_RATE]) == pytest.approx(440, abs=2), suffix
        assert {warning.code for warning in reader.warnings} & {"audio_damaged", "audio_truncated"}, suffix


def test_a_piece_that_is_missing_from_an_ogg_is_noticed_and_keeps_its_place(tmp_path: Path) -> None:
    whole = media.write(tmp_path / "whole.ogg", media.tone(20.0)).read_bytes()
    pages = [match.start() for match in re.finditer(b"OggS", whole)]
    first, last = pages[len(pages) // 3], pages[2 * len(pages) // 3]
    cut = tmp_path / "cut.ogg"
    cut.write_bytes(whole[:first] + whole[last:])
    samples, reader = read(cut)
    assert len(samples) == pytest.approx(20 * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE)
    assert [warning.code for warning in reader.warnings] == ["audio_damaged"]


def test_an_ogg_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    whole = media.write(tmp_path / "whole.ogg", media.tone(6.0)).read_bytes()
    cut = tmp_path / "cut.ogg"
    cut.write_bytes(whole[: len(whole) // 2])
    _, reader = read(cut)
    assert [warning.code for warning in reader.warnings] == ["audio_truncated"]


def test_damage_in_an_open_file_is_told_as_well(tmp_path: Path) -> None:
    whole = media.write(tmp_path / "whole.ogg", media.tone(6.0)).read_bytes()
    _, reader = read(io.BytesIO(whole[: len(whole) // 2]))
    assert [warning.code for warning in reader.warnings] == ["audio_truncated"]
    with pytest.raises(errors.FileEmptyError):
        read(io.BytesIO())


def test_an_mp3_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    whole = media.write(tmp_path / "whole.mp3", media.tone(6.0)).read_bytes()
    assert b"Info" in whole[:1000] or b"Xing" in whole[:1000]
    cut = tmp_path / "cut.mp3"
    cut.write_bytes(whole[: len(whole) // 2])
    _, reader = read(cut)
    assert [warning.code for warning in reader.warnings] == ["audio_truncated"]
    tagged = tmp_path / "tagged.mp3"
    tagged.write_bytes(b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(2048) + whole)
    assert read(tagged)[1].warnings == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_that_is_longer_than_its_sound_is_whole(tmp_path: Path, suffix: str) -> None:
    path = media.write(tmp_path / f"video{suffix}", media.tone(3.0), video=True, picture_seconds=9.0)
    samples, reader = read(path)
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert reader.warnings == []


def wav(channels: int, rate: int, frames: npt.NDArray[np.int16]) -> bytes:
    """A wav file with whatever header."""
    data = np.repeat(frames[:, None], channels, axis=1).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) & 0xFFFFFFFF, channels * 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("channels", [3, 9, 17, 64])
def test_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "mixer.wav"
    path.write_bytes(wav(channels, SAMPLE_RATE, (media.tone(2.0) * 32767).astype(np.int16)))
    samples, _ = read(path)
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=50)
    assert loudest_hertz(samples) == pytest.approx(440, abs=2)
    assert 0.3 < np.max(np.abs(samples)) <= 1


def test_more_channels_than_can_be_reached_are_refused() -> None:
    frame = av.AudioFrame(format="fltp", layout="22.2", samples=1024)  # reading its planes would end the process
    frame.sample_rate = SAMPLE_RATE
    assert not is_sound(frame)


@pytest.mark.parametrize("rate", [1, 7, 2147483647])
def test_a_rate_that_cannot_be(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "rate.wav"
    path.write_bytes(wav(1, rate, (media.tone(0.5) * 32767).astype(np.int16)))
    fails(path, errors.InputError)


def test_float_sound_that_is_no_number_stays_in_range(tmp_path: Path) -> None:
    sound = media.tone(2.0)
    sound[5000:6000] = np.inf
    sound[7000:8000] = 1e30
    sound[9000:9100] = np.nan
    samples, _ = read(media.write(tmp_path / "f.wav", sound, codec="pcm_f32le", sample_format="flt"))
    assert np.isfinite(samples).all()
    assert np.max(np.abs(samples)) <= 1


def test_a_pipe_is_read_whatever_its_format(tmp_path: Path) -> None:
    content = media.write(tmp_path / "t.m4a", media.tone(2.0)).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    samples, _ = read(pipe)
    writer.join()
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=2000)


def test_damage_of_every_kind_is_an_input_error_or_a_warning(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for suffix in (".wav", ".mp4", ".wma", ".mkv", ".flac", ".ogg"):
        whole = np.frombuffer(media.write(tmp_path / f"whole{suffix}", media.tone(2.0)).read_bytes(), np.uint8)
        for _ in range(25):
            broken = whole.copy()
            places = random.integers(0, min(len(broken), 600), 12)
            broken[places] = random.integers(0, 256, 12)
            try:
                read(io.BytesIO(broken.tobytes()), trim=5)
            except errors.InputError as error:
                assert error.hint


# What cannot be read


def fails(path: Path, kind: type[errors.StenografError]) -> errors.StenografError:
    with pytest.raises(kind) as caught:
        read(path)
    error = caught.value
    assert path.name in error.message
    assert error.hint
    assert "\n" not in str(error)
    return error


def test_a_missing_file(tmp_path: Path) -> None:
    fails(tmp_path / "none.ogg", errors.FileMissingError)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp3"
    path.touch()
    fails(path, errors.FileEmptyError)


def test_a_folder(tmp_path: Path) -> None:
    fails(tmp_path, errors.InputError)


def test_a_text_file_called_mp3(tmp_path: Path) -> None:
    path = tmp_path / "text.mp3"
    path.write_text("This is no music, it only says so.\n" * 500)
    fails(path, errors.NotMediaError)


def test_a_video_without_sound(tmp_path: Path) -> None:
    fails(media.write_mute_video(tmp_path / "mute.mp4"), errors.NoAudioError)


def test_an_image(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    fails(path, errors.InputError)


@pytest.mark.parametrize("suffix", [".m4a", ".ogg", ".wav", ".flac", ".webm"])
def test_a_truncated_header(tmp_path: Path, suffix: str) -> None:
    whole = media.write(tmp_path / f"whole{suffix}", media.tone(2.0)).read_bytes()
    path = tmp_path / f"header{suffix}"
    path.write_bytes(whole[:30])
    fails(path, errors.InputError)


def test_a_header_without_sound(tmp_path: Path) -> None:
    path = media.write(tmp_path / "t.wav", media.tone(1.0))
    path.write_bytes(path.read_bytes()[:78])
    fails(path, errors.InputError)


def test_a_file_that_may_not_be_read(tmp_path: Path, unprivileged: None) -> None:
    path = media.write(tmp_path / "secret.wav", media.tone(1.0))
    path.chmod(0)
    fails(path, errors.FileForbiddenError)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    media.write(tmp_path / "secret.mp3", media.tone(1.0))
    for name, content in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.mp3\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp3'\n"),
        ("relative.ffconcat", "ffconcat version 1.0\nfile secret.mp3\n"),
    ):
        path = tmp_path / name
        path.write_text(content)
        fails(path, errors.InputError)


# Recordings that are longer than is taken


def unclaimed_flac(path: Path, seconds: float) -> Path:
    """Silence, a few hundred bytes a minute, whose header does not say how long it is."""
    data = bytearray(media.write(path, np.zeros(round(seconds * SAMPLE_RATE), np.float32), rate=8_000).read_bytes())
    assert data[:4] == b"fLaC"
    samples = int.from_bytes(data[18:26]) & (1 << 36) - 1  # STREAMINFO: the lower 36 bits of these 8 bytes
    assert samples == round(seconds * 8_000)
    data[18:26] = (int.from_bytes(data[18:26]) - samples).to_bytes(8)
    path.write_bytes(data)
    return path


class Pipe(io.BytesIO):
    """What a muxer cannot go back in: so it cannot write the length into the header afterwards."""

    def seekable(self) -> bool:
        return False


def holes(count: int, hole: float) -> bytes:
    """A matroska of `count` packets of nothing, each so many seconds after the one before."""
    pipe = Pipe()
    pipe.seek = None  # type: ignore[assignment, method-assign]
    with av.open(pipe, "w", format="matroska") as container:
        stream = container.add_stream("libopus", rate=48_000)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        for number in range(count):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
            frame.sample_rate = 48_000
            frame.pts = round(number * hole * 48_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return pipe.getvalue()


def test_a_recording_that_says_that_it_is_too_long_is_not_even_read(tmp_path: Path) -> None:
    for suffix in (".flac", ".ogg", ".mp3", ".m4a", ".wav"):
        path = media.write(tmp_path / f"tone{suffix}", media.tone(3.0))
        with pytest.raises(errors.RecordingTooLongError, match=path.name):
            AudioReader(path, longest=2.0)
        samples, _ = read(path, longest=4.0)
        assert len(samples) > 2.8 * SAMPLE_RATE


def test_a_few_bytes_that_decode_to_more_than_is_taken(tmp_path: Path) -> None:
    path = unclaimed_flac(tmp_path / "bomb.flac", 120)
    assert path.stat().st_size < 40_000
    with AudioReader(path) as reader:
        assert reader.duration is None
    with AudioReader(path, longest=30) as reader:
        with pytest.raises(errors.RecordingTooLongError, match=r"bomb\.flac"):
            list(reader.blocks())
        assert reader.seconds_read < 45
    samples, _ = read(path, longest=125)
    assert len(samples) == pytest.approx(120 * SAMPLE_RATE, rel=0.01)


def test_a_few_bytes_with_hours_of_holes() -> None:
    data = holes(100, 590.0)
    assert len(data) < 20_000
    with AudioReader(io.BytesIO(data)) as reader:
        assert reader.duration is None
    with AudioReader(io.BytesIO(data), longest=600) as reader:
        with pytest.raises(errors.RecordingTooLongError):
            list(reader.blocks())
        assert reader.seconds_read < 615


def test_the_trimmed_start_of_a_long_recording_is_taken(tmp_path: Path) -> None:
    path = media.write(tmp_path / "tone.flac", media.tone(30.0))
    samples, reader = read(path, trim=5.0, longest=6.0)
    assert len(samples) == 5 * SAMPLE_RATE
    assert reader.warnings == []
    bomb, _ = read(unclaimed_flac(tmp_path / "bomb.flac", 60), trim=5.0, longest=6.0)
    assert len(bomb) == 5 * SAMPLE_RATE


def test_no_limit_is_any_length(tmp_path: Path) -> None:
    path = media.write(tmp_path / "tone.flac", media.tone(3.0))
    for longest in (None, 0.0):
        assert len(read(path, longest=longest)[0]) == 3 * SAMPLE_RATE
