"""Kinds of arguments that several commands take."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click


class Name(click.Path):
    """The name of a file or folder, there or not; an empty one, as of a variable that is not set, is a mistake."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if str(value) == "":
            self.fail("The name is empty.", param, ctx)
        return super().convert(value, param, ctx)


class Duration(click.ParamType[float]):
    """A length of time: `90`, `0.5`, `0,5`, `1:30` or `1:02:03`; gives seconds."""

    name = "duration"

    _FORM = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d*)?)")

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = self._FORM.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no length of time. Write seconds, such as 90 or 0.5, or 1:30.", param, ctx)
        hours, minutes, seconds = match.groups(default="0")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


NAME = Name()
DURATION = Duration()
