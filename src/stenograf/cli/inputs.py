"""What the command line is to transcribe: files and folders -> recordings, and where their results go."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stenograf.audio import MEDIA_SUFFIXES
from stenograf.errors import FileMissingError, NothingToDoError, OptionInvalidError
from stenograf.formats import FORMATS
from stenograf.output import file_name


@dataclass(frozen=True, slots=True)
class Recording:
    """A file to transcribe."""

    path: Path
    """Where it is."""
    below: Path
    """Its path below the folder that was named; its bare name where it was named itself."""
    name: str = ""
    """How messages call it, where the path would mislead."""

    @property
    def home(self) -> Path:
        """The folder where results go that have no other place: beside it, or here if it came by a pipe."""
        return Path() if self.name else self.path.parent

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self.name or str(self.path)


def collect(
    files: Sequence[Path], folders: Sequence[Path], *, recursive: bool, output: Path | None = None
) -> list[Recording]:
    """The recordings that were named, in the order given, folders sorted by name, each file once.

    A positional argument may be either; a file that is named is taken whatever it is, even where it is missing (its
    turn will tell). `output` is left out of what a folder holds. Raises `FileMissingError` for a folder that is not
    there and `NothingToDoError` for folders that hold no recording.
    """
    found: dict[Path, Recording] = {}
    for path in (*files, *folders):
        if path.is_dir():
            for item in _in_folder(path, recursive, output):
                found.setdefault(_identity(item.path), item)
        elif path in folders:
            if path.exists():
                raise NothingToDoError(f"{path} is a file, not a folder.", "Give it with --file.")
            raise FileMissingError(f"The folder {path} does not exist.", "Check the path and the spelling.")
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


def targets(
    recordings: Sequence[Recording], formats: Sequence[str], output: Path | None
) -> dict[Recording, dict[str, Path]]:
    """Where each recording's results go: beside it, or below the folder `output`, or to the file `output`.

    Two recordings that would write the same file keep their suffix in the result's name (`a.ogg.srt`, `a.mp3.srt`).
    """
    if output is not None and _is_file_name(output, formats):
        if len(recordings) > 1 or len(formats) > 1:
            raise OptionInvalidError(
                f"--output {output} names one file, but there is more than one result to write.",
                "Give a folder.",
            )
        return {recordings[0]: {formats[0]: output}}
    folders = {item: item.home if output is None else output / item.below.parent for item in recordings}
    taken = Counter((folders[item], item.below.stem.casefold()) for item in recordings)
    result = {}
    for item in recordings:
        alone = taken[folders[item], item.below.stem.casefold()] == 1
        stem = item.below.stem if alone else item.below.name
        result[item] = {name: folders[item] / file_name(stem, FORMATS[name].suffix) for name in formats}
    return result


@contextmanager
def standard_input() -> Iterator[Recording]:
    """The recording that comes in by stdin, kept in a temporary file while it is read: formats such as mp4 seek."""
    with tempfile.NamedTemporaryFile(prefix="stenograf-", suffix=".media") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Recording(Path(file.name), Path("stdin"), name="standard input")


def output_format(output: Path | None) -> str | None:
    """The format that the name of the output tells, if it is the name of a file."""
    if output is None or output.is_dir():
        return None
    suffix = output.suffix.lower()
    return next((name for name, item in FORMATS.items() if item.suffix == suffix), None)


def _is_file_name(output: Path, formats: Iterable[str]) -> bool:
    return not output.is_dir() and output.suffix.lower() in {FORMATS[name].suffix for name in formats}


def _in_folder(folder: Path, recursive: bool, output: Path | None) -> Iterator[Recording]:
    """Recordings in a folder. Hidden files and folders are passed over, links to folders are not followed."""
    skip = None if output is None else _identity(output)
    for here, below, names in os.walk(folder):
        below[:] = sorted(
            name for name in below if recursive and not name.startswith(".") and _identity(Path(here, name)) != skip
        )
        for name in sorted(names):
            path = Path(here, name)
            if path.suffix.lower() in MEDIA_SUFFIXES and not name.startswith("."):
                yield Recording(path, path.relative_to(folder))


def _identity(path: Path) -> Path:
    return Path(os.path.realpath(path))
