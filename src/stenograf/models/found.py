"""A model's place, examined: can it be loaded, and is it still what was downloaded?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from stenograf.errors import ModelDamagedError, ModelUnknownError
from stenograf.models import catalog
from stenograf.models.download import Plan, digest_of
from stenograf.models.layout import Layout, detect, file_in, files_of, is_weights, read_json, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from stenograf.models.catalog import CatalogEntry, EngineName

Source = Literal["models folder", "hub cache", "whisper cache", "path"]

MANIFEST = "stenograf.json"
"""Lies beside the files of a downloaded model and says what they are and what their hashes should be."""


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be loaded."""

    name: str
    engine: EngineName
    path: Path
    """Its folder, or its `.pt` file."""

    onnx_type: str | None
    """What `onnx_asr.load_model` wants as `model`; None for other engines."""

    entry: CatalogEntry | None
    """None for a model that is not in the catalog."""

    quantization: str | None = None
    """What `onnx_asr.load_model` wants as `quantization`."""

    source: Source = "models folder"


@dataclass(frozen=True)
class Installed:
    """A line of `stenograf models list`."""

    name: str
    path: Path
    bytes: int
    engine: EngineName | None
    """None where it cannot be told."""

    source: Source
    entry: CatalogEntry | None = None
    problem: str = ""
    """What is wrong with it, as a sentence; empty if it can be used."""


def examine(name: str, folder: Path, entry: CatalogEntry | None, source: Source) -> ModelFiles:
    """The model in a folder, by names and sizes only, so that it takes no time.

    Raises `ModelUnknownError` if there is none, `ModelDamagedError` if something of it is missing.
    """
    layout = detect(folder, entry)
    if layout is None:
        raise ModelUnknownError(
            f"{folder} holds neither a CTranslate2 Whisper model (model.bin) nor one of onnx-asr (*.onnx) "
            "or openai-whisper (a single *.pt).",
            "Weights of Transformers are converted with "
            "`ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json`.",
        )
    if layout.missing:
        raise damaged(name, folder, entry, f"{_listed(layout.missing)} missing")
    if wrong := _wrong_sizes(folder):
        raise damaged(name, folder, entry, f"{_listed(wrong)} missing or not of the right length")
    if entry is not None and not _is(layout, entry):
        entry = None  # another model in a folder of this name
    return ModelFiles(name, layout.engine, folder, layout.onnx_type, entry, layout.quantization, source)


def describe(name: str, folder: Path, entry: CatalogEntry | None, source: Source) -> Installed:
    """As `examine`, with what is wrong as a part of the answer."""
    size = sum(files_of(folder).values())
    try:
        files = examine(name, folder, entry, source)
    except (ModelDamagedError, ModelUnknownError) as error:
        engine = entry.engine if entry else None
        return Installed(name, folder, size, engine, source, entry, error.message)
    return Installed(name, folder, size, files.engine, source, files.entry)


def was_pulled(folder: Path) -> bool:
    """Whether the model was downloaded, and so verified, by us."""
    return bool(_manifest(folder))


def holds(folder: Path, entry: CatalogEntry) -> bool:
    """Whether all files of this model are in the place."""
    layout = detect(folder, entry)
    return layout is not None and not layout.missing and _is(layout, entry) and not _wrong_sizes(folder)


def holding_snapshot(root: Path, entry: CatalogEntry) -> Path | None:
    """Where a Hugging Face cache at `root` has this model, all of it."""
    folder = snapshot(root, entry.repo) if entry.repo else None
    return folder if folder and holds(folder, entry) else None


def hashes(folder: Path) -> dict[str, str]:
    """The hash that each file should have: from the manifest, else from the names of a hub cache's blobs.

    Those of openai-whisper's own `.pt` files are known by their names.
    """
    if files := _manifest(folder):
        return {name: str(facts["sha256"]) for name, facts in files.items()}
    named = {name: entry.sha256 for name in files_of(folder) if (entry := catalog.find(name)) and entry.sha256}
    if named:
        return named
    blobs = {name: file_in(folder, name).resolve() for name in files_of(folder)}
    return {
        name: blob.name for name, blob in blobs.items() if blob.parent.name == "blobs" and len(blob.name) in (40, 64)
    }


def write_manifest(folder: Path, entry: CatalogEntry, plan: Plan) -> None:
    """Say what the files of this folder are, for `stenograf models verify` and for people."""
    sha256 = "0" * 64
    manifest = {
        "name": entry.name,
        "repo": plan.repo,
        "revision": plan.revision,
        "licence": entry.licence,
        "pulled": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            file.path: {"size": file.size, "sha256": digest_of(folder / file.path, like=sha256)}
            if len(file.digest) != len(sha256)
            else {"size": file.size, "sha256": file.digest}
            for file in plan.files
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def not_as_published(file: Path, sha256: str | None = None) -> ModelDamagedError:
    """The error for a `.pt` file of OpenAI's name whose content has another hash: `sha256`, if that is known."""
    entry = catalog.find(file.name)
    official = entry.name if entry else file.name
    truly = next((other.name for other in catalog.ENTRIES if sha256 and other.sha256 == sha256), None)
    if truly:
        return ModelDamagedError(f"{file} is not {official} but {truly}, by its hash.", f"Rename it to {truly}.")
    return ModelDamagedError(
        f"{file} is damaged or half-downloaded: its hash is not that of {official}.",
        f"Remove it, or let `stenograf models pull {official}` fetch a good one; your own weights need another name.",
    )


def damaged(name: str, folder: Path, entry: CatalogEntry | None, what: str) -> ModelDamagedError:
    """`what` goes on from a colon: `model.bin is missing`."""
    again = f"`stenograf models pull {entry.name}` fetches what is wrong." if entry else "Copy them there again."
    return ModelDamagedError(f"The model {name} in {folder} is damaged: {what}.", again)


def _is(layout: Layout, entry: CatalogEntry) -> bool:
    ours, its = (layout.onnx_type, layout.quantization), (entry.onnx_type, entry.quantization)
    return layout.engine == entry.engine and ours == its


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    if is_weights(folder):
        return {}
    files = read_json(folder / MANIFEST).get("files")
    return files if isinstance(files, dict) else {}


def _wrong_sizes(folder: Path) -> list[str]:
    here = files_of(folder)
    return [name for name, facts in _manifest(folder).items() if here.get(name) != facts.get("size")]


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
