"""Which model a place holds, by the names of its files; what is missing if it is not whole.

A place is a folder, or a `.pt` file by itself. Three layouts are known: CTranslate2's Whisper, those of onnx-asr (see
`_get_model_files` in its models), flat or inside a folder of a Hugging Face cache
(`models--<owner>--<name>/snapshots/<revision>/`), and openai-whisper's: one `.pt` file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from stenograf.models.catalog import CatalogEntry, EngineName


@dataclass(frozen=True)
class Layout:
    """What was found in a folder."""

    engine: EngineName
    onnx_type: str | None = None
    quantization: str | None = None
    missing: tuple[str, ...] = ()
    """File names or patterns without which the model cannot be loaded."""


_CTRANSLATE2 = ("config.json", "model.bin", "tokenizer.json", "vocabulary.*")

# The file sets of onnx-asr by the name to load them by; `{q}` is nothing or `?int8`. First those that their
# file names tell apart. GigaAM v3 needs config.json: without it onnx-asr takes it for v2 and computes other
# features, silently.
_BY_FILES: dict[str, str] = {
    "gigaam-v3-e2e-rnnt": "v3_e2e_rnnt_encoder{q}.onnx v3_e2e_rnnt_decoder{q}.onnx v3_e2e_rnnt_joint{q}.onnx "
    "v3_e2e_rnnt_vocab.txt config.json",
    "gigaam-v3-e2e-ctc": "v3_e2e_ctc{q}.onnx v3_e2e_ctc_vocab.txt config.json",
    "gigaam-v3-rnnt": "v3_rnnt_encoder{q}.onnx v3_rnnt_decoder{q}.onnx v3_rnnt_joint{q}.onnx v3_vocab.txt config.json",
    "gigaam-v3-ctc": "v3_ctc{q}.onnx v3_vocab.txt config.json",
    "gigaam-v2-rnnt": "v2_rnnt_encoder{q}.onnx v2_rnnt_decoder{q}.onnx v2_rnnt_joint{q}.onnx v2_vocab.txt",
    "gigaam-v2-ctc": "v2_ctc{q}.onnx v2_vocab.txt",
    "gigaam-multilingual-ctc": "multilingual*_ctc{q}.onnx multilingual_vocab.txt config.json",
    "vosk": "*/encoder{q}.onnx */decoder{q}.onnx */joiner{q}.onnx */tokens.txt",
    "whisper-ort": "whisper-*_beamsearch{q}.onnx vocab.json added_tokens.json config.json",
}
# Sets whose file names do not say which model it is: `model_type` in config.json does.
_BY_CONFIG: dict[str, str] = {
    "nemo-conformer-rnnt": "encoder-model{q}.onnx decoder_joint-model{q}.onnx vocab.txt config.json",
    "nemo-conformer-tdt": "encoder-model{q}.onnx decoder_joint-model{q}.onnx vocab.txt config.json",
    "nemo-conformer-aed": "encoder-model{q}.onnx decoder-model{q}.onnx vocab.txt config.json",
    "nemo-conformer-ctc": "model{q}.onnx vocab.txt config.json",
    "t-one-ctc": "model{q}.onnx config.json",
    "kaldi-rnnt": "*/encoder{q}.onnx */decoder{q}.onnx */joiner{q}.onnx */tokens.txt",
    "whisper": "**/encoder_model{q}.onnx **/decoder_model_merged{q}.onnx vocab.json added_tokens.json config.json",
}
_QUANTIZATIONS = {None: "", "int8": "?int8"}

WEIGHTS = ".pt"
"""How the files of openai-whisper end."""


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path (with `/`) fits a pattern, segment by segment; a leading `**/` is any depth."""
    parts, wanted = path.split("/"), pattern.split("/")
    if wanted[0] == "**":
        return fnmatchcase(parts[-1], wanted[-1])
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def is_weights(path: Path) -> bool:
    """Whether this is a `.pt` file."""
    return path.suffix == WEIGHTS and _exists(path.is_file)


def is_place(path: Path) -> bool:
    """Whether a model can be here: a folder, or a `.pt` file."""
    return _exists(path.is_dir) or is_weights(path)


def file_in(place: Path, name: str) -> Path:
    """The path of one of `files_of(place)`."""
    return place if is_weights(place) else place / name


