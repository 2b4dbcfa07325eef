"""The options of a task as callers write them: as text in a form or a query, or as JSON.

One table names them all; the OpenAPI description is made of it. What is not in it is refused by its name, so that a
slip of the pen does not silently cost somebody an hour of transcribing with the wrong options.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stenograf.errors import OptionInvalidError
from stenograf.jobs.job import DEFAULT_PRIORITY
from stenograf.jobs.webhooks import validate_secret
from stenograf.options import MAX_BEAM_SIZE, MAX_PROMPT_CHARACTERS, Options

MAX_TRIM = 1e9
"""Seconds."""

MAX_RETENTION = 1e10
"""Seconds, some 300 years; as in the settings."""

MAX_ADDRESS_CHARACTERS = 2000
"""Of a webhook's address or a recording's; some servers take no more."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The options of one request, each of the right type and in its range."""

    options: Mapping[str, Any]
    """Those of the transcription, as they are stored with the job; what was not given is not here."""
    priority: int = DEFAULT_PRIORITY
    retention: float | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """An option that callers may give."""

    read: Callable[[str, Any], Any]
    """Its name and what was sent -> its value; raises `OptionInvalidError`."""
    about: str
    schema: Mapping[str, Any]
    """Its type in OpenAPI."""


def invalid(option: str, message: str, hint: str) -> OptionInvalidError:
    """The error for an option; the interfaces that have a place for the name of it find it in `option`."""
    error = OptionInvalidError(message, hint)
    error.__dict__["option"] = option
    return error


def read(sent: Iterable[tuple[str, Any]]) -> Parameters:
    """The options out of names and values; those that are empty or null count as not given.

    Raises `OptionInvalidError` and `LanguageUnknownError`, for the first that is unknown, given twice, of the wrong
    type or out of its range.
    """
    values: dict[str, Any] = {}
    for name, value in sent:
        if name not in PARAMETERS:
            near = difflib.get_close_matches(name[:40].lower(), PARAMETERS, n=1)
            shown = name if len(name) <= 40 else f"{name[:39]}…"
            raise invalid(
                shown,
                f"There is no option {shown!r}.",
                f"Did you mean {near[0]}?" if near else f"The options are {', '.join(PARAMETERS)}.",
            )
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        checked = PARAMETERS[name].read(name, value)
        if values.setdefault(name, checked) != checked:
            raise invalid(name, f"The option {name} is given twice, with different values.", "Give it once.")
    if values.get("webhook_secret") and not values.get("webhook_url"):
        raise invalid("webhook_secret", "There is a webhook_secret and no webhook_url.", "Give both, or neither.")
    apart = {name: values.pop(name) for name in ("priority", "retention", "webhook_url", "webhook_secret")
             if name in values}  # fmt: skip
    return Parameters({name: value for name, value in values.items() if value is not None}, **apart)


def schema() -> dict[str, Any]:
    """The options as the properties of an object in OpenAPI."""
    return {name: {**item.schema, "description": item.about} for name, item in PARAMETERS.items()}


def _text(most: int) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise invalid(name, f"The option {name} is no text.", "Write it in quotes.")
        text = value.strip()
        if len(text) > most:
            raise invalid(name, f"The option {name} has {len(text)} characters.", f"Give at most {most}.")
        if re.search(r"[\x00\ud800-\udfff]", text):
            raise invalid(name, f"The option {name} holds what is no character.", "Send it as UTF-8.")
        return text

    return parse


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def parse(name: str, value: Any) -> int:
        text = value.strip() if isinstance(value, str) else value
        number = int(text) if isinstance(text, str) and re.fullmatch(r"[+-]?[0-9]{1,10}", text) else text
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise invalid(name, f"{_shown(value)} is no {name}.", f"Give a whole number from {least} to {most}.")
        return number

    return parse


