"""The form fields of OpenAI's audio API -> the options of a job, and the shape of the answer.

What its clients send has to be taken as they send it: lists come as `name[]`, as `name` or as `name[0]`, and empty
values count as not given.

| field | becomes |
|---|---|
| `model` | a model by its name here; OpenAI's names stand for the service's default model |
| `language`, `languages[]` | the language; of several `languages[]` the model finds out which it is |
| `prompt` | `prompt`; of one that is too long its end, which is all that a model reads |
| `keywords[]`, `hotwords` | `hotwords` |
| `temperature` | `temperature`; 0 is our default, which also rises by itself where a passage comes out as a loop |
| `timestamp_granularities[]` | what `verbose_json` holds; `word` asks for `word_timestamps` |
| `vad_filter`, `vad`, `beam_size`, `word_timestamps`, `trim`, `retention` | the options of that name in `/api/v1` |
| `chunking_strategy` | nothing: recordings are always cut where nobody speaks |
| `include[]` | nothing: the models here give no log-probability of single tokens, and `logprobs` is optional |
| `known_speaker_...`, `diarize`, `speakers` | an error: speakers cannot be told apart yet |
| other options of `/api/v1`, such as `webhook_url` | an error: a call that waits for its answer has no use for them |
| any other | nothing; OpenAI's clients and proxies add fields of their own, such as `user` |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stenograf.api.parameters import PARAMETERS, Parameters, invalid
from stenograf.errors import FormatUnknownError
from stenograf.options import MAX_PROMPT_CHARACTERS, Task

MODELS = ("whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
"""OpenAI's names for models that write down what is said; versions of them end with a date."""

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")

Granularity = Literal["segment", "word"]

_OPTIONS = {name: name for name in ("language", "prompt", "hotwords", "temperature", "beam_size", "word_timestamps",
                                    "vad", "trim", "retention", "diarize", "speakers")}  # fmt: skip
_OPTIONS["vad_filter"] = "vad"
"""Field -> the option that it is."""

_LISTED = ("model", "languages", "keywords", "response_format", "stream", "timestamp_granularities", "include",
           "chunking_strategy")  # fmt: skip
_flag = PARAMETERS["vad"].read
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    parameters: Parameters
    response_format: str
    stream: bool
    granularities: frozenset[Granularity]
    """What `verbose_json` is to hold."""

    @property
    def task(self) -> Task:
        """`transcribe` or `translate`."""
        task: Task = self.parameters.options.get("task", "transcribe")
        return task

    @property
    def temperature(self) -> float:
        """As it was asked for, 0 where it was not."""
        return float(self.parameters.options.get("temperature", 0.0))


def read(fields: Iterable[tuple[str, str]], task: Task = "transcribe") -> Asked:
    """What the fields of a form ask for. Raises `OptionInvalidError`, `LanguageUnknownError`, `FormatUnknownError`.

    A translation is always into English, so `language` means nothing there, as with OpenAI.
    """
    sent: dict[str, list[str]] = {}
    for name, value in fields:
        if value.strip():
            sent.setdefault(name.partition("[")[0], []).append(value)
    _refuse(sent)
    last = {name: values[-1] for name, values in sent.items()}
    response_format = _format(last)
    stream = _flag("stream", last.get("stream", "false"))
    if stream and response_format in ("srt", "vtt"):
        raise invalid("response_format", f"A stream is not written as {response_format}.", "Take json.")
    granularities = _granularities(sent.get("timestamp_granularities", []))
    options = _options(last, sent)
    if task == "translate":
        options.pop("language", None)
        options["task"] = task
    retention = options.pop("retention", None)
    # Subtitles are cut better by the times of words; the other formats would not show them.
    if "word" in granularities and response_format in ("verbose_json", "srt", "vtt"):
        options["word_timestamps"] = True
    if options.get("word_timestamps"):
        granularities |= {"word"}
    return Asked(Parameters(options, retention=retention), response_format, stream, granularities)


def is_alias(model: str) -> bool:
    """Whether it is one of OpenAI's names, which stand for the default model."""
    return re.sub(r"-\d{4}-\d\d-\d\d$", "", model) in MODELS


def _refuse(sent: Mapping[str, object]) -> None:
    for name in sent:
        if name.startswith("known_speaker_"):
            raise _speakers(name, f"Leave {name}[] out.")
        if name in _OPTIONS or name in _LISTED:
            continue
        if name in PARAMETERS and name != "task":
            raise invalid(name, f"The option {name} means nothing here.", "Leave it out, or use /api/v1/transcribe.")
        _log.debug("the field %.40r is passed over", name)


def _options(last: Mapping[str, str], sent: Mapping[str, list[str]]) -> dict[str, Any]:
    texts = dict(last)
    if "prompt" in texts:
        texts["prompt"] = texts["prompt"].strip()[-MAX_PROMPT_CHARACTERS:]
    if "keywords" in sent:
        texts["hotwords"] = ", ".join([*sent["keywords"], *sent.get("hotwords", [])])
    if "language" not in texts and "languages" in sent:
        # Not left out: the language of the settings may be none of them.
        texts["language"] = sent["languages"][0] if len(set(sent["languages"])) == 1 else "auto"
    values = {_OPTIONS[name]: PARAMETERS[_OPTIONS[name]].read(name, text) for name, text in texts.items()
              if name in _OPTIONS}  # fmt: skip
    if not values.get("temperature"):
        values.pop("temperature", None)
    model = last.get("model", "").strip()
    if model == "gpt-4o-transcribe-diarize":
        raise _speakers("model", "Take another model.")
    if model and not is_alias(model):
        values["model"] = PARAMETERS["model"].read("model", model)
    return {name: value for name, value in values.items() if value is not None}


def _format(last: Mapping[str, str]) -> str:
    name = last.get("response_format", "json").strip()
    if name == "diarized_json":
        raise _speakers("response_format", "Take verbose_json.")
    if name not in FORMATS:
        raise FormatUnknownError(f"There is no response_format {name[:40]!r}.", f"Take one of {', '.join(FORMATS)}.")
    return name


def _granularities(sent: Collection[str]) -> frozenset[Granularity]:
    known: dict[str, Granularity] = {"segment": "segment", "word": "word"}
    for text in sent:
        if text not in known:
            raise invalid("timestamp_granularities", f"There are no times of {text[:40]!r}.", "Take segment, word.")
    return frozenset(known[text] for text in sent) or frozenset({"segment"})


def _speakers(name: str, hint: str) -> Exception:
    return invalid(name, "This version cannot tell speakers apart yet.", hint)