def files_of(folder: Path) -> dict[str, int]:
    """The files of a folder and its subfolders, relative path (with `/`) -> bytes, without hidden ones.

    A `.pt` file is the only one of its place.
    """
    if is_weights(folder):
        return {folder.name: folder.stat().st_size}
    found: dict[str, int] = {}
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():  # follows links, as the cache of the hub is made of them
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def detect(folder: Path, entry: CatalogEntry | None = None) -> Layout | None:
    """The model in a place, or None if there is none; `entry` is what it should be, if that is known."""
    files = files_of(folder)
    if is_weights(folder):
        return Layout("openai-whisper", missing=_missing(files, (folder.name,)))
    if entry is not None and not (missing := _missing(files, entry.files)):
        return Layout(entry.engine, entry.onnx_type, entry.quantization, missing)
    if "model.bin" in files:
        wanted = dict.fromkeys((*_CTRANSLATE2, *_features_config(folder), *_files_of_whisper(entry)))
        return Layout("faster-whisper", missing=_missing(files, tuple(wanted)))
    found = _detect_onnx(folder, files)
    if found is None and entry is not None and any(_fits_any(name, entry.files) for name in files):
        return Layout(entry.engine, entry.onnx_type, entry.quantization, _missing(files, entry.files))
    weights = tuple(name for name in files if name.endswith(WEIGHTS))
    if found is None and len(weights) == 1:
        expected = entry.files if entry is not None and entry.engine == "openai-whisper" else weights
        return Layout("openai-whisper", missing=_missing(files, expected))
    return found


def snapshot(root: Path, repo: str) -> Path | None:
    """The folder of a repository's files in a Hugging Face cache: of `main`, else of the newest revision."""
    wanted = "models--" + repo.replace("/", "--")
    try:
        # The hub's names ignore case, the cache's folder names do not.
        folder = next((path for path in root.iterdir() if path.name.lower() == wanted.lower()), None)
        return snapshot_in(folder) if folder else None
    except OSError:
        return None


def snapshot_in(folder: Path) -> Path | None:
    """As `snapshot`, for the folder `models--<owner>--<name>` itself."""
    main, snapshots = folder / "refs" / "main", folder / "snapshots"
    if main.is_file() and (current := snapshots / main.read_text().strip()).is_dir():
        return current
    if not snapshots.is_dir():
        return None
    return max((path for path in snapshots.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime, default=None)


def hub_cache() -> Path:
    """Where Hugging Face's own libraries keep what they download (read from the environment as they do)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home) / "hub"
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or hub)).expanduser()


def whisper_caches() -> tuple[Path, ...]:
    """Where openai-whisper and the services built on it keep their `.pt` files: here below, and in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~", ".cache")).expanduser()
    return Path("_cache", "whisper").absolute(), cache / "whisper"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _features_config(folder: Path) -> tuple[str, ...]:
    """large-v3 and its children, of 100 languages, take 128 mel bins, which only this file says."""
    languages = read_json(folder / "config.json").get("lang_ids")
    return ("preprocessor_config.json",) if isinstance(languages, list) and len(languages) >= 100 else ()


def _files_of_whisper(entry: CatalogEntry | None) -> tuple[str, ...]:
    return entry.files if entry is not None and entry.engine == "faster-whisper" else ()


def _detect_onnx(folder: Path, files: dict[str, int]) -> Layout | None:
    if not any(name.endswith((".onnx", ".ort")) for name in files):
        return None
    declared = read_json(folder / "config.json").get("model_type")
    sets = _BY_FILES | _BY_CONFIG
    sets = {declared: sets[declared]} if declared in sets else sets
    candidates = [
        Layout("onnx-asr", onnx_type, quantization, _missing(files, patterns))
        for onnx_type, form in sets.items()
        for quantization, suffix in _QUANTIZATIONS.items()
        if _has_weights(files, patterns := tuple(form.format(q=suffix).split()))
    ]
    if not candidates:
        return None
    best = min(candidates, key=lambda layout: len(layout.missing))
    if best.onnx_type in _BY_FILES or best.onnx_type == declared or _is_t_one(folder, best):
        return best
    # Several models share these file names, and there is no config.json that says which of them this is.
    missing = [name for name in best.missing if name != "config.json"]
    return replace(best, missing=(*missing, "config.json with model_type"))


def _is_t_one(folder: Path, layout: Layout) -> bool:
    """T-one's config.json is its authors' own: it has no model_type that onnx-asr knows."""
    return layout.onnx_type == "t-one-ctc" and "decoder_params" in read_json(folder / "config.json")


def _has_weights(files: dict[str, int], patterns: tuple[str, ...]) -> bool:
    weights = [pattern for pattern in patterns if pattern.endswith(".onnx")]
    return any(_fits_any(name, weights) for name in files)


def _missing(files: dict[str, int], patterns: tuple[str, ...]) -> tuple[str, ...]:
    missing = []
    for pattern in patterns:
        sizes = [size for name, size in files.items() if _fits_any(name, (pattern,))]
        if not any(sizes):
            missing.append(pattern.removeprefix("**/") + (" (empty)" if sizes else ""))
    return tuple(missing)


def _alternatives(pattern: str) -> tuple[str, ...]:
    """onnx-asr takes an `.ort` file where the `.onnx` is not there."""
    return (pattern, pattern.removesuffix(".onnx") + ".ort") if pattern.endswith(".onnx") else (pattern,)


def _fits_any(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(matches(name, wanted) for pattern in patterns for wanted in _alternatives(pattern))


def _exists(is_there: Callable[[], bool]) -> bool:
    try:
        return is_there()
    except (OSError, ValueError):  # a name that is too long for a file
        return False
