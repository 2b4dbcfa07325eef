"""How the values of settings are read from text; each raises ValueError, which says what to write instead."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

from stenograf.errors import LanguageUnknownError
from stenograf.languages import language_code

COMPUTE_TYPES = (
    "auto", "default", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16",
    "float32",
)  # fmt: skip
"""CTranslate2's names for number formats; other engines know some of them."""


def flag(text: str) -> bool:
    """Yes or no."""
    lower = text.lower()
    if lower in ("1", "true", "yes", "on"):
        return True
    if lower in ("0", "false", "no", "off"):
        return False
    raise ValueError("write true or false")


def path_of(text: str) -> Path:
    """A path; `~` is the home folder."""
    try:
        return Path(text).expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"write a full path ({error})") from error


def device(text: str) -> str:
    """A device to compute on."""
    lower = text.lower()
    if lower in ("auto", "cpu", "cuda") or (lower.startswith("cuda:") and lower[5:].isdigit()):
        return lower
    raise ValueError("write auto, cpu, cuda or cuda:N")


def model(text: str) -> str:
    """A model's name or path; `auto` in any case of letters."""
    return "auto" if text.lower() == "auto" else text


def language(text: str) -> str | None:
    """A language code; None for auto."""
    try:
        return language_code(text)
    except LanguageUnknownError as error:
        raise ValueError(f"{error.message} {error.hint}") from error


def seconds(text: str) -> float | None:
    """Seconds; None for 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError("write a number of seconds, 0 for all")
    return seconds or None


def count(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        number = int(text) if text.lstrip("-").isdecimal() else None
        if number is None or not least <= number <= most:
            raise ValueError(f"write a whole number from {least} to {most}")
        return number

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """A parser of numbers within bounds."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            raise ValueError(f"write a number from {least:g} to {most:g}")
        return number

    return parse


def listed(text: str) -> tuple[str, ...]:
    """`a, b;c` and `["a", "b"]`, as other programs write lists in a `.env`."""
    parts = re.split(r"[,;\s]+", text.strip().removeprefix("[").removesuffix("]"))
    return tuple(dict.fromkeys(part for raw in parts if (part := raw.strip().strip("\"'"))))


def suffixes(text: str) -> tuple[str, ...]:
    """File endings: `.mp3`."""
    return tuple("." + part.lower().lstrip("*").lstrip(".") for part in listed(text))


def networks(text: str) -> tuple[str, ...]:
    """Addresses and networks."""
    for part in listed(text):
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            raise ValueError(f"write addresses or networks such as 10.0.0.0/8; {part!r} is none") from None
    return listed(text)


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages as browsers send them: a scheme, a name and a port that is not the usual one; or `*`."""
    found = tuple(part.rstrip("/").lower() for part in listed(text))
    for part in found:
        if part != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s@]+", part):
            raise ValueError(f"write origins such as https://app.example.org; {part!r} is none")
    return found


def choice(*choices: str) -> Callable[[str], str]:
    """A parser of one word of several."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"write {', '.join(choices[:-1])} or {choices[-1]}")
        return text.lower()

    return parse


def queue_name(text: str) -> str:
    """The start of the names of queues."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", text):
        raise ValueError("write letters, digits and _ . : -")
    return text


def needs(text: str) -> tuple[str, ...]:
    """`gpu`, `cpu` or both."""
    found = tuple(part.lower() for part in listed(text))
    if not set(found) <= {"gpu", "cpu"}:
        raise ValueError("write gpu, cpu or gpu,cpu")
    return found


def bucket(text: str) -> str:
    """A bucket of an object store, and maybe a folder in it."""
    if not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9.-]{1,61}[A-Za-z0-9](/[^?#\s]*)?", text):
        raise ValueError(
            "write s3://bucket or s3://bucket/folder; a bucket's name has 3 to 63 letters, digits, . and -"
        )
    return text.rstrip("/")


def web_address(text: str) -> str:
    """The address of a web server, without a slash at its end."""
    if not re.match(r"https?://[^/?#\s]+", text):
        raise ValueError("write an address such as https://stenograf.example.org")
    return text.rstrip("/")


def level(text: str) -> str:
    """A level of logging."""
    levels = ("debug", "info", "warning", "error")
    level = {"warn": "warning", "critical": "error", "fatal": "error"}.get(text.lower(), text.lower())
    if level not in levels:
        raise ValueError(f"write one of {', '.join(levels)}")
    return level
