"""What the command line is to transcribe: files and folders -> recordings, and where their results go."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stenograf.audio import MEDIA_SUFFIXES
from stenograf.cli.console import printable
from stenograf.errors import (
    FileForbiddenError,
    FileMissingError,
    InputError,
    NothingToDoError,
    OptionInvalidError,
    StenografError,
)
from stenograf.formats import FORMATS
from stenograf.output import file_name

STANDARD_INPUT = Path("-")
"""How standard input is named."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A file to transcribe."""

    path: Path
    """Where it is."""
    below: Path
    """Its path below the folder that was named; its bare name where it was named itself."""
    problem: StenografError | None = None
    """Why it cannot even be looked for, such as a folder that may not be read."""

    @property
    def is_standard_input(self) -> bool:
        """Whether it comes in by a pipe."""
        return self.path == STANDARD_INPUT

    @property
    def source(self) -> Path | BinaryIO:
        """What to read."""
        return sys.stdin.buffer if self.is_standard_input else self.path

    @property
    def home(self) -> Path:
        """The folder where results go that have no other place."""
        return self.path.parent

    @property
    def listed(self) -> str:
        """How JSON calls it."""
        return "standard input" if self.is_standard_input else str(self.path)

    @property
    def shown(self) -> str:
        """How messages call it."""
        return printable(self.listed)


def collect(
    files: Sequence[Path], folders: Sequence[Path], *, recursive: bool, output: Path | None = None
) -> list[Recording]:
    """The recordings that were named, in the order given, folders sorted by name, each file once.

    A positional argument may be either; a file that is named is taken whatever it is, even where it is missing (its
    turn will tell). `output` is left out of what a folder holds. Raises `NothingToDoError` for folders that hold no
    recording.
    """
    found: dict[Path, Recording] = {}
    for path in (*files, *folders):
        if is_folder(path):
            for item in _in_folder(path, recursive, output):
                found.setdefault(_identity(item.path), item)
        elif path in folders:
            found.setdefault(_identity(path), Recording(path, Path(path.name), _no_folder(path)))
        else:
            found.setdefault(_identity(path), Recording(path, Path(path.name)))
    if not found:
        names = ", ".join(str(path) for path in (*files, *folders))
        raise NothingToDoError(
            f"No recordings were found in {names}.",
            "Recordings are known by their suffix (.ogg, .mp3, .m4a, .wav, .mp4, ...); "
            + ("name a file to have it tried." if recursive else "use --recursive to look into folders below."),
        )
    return list(found.values())


def _no_folder(path: Path) -> InputError:
    if os.path.lexists(path):
        return InputError(f"{path} is a file, not a folder.", "Give it with --file.")
    return FileMissingError(f"The folder {path} does not exist.", "Check the path and the spelling.")


def standard_input() -> Recording:
    """The recording that comes in by a pipe."""
    if sys.stdin is None:
        raise FileMissingError("There is no standard input.", "Name a recording instead of -.")
    return Recording(STANDARD_INPUT, Path("stdin"))


def targets(
    recordings: Sequence[Recording], formats: Sequence[str], output: Path | None
) -> dict[Recording, dict[str, Path]]:
    """Where each recording's results go: beside it, or below the folder `output`, or to the file `output`.

    Recordings of one folder that differ in their suffix only keep it in the result's name (`a.ogg.srt`, `a.mp3.srt`),
    also where only one of them is named: the name of a result must not depend on how the recording was named. Raises
    `OptionInvalidError` where two would write the same file, or where a result would replace a recording.
    """
    if output is not None and not is_folder(output) and output_format(output) in formats:
        if len(recordings) > 1 or len(formats) > 1:
            raise OptionInvalidError(
                f"--output {output} names one file, but there is more than one result to write.",
                "Give a folder.",
            )
        result = {recordings[0]: {formats[0]: output}}
    else:
        folders = {item: item.home if output is None else output / item.below.parent for item in recordings}
        shared = _shared_stems({item.path.parent for item in recordings if not item.is_standard_input})
        result = {}
        for item in recordings:
            alone = (item.path.parent, item.below.stem.casefold()) not in shared
            stem = item.below.stem if alone else item.below.name
            result[item] = {name: folders[item] / file_name(stem, FORMATS[name].suffix) for name in formats}
    _expect_no_clash(result)
    return result


def _shared_stems(folders: set[Path]) -> set[tuple[Path, str]]:
    """Folder and stem of the recordings that differ in their suffix only."""
    counts: Counter[tuple[Path, str]] = Counter()
    for folder in folders:
        with contextlib.suppress(OSError):
            counts.update(
                (folder, path.stem.casefold()) for path in folder.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES
            )
    return {place for place, count in counts.items() if count > 1}


def _expect_no_clash(result: dict[Recording, dict[str, Path]]) -> None:
    owners = {_folded(item.path): item for item in result}
    for item, paths in result.items():
        for path in paths.values():
            other = owners.setdefault(_folded(path), item)
            if other.path == path or _identity(other.path) == _identity(path):
                raise OptionInvalidError(
                    f"The result {path} would replace the recording {other.shown}.", "Give another folder to --output."
                )
            if other is not item:
                raise OptionInvalidError(
                    f"{other.shown} and {item.shown} would both be written to {path}.",
                    "Transcribe them one after the other into different folders (--output).",
                )


def _folded(path: Path) -> str:
    # Some file systems take a.txt and A.txt for one.
    return str(_identity(path)).casefold()


def output_format(output: Path | None) -> str | None:
    """The format that the name of the output tells; None where it is a folder or tells none."""
    if output is None or is_folder(output):
        return None
    suffix = output.suffix.lower()
    return next((name for name, item in FORMATS.items() if item.suffix == suffix), None)


def is_folder(path: Path) -> bool:
    """Whether it is a folder that can be seen; what cannot even be asked for is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _in_folder(folder: Path, recursive: bool, output: Path | None) -> Iterator[Recording]:
    """Recordings in a folder. Hidden files and folders are passed over, links to folders are not followed."""
    skip = None if output is None else _identity(output)
    problems: list[OSError] = []
    for here, below, names in os.walk(folder, onerror=problems.append):
        below[:] = sorted(
            name for name in below if recursive and not name.startswith(".") and _identity(Path(here, name)) != skip
        )
        for name in sorted(names):
            path = Path(here, name)
            if path.suffix.lower() in MEDIA_SUFFIXES and not name.startswith(".") and path.is_file():
                yield Recording(path, path.relative_to(folder))
    for error in problems:
        path = Path(error.filename)
        problem = FileForbiddenError(f"The folder {path} cannot be read ({error.strerror}).", "It is passed over.")
        yield Recording(path, Path(path.name), problem)


def _identity(path: Path) -> Path:
    return Path(os.path.realpath(path))
