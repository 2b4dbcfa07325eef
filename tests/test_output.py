"""A transcript -> a file, whole or not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stenograf.errors import DiskFullError, FormatUnknownError, OutputExistsError, OutputForbiddenError
from stenograf.formats import FORMATS, render
from stenograf.output import check_writable, file_name, save
from transcripts import GOLDEN


@pytest.mark.parametrize("name", FORMATS)
def test_the_suffix_tells_the_format(tmp_path: Path, name: str) -> None:
    path = save(GOLDEN, tmp_path / "new" / "folder" / f"текст 🎤{FORMATS[name].suffix}")
    assert path.read_bytes() == render(GOLDEN, name)
    assert os.listdir(path.parent) == [path.name]


def test_a_format_that_is_named_wins(tmp_path: Path) -> None:
    assert save(GOLDEN, tmp_path / "a.out", "srt").read_bytes() == render(GOLDEN, "srt")


@pytest.mark.parametrize("name", ["a", "a.mp3", ".srt"])
def test_a_name_that_tells_no_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatUnknownError):
        save(GOLDEN, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"a\.txt"):
        save(GOLDEN, path)
    assert path.read_text() == "mine"
    save(GOLDEN, path, overwrite=True)
    assert path.read_bytes() == render(GOLDEN, "txt")


def test_the_longest_names(tmp_path: Path) -> None:
    stem = "я" * 125 + "a"  # 251 bytes
    name = file_name(stem, ".json")
    assert len(os.fsencode(name)) <= 255
    assert name.endswith(".json")
    assert save(GOLDEN, tmp_path / name).exists()
    assert file_name("short", ".srt") == "short.srt"
    assert file_name(stem + "1", ".json") != file_name(stem + "2", ".json")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_half_written(small_disk: Path) -> None:
    old = small_disk / "old.txt"
    old.write_text("old")
    (small_disk / "filler").write_bytes(b"x" * 56 * 1024)
    with pytest.raises(DiskFullError) as caught:
        save(GOLDEN, old, "docx", overwrite=True)
    assert "old.txt" in caught.value.message
    assert sorted(os.listdir(small_disk)) == ["filler", "old.txt"]
    assert old.read_text() == "old"


def test_a_folder_that_may_not_be_written(tmp_path: Path, unprivileged: None) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    for attempt in (lambda: save(GOLDEN, folder / "a.txt"), lambda: check_writable(folder)):
        with pytest.raises(OutputForbiddenError) as caught:
            attempt()
        assert str(folder) in caught.value.message


def test_a_file_where_a_folder_is_due(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputForbiddenError):
        save(GOLDEN, tmp_path / "file" / "a.txt")
