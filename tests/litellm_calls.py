"""Run by a Python that has LiteLLM: calls a service through it, and prints what comes of it.

litellm_calls.py SCENARIO URL FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import litellm  # type: ignore[import-not-found]  # in the client's own environment

RU = Path(sys.argv[1]) / "ru-01.flac"
OPTIONS: dict[str, Any] = {"model": "openai/whisper-1", "api_key": "no-key", "max_retries": 0, "timeout": 60}


def call(**options: Any) -> Any:
    with RU.open("rb") as file:
        return litellm.transcription(file=file, **{**OPTIONS, **options})


def error_of(function: Any) -> dict[str, Any]:
    try:
        function()
    except Exception as error:
        return {"class": type(error).__name__, "status": getattr(error, "status_code", None), "message": str(error)}
    return {"class": None}


def transcriptions() -> dict[str, Any]:
    words = call(response_format="verbose_json", timestamp_granularities=["word"])
    return {
        "default": call().model_dump(),
        "words": words.model_dump(),
        "language": call(language="ru", temperature=0, prompt="Код").text,
        "text": call(response_format="text").text,
        "srt": call(response_format="srt").text,
        "other": call(model="openai/gigaam-test").text,
    }


def errors() -> dict[str, Any]:
    return {
        "model": error_of(lambda: call(model="openai/no-such-model")),
        "language": error_of(lambda: call(language="klingon")),
    }


def keys() -> dict[str, Any]:
    """At a service that takes one key, and one recording a minute of each."""
    return {
        "wrong": error_of(lambda: call(api_key="w" * 16)),
        "right": call(api_key="4" * 16).text,
        "again": error_of(lambda: call(api_key="4" * 16)),
    }


if __name__ == "__main__":
    found: dict[str, Any] = {}
    for argument in sys.argv[2:]:
        name, url = argument.split("=", 1)
        OPTIONS["api_base"] = f"{url}/v1"
        found[name] = globals()[name]()
    print(json.dumps(found))