def _number(least: float, most: float, unit: str = "") -> Callable[[str, Any], float]:
    def parse(name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not least <= number <= most:
            what = f"a number{unit}"
            raise invalid(name, f"{_shown(value)} is no {name}.", f"Give {what} from {least:g} to {most:g}.")
        return number

    return parse


def _flag(name: str, value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise invalid(name, f"{_shown(value)} is no {name}.", "Give true or false.")


def _named(name: str, value: Any) -> str:
    """A language or a task: `Options` knows them."""
    text = _text(40)(name, value)
    options = _checked(name, text.lower() if name == "task" else text)
    # "auto" has to stay: without it the language of the settings would be taken.
    return getattr(options, name) or "auto"


def _checked(name: str, value: Any) -> Options:
    try:
        return Options(**{name: value})
    except OptionInvalidError as error:
        raise invalid(name, error.message, error.hint) from None


def _no_speakers(name: str, value: Any) -> None:
    """Speakers cannot be told apart yet; who asks for none may say so."""
    given = isinstance(value, int | str) and str(value).strip().lower() in ("false", "0", "no", "off")
    if not given:
        raise invalid(name, "This version cannot tell speakers apart yet.", f"Leave {name} out.")


def _secret(name: str, value: Any) -> str:
    text = _text(200)(name, value)
    try:
        validate_secret(text)
    except OptionInvalidError as error:
        raise invalid(name, error.message, error.hint) from None
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


PARAMETERS: Mapping[str, Parameter] = {
    "model": Parameter(
        _text(200), "The model, by its name in `/api/v1/models`; default: the service's own.", {"type": "string"}
    ),
    "language": Parameter(
        _named, "ISO 639 code or name of the language; `auto`: detect it.", {"type": "string", "examples": ["ru"]}
    ),
    "task": Parameter(
        _named,
        "`transcribe` writes the language that is spoken, `translate` writes English.",
        {"type": "string", "enum": ["transcribe", "translate"]},
    ),
    "prompt": Parameter(
        _text(MAX_PROMPT_CHARACTERS),
        "Text that could stand before the recording: it sets the spelling of names and the style.",
        {"type": "string", "maxLength": MAX_PROMPT_CHARACTERS},
    ),
    "hotwords": Parameter(
        _text(MAX_PROMPT_CHARACTERS),
        "Words to look out for, separated by spaces or commas.",
        {"type": "string", "maxLength": MAX_PROMPT_CHARACTERS},
    ),
    "temperature": Parameter(
        _number(0, 1), "Randomness of the decoding.", {"type": "number", "minimum": 0, "maximum": 1}
    ),
    "beam_size": Parameter(
        _whole(1, MAX_BEAM_SIZE),
        "Candidates kept while decoding; 1 is the fastest.",
        {"type": "integer", "minimum": 1, "maximum": MAX_BEAM_SIZE},
    ),
    "word_timestamps": Parameter(_flag, "Give the time of each word.", {"type": "boolean"}),
    "vad": Parameter(_flag, "Look for speech first and leave out the rest.", {"type": "boolean"}),
    "diarize": Parameter(_no_speakers, "Tell speakers apart; not there yet.", {"type": "boolean"}),
    "speakers": Parameter(_no_speakers, "How many speak; not there yet.", {"type": "integer"}),
    "trim": Parameter(
        _number(0, MAX_TRIM, " of seconds"),
        "Seconds: read the start only; 0: all.",
        {"type": "number", "minimum": 0, "maximum": MAX_TRIM},
    ),
    "priority": Parameter(
        _whole(1, 9),
        f"1 is the most urgent, 9 the least; default: {DEFAULT_PRIORITY}.",
        {"type": "integer", "minimum": 1, "maximum": 9},
    ),
    "webhook_url": Parameter(
        _text(MAX_ADDRESS_CHARACTERS),
        "Where to send a message when the task ends.",
        {"type": "string", "pattern": "^(https?://.+)?$", "maxLength": MAX_ADDRESS_CHARACTERS},
    ),
    "webhook_secret": Parameter(
        _secret, "What the message is signed with: `whsec_` and base64 of 24 to 64 bytes.", {"type": "string"}
    ),
    "retention": Parameter(
        _number(0, MAX_RETENTION, " of seconds"),
        "Seconds that recording and result are kept after the end; 0: until they are deleted.",
        {"type": "number", "minimum": 0, "maximum": MAX_RETENTION},
    ),
}
"""All options of a task by name."""
