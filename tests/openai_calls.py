"""Run by a Python that has one of OpenAI's clients, of any version: calls a service, and prints what comes of it.

    openai_calls.py FOLDER SCENARIO=URL ...

FOLDER holds the recordings. Nothing of this project is imported here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import openai  # type: ignore[import-not-found]  # in the client's own environment

FOLDER = Path(sys.argv[1])
URLS = dict(argument.split("=", 1) for argument in sys.argv[2:])
base_url = ""
RU, EN = FOLDER / "ru-01.flac", FOLDER / "en-01.flac"


def client(**options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": base_url, "api_key": "no-key", "max_retries": 0, "timeout": 60, **options})


def plain(value: Any) -> Any:
    return value if isinstance(value, str) else value.model_dump()


def error_of(call: Any) -> dict[str, Any]:
    """What a caller finds out about an error."""
    try:
        call()
    except openai.APIError as error:
        return {
            "class": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "message": error.message,
            "code": error.code,
            "param": error.param,
            "type": error.type,
            "request_id": getattr(error, "request_id", None),
        }
    return {"class": None}


def formats() -> dict[str, Any]:
    audio = client().audio
    found = {
        kind: plain(audio.transcriptions.create(file=RU, model="whisper-1", response_format=kind))
        for kind in ("json", "text", "srt", "vtt", "verbose_json")
    }
    found["default"] = plain(audio.transcriptions.create(file=RU, model="gpt-4o-transcribe"))
    found["words"] = plain(
        audio.transcriptions.create(
            file=RU, model="whisper-1", response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
    )
    found["everything"] = plain(
        audio.transcriptions.create(
            file=("голос.ogg", RU.read_bytes(), "application/octet-stream"),
            model="gpt-4o-mini-transcribe",
            language="ru",
            prompt="Код",
            temperature=0.0,
            include=["logprobs"],
            chunking_strategy={"type": "server_vad", "threshold": 0.4, "prefix_padding_ms": 200},
            extra_body={"hotwords": "шесть", "vad_filter": True, "beam_size": 1, "languages": ["ru"]},
        )
    )
    return found


def translations() -> dict[str, Any]:
    audio = client().audio
    found = {
        kind: plain(audio.translations.create(file=RU, model="whisper-1", response_format=kind))
        for kind in ("json", "text", "verbose_json")
    }
    found["refused"] = error_of(lambda: audio.translations.create(file=RU, model="gigaam-test"))
    return found


def streams() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, file in (("short", RU), ("long", FOLDER / "ru-long.ogg")):
        with client().audio.transcriptions.create(
            file=file, model="gpt-4o-transcribe", stream=True, extra_body={"trim": 25}
        ) as events:
            found[name] = [{"class": type(event).__name__, **event.model_dump()} for event in events]
    found["refused"] = error_of(
        lambda: client().audio.transcriptions.create(file=("a.mp3", b"no sound " * 99), model="whisper-1", stream=True)
    )
    return found


def asynchronous() -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        options: dict[str, Any] = {"base_url": base_url, "api_key": "no-key", "max_retries": 0, "timeout": 60}
        async with openai.AsyncOpenAI(**options) as asked:
            both = await asyncio.gather(
                asked.audio.transcriptions.create(file=RU, model="whisper-1"),
                asked.audio.transcriptions.create(file=EN, model="whisper-test", language="en"),
            )
            events = await asked.audio.transcriptions.create(file=RU, model="gpt-transcribe", stream=True)
            return {
                "ru": both[0].text,
                "en": both[1].text,
                "deltas": [event.delta async for event in events if event.type == "transcript.text.delta"],
            }

    return asyncio.run(run())


def models() -> dict[str, Any]:
    asked = client().models
    return {
        "list": [model.model_dump() for model in asked.list()],
        "one": asked.retrieve("whisper-test").model_dump(),
        "none": error_of(lambda: asked.retrieve("Systran/no-such")),
    }


def errors() -> dict[str, Any]:
    create = client().audio.transcriptions.create
    return {
        "model": error_of(lambda: create(file=RU, model="no-such-model")),
        "format": error_of(lambda: create(file=RU, model="whisper-1", response_format="docx")),
        "speakers": error_of(lambda: create(file=RU, model="whisper-1", extra_body={"known_speaker_names": ["Anna"]})),
        "diarized": error_of(
            lambda: create(file=RU, model="gpt-4o-transcribe-diarize", response_format="diarized_json")
        ),
        "language": error_of(lambda: create(file=RU, model="whisper-1", language="klingon")),
        "temperature": error_of(lambda: create(file=RU, model="whisper-1", temperature=7)),
        "media": error_of(lambda: create(file=("a.mp3", b"no sound " * 99), model="whisper-1")),
        "empty": error_of(lambda: create(file=("a.mp3", b""), model="whisper-1")),
    }


def big() -> dict[str, Any]:
    """Some 30 MB, of which little is read."""
    seconds, rate = 1000, 16_000
    data = seconds * rate * 2
    head = b"RIFF" + (36 + data).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += b"\1\0\1\0" + rate.to_bytes(4, "little") + (2 * rate).to_bytes(4, "little") + b"\2\0\x10\0"
    file = ("big.wav", head + b"data" + data.to_bytes(4, "little") + bytes(data))
    create = client().audio.transcriptions.create
    return plain(create(file=file, model="whisper-1", response_format="verbose_json", extra_body={"trim": 12}))  # type: ignore[no-any-return]


def keys() -> dict[str, Any]:
    """At a service that takes one key, and one recording a minute of each."""
    right, wrong = (client(api_key=key * 16) for key in (openai.__version__[0], "w"))
    return {
        "wrong": error_of(lambda: wrong.audio.transcriptions.create(file=RU, model="whisper-1")),
        "models": error_of(wrong.models.list),
        "right": right.audio.transcriptions.create(file=RU, model="whisper-1").text,
        "again": error_of(lambda: right.audio.transcriptions.create(file=RU, model="whisper-1")),
    }


def large() -> dict[str, Any]:
    """At a service that takes 1 MB."""
    file = ("a.wav", bytes(1_500_000))
    return error_of(lambda: client().audio.transcriptions.create(file=file, model="whisper-1"))


def impatient() -> str:
    """The first try times out; the client sends it again by itself."""
    asked = client(timeout=1.5, max_retries=8).audio.transcriptions
    return str(asked.create(file=("slow.flac", RU.read_bytes()), model="whisper-1").text)


def broken() -> dict[str, Any]:
    """The recording fails in the middle of the stream, once this has made the file SEEN."""
    seen: list[str] = []

    def read() -> None:
        file = ("broken.flac", RU.read_bytes())
        with client().audio.transcriptions.create(file=file, model="whisper-1", stream=True) as events:
            for event in events:
                seen.append(event.type)
                Path(os.environ["SEEN"]).touch()

    return {"error": error_of(read), "seen": seen}


if __name__ == "__main__":
    found: dict[str, Any] = {"version": openai.__version__}
    for name, url in URLS.items():
        base_url = f"{url}/v1"
        found[name] = globals()[name]()
    print(json.dumps(found))
