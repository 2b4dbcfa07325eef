"""The models that Stenograf knows by name: where they come from, how big they are, what they can do.

Pure data. Sources, looked up in November 2026:

- names and repositories: `faster_whisper/utils.py` (1.2.1) and `onnx_asr/resolver.py` (0.12);
- download sizes: the file lists of the repositories on the hub where a public copy of the page was found
  (Systran's, Mobius Labs', Vosk's and T-one's, parakeet's int8 encoder), else parameters x bytes a parameter;
  good to about 5 %, and only for showing: a download is checked against what the hub says;
- licences: the model cards. Systran's conversions and the distilled models are MIT as Whisper is, GigaAM is MIT
  since December 2024, NVIDIA's models are CC-BY-4.0, Vosk and T-one Apache-2.0;
- memory: weights in the form they are loaded in (int8 for faster-whisper on a CPU, the file's own precision for
  onnx-asr) plus what a running engine adds (about 0.2 GB); rounded up, good for choosing a model, not for billing.

`whisper-base` of onnx-asr is left out on purpose: `base` is the same weights in an engine that also gives
timestamps, and the name leads there.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from stenograf.languages import WHISPER_LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable

EngineName = Literal["faster-whisper", "onnx-asr"]
Task = Literal["transcribe", "translate"]

_MB = 10**6
_GB = 10**9

_WHISPER_99 = tuple(code for code in WHISPER_LANGUAGES if code != "yue")  # Cantonese came with large-v3
_WHISPER_100 = tuple(WHISPER_LANGUAGES)
_EN = ("en",)
_RU = ("ru",)
_EUROPE_25 = (
    "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it", "lv", "lt", "mt", "pl", "pt", "ro",
    "sk", "sl", "es", "sv", "ru", "uk",
)  # fmt: skip
_GIGAAM_MULTILINGUAL = ("ru", "kk", "ky", "uz", "en")

_CT2_FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.*")


@dataclass(frozen=True)
class CatalogEntry:
    """A model that can be downloaded by its name."""

    name: str
    """Also the name of its folder in the models directory."""

    engine: EngineName
    repo: str
    """Repository on the hub."""

    files: tuple[str, ...]
    """Patterns (one path segment each) of the files without which the model cannot be loaded."""

    size: int
    """Bytes to download, approximately."""

    memory: int
    """Bytes of memory when it is loaded on a CPU, approximately."""

    languages: tuple[str, ...]
    """Codes as in `stenograf.languages`."""

    licence: str
    """SPDX."""

    description: str
    aliases: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Patterns of files that are taken along where the repository has them."""

    tasks: tuple[Task, ...] = ("transcribe",)
    onnx_type: str | None = None
    """The model name that `onnx_asr.load_model` wants beside the path; None for other engines."""

    quantization: str | None = None
    """What `onnx_asr.load_model` wants as `quantization`: None for the full precision."""


def _whisper(
    name: str,
    repo: str,
    size: int,
    memory: int,
    description: str,
    *,
    languages: tuple[str, ...] = _WHISPER_99,
    translates: bool = True,
    mels_128: bool = False,
    aliases: tuple[str, ...] = (),
) -> CatalogEntry:
    """An entry for faster-whisper; `mels_128` for large-v3's children, whose features need their own config."""
    preprocessor = ("preprocessor_config.json",)
    return CatalogEntry(
        name=name,
        engine="faster-whisper",
        repo=repo,
        files=_CT2_FILES + (preprocessor if mels_128 else ()),
        optional=() if mels_128 else preprocessor,
        size=size,
        memory=memory,
        languages=languages,
        licence="MIT",
        description=description,
        tasks=("transcribe", "translate") if translates else ("transcribe",),
        aliases=(f"whisper-{name}", *aliases),
    )


def _english(
    name: str, repo: str, size: int, memory: int, description: str, *, mels_128: bool = False
) -> CatalogEntry:
    return _whisper(name, repo, size, memory, description, languages=_EN, translates=False, mels_128=mels_128)


def _onnx(
    name: str,
    repo: str,
    onnx_type: str,
    files: str,
    size: int,
    memory: int,
    description: str,
    *,
    languages: tuple[str, ...],
    licence: str,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ("transcribe",),
) -> CatalogEntry:
    """An entry for onnx-asr; `files` parted by blanks."""
    patterns = tuple(files.split())
    # Weights of more than 2 GB lie beside the graph, under either of two names.
    beside = tuple(f"{file}?data" for file in patterns if file.endswith(".onnx"))
    return CatalogEntry(
        name=name,
        engine="onnx-asr",
        repo=repo,
        files=patterns,
        optional=tuple(file for file in ("config.json", *beside) if file not in patterns),
        size=size,
        memory=memory,
        languages=languages,
        licence=licence,
        description=description,
        tasks=tasks,
        onnx_type=onnx_type,
        aliases=tuple(dict.fromkeys((*aliases, *([onnx_type] if onnx_type != name else [])))),
    )


def _gigaam(
    kind: str, repo: str, files: str, description: str, aliases: tuple[str, ...] = ()
) -> CatalogEntry:
    name = f"gigaam-{kind}"
    return _onnx(
        name, repo, name, files, 890 * _MB, 1_300 * _MB, description, languages=_RU, licence="MIT",
        aliases=aliases,
    )  # fmt: skip


def _int8(entry: CatalogEntry, size: int, memory: int, aliases: tuple[str, ...] = ()) -> CatalogEntry:
    """The same model quantised: less to download and to hold, about as fast, a little less accurate."""
    files = tuple(file.replace(".onnx", "?int8.onnx") for file in entry.files if not file.endswith("data"))
    return replace(
        entry,
        name=f"{entry.name}-int8",
        files=files,
        optional=tuple(f"{file}?data" for file in files if file.endswith(".onnx")),
        size=size,
        memory=memory,
        description=f"{entry.description}; quantised, for little memory",
        aliases=aliases,
        quantization="int8",
    )


_V3_REPO = "istupakov/gigaam-v3-onnx"
_FASTCONFORMER_REPO = "istupakov/stt_ru_fastconformer_hybrid_large_pc_onnx"
_NEMO_RNNT = "vocab.txt encoder-model.onnx decoder_joint-model.onnx"
_VOSK = "*/encoder.onnx */decoder.onnx */joiner.onnx */tokens.txt"

_GIGAAM_E2E_RNNT = _gigaam(
    "v3-e2e-rnnt", _V3_REPO,
    "config.json v3_e2e_rnnt_encoder.onnx v3_e2e_rnnt_decoder.onnx v3_e2e_rnnt_joint.onnx v3_e2e_rnnt_vocab.txt",
    "Russian with punctuation, capitals and numbers; the best choice on a CPU", ("gigaam", "gigaam-v3"),
)  # fmt: skip
_GIGAAM_E2E_CTC = _gigaam(
    "v3-e2e-ctc", _V3_REPO, "config.json v3_e2e_ctc.onnx v3_e2e_ctc_vocab.txt",
    "Russian with punctuation, capitals and numbers; the fastest on a GPU",
)  # fmt: skip
_PARAKEET_V3 = _onnx(
    "parakeet-tdt-0.6b-v3", "istupakov/parakeet-tdt-0.6b-v3-onnx", "nemo-parakeet-tdt-0.6b-v3",
    f"config.json {_NEMO_RNNT} encoder-model.onnx?data", 2_550 * _MB, 3_000 * _MB,
    "25 European languages with punctuation, found by itself which", languages=_EUROPE_25, licence="CC-BY-4.0",
    aliases=("parakeet", "parakeet-v3"),
)  # fmt: skip
_PARAKEET_V2 = _onnx(
    "parakeet-tdt-0.6b-v2", "istupakov/parakeet-tdt-0.6b-v2-onnx", "nemo-parakeet-tdt-0.6b-v2",
    f"config.json {_NEMO_RNNT} encoder-model.onnx?data", 2_520 * _MB, 3_000 * _MB,
    "English with punctuation", languages=_EN, licence="CC-BY-4.0", aliases=("parakeet-v2",),
)  # fmt: skip

ENTRIES: tuple[CatalogEntry, ...] = (
    _whisper("tiny", "Systran/faster-whisper-tiny", 78 * _MB, 250 * _MB, "the quickest and least accurate Whisper"),
    _english("tiny.en", "Systran/faster-whisper-tiny.en", 78 * _MB, 250 * _MB, "tiny for English only"),
    _whisper("base", "Systran/faster-whisper-base", 148 * _MB, 350 * _MB, "quick; good for clear speech"),
    _english("base.en", "Systran/faster-whisper-base.en", 148 * _MB, 350 * _MB, "base for English only"),
    _whisper("small", "Systran/faster-whisper-small", 486 * _MB, 700 * _MB, "balanced; the most for two CPU cores"),
    _english("small.en", "Systran/faster-whisper-small.en", 486 * _MB, 700 * _MB, "small for English only"),
    _whisper("medium", "Systran/faster-whisper-medium", 1_530 * _MB, 1_500 * _MB, "accurate and slow on a CPU"),
    _english("medium.en", "Systran/faster-whisper-medium.en", 1_530 * _MB, 1_500 * _MB, "medium for English only"),
    _whisper("large-v1", "Systran/faster-whisper-large-v1", 3_090 * _MB, 2_500 * _MB, "the first large"),
    _whisper("large-v2", "Systran/faster-whisper-large-v2", 3_090 * _MB, 2_500 * _MB, "the second large"),
    _whisper(
        "large-v3", "Systran/faster-whisper-large-v3", 3_090 * _MB, 2_500 * _MB,
        "the most accurate Whisper, and the one that translates best",
        languages=_WHISPER_100, mels_128=True, aliases=("large", "whisper-large"),
    ),
    _whisper(
        "turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo", 1_620 * _MB, 1_500 * _MB,
        "nearly as accurate as large-v3 and several times as fast; cannot translate",
        languages=_WHISPER_100, translates=False, mels_128=True,
        aliases=("large-v3-turbo", "whisper-large-v3-turbo", "dropbox-dash/faster-whisper-large-v3-turbo"),
    ),
    _english("distil-small.en", "Systran/faster-distil-whisper-small.en", 336 * _MB, 500 * _MB, "small.en, distilled"),
    _english(
        "distil-medium.en", "Systran/faster-distil-whisper-medium.en", 794 * _MB, 900 * _MB, "medium.en, distilled"
    ),
    _english(
        "distil-large-v2", "Systran/faster-distil-whisper-large-v2", 1_520 * _MB, 1_500 * _MB,
        "large-v2, distilled for English",
    ),
    _english(
        "distil-large-v3", "Systran/faster-distil-whisper-large-v3", 1_520 * _MB, 1_500 * _MB,
        "large-v3, distilled for English", mels_128=True,
    ),
    _english(
        "distil-large-v3.5", "distil-whisper/distil-large-v3.5-ct2", 1_520 * _MB, 1_500 * _MB,
        "large-v3, distilled for English on more data", mels_128=True,
    ),
    _GIGAAM_E2E_RNNT,
    _int8(_GIGAAM_E2E_RNNT, 230 * _MB, 500 * _MB),
    _GIGAAM_E2E_CTC,
    _int8(_GIGAAM_E2E_CTC, 225 * _MB, 500 * _MB),
    _gigaam(
        "v3-rnnt", _V3_REPO, "config.json v3_rnnt_encoder.onnx v3_rnnt_decoder.onnx v3_rnnt_joint.onnx v3_vocab.txt",
        "the fewest wrong words in Russian; small letters without punctuation",
    ),
    _gigaam(
        "v3-ctc", _V3_REPO, "config.json v3_ctc.onnx v3_vocab.txt", "fast Russian; small letters without punctuation"
    ),
    _gigaam(
        "v2-rnnt", "istupakov/gigaam-v2-onnx",
        "v2_rnnt_encoder.onnx v2_rnnt_decoder.onnx v2_rnnt_joint.onnx v2_vocab.txt", "the version before v3-rnnt",
    ),
    _gigaam("v2-ctc", "istupakov/gigaam-v2-onnx", "v2_ctc.onnx v2_vocab.txt", "the version before v3-ctc"),
    _onnx(
        "gigaam-multilingual-ctc", "istupakov/gigaam-multilingual-ctc-onnx", "gigaam-multilingual-ctc",
        "config.json multilingual*_ctc.onnx multilingual_vocab.txt", 890 * _MB, 1_300 * _MB,
        "Russian, Kazakh, Kyrgyz, Uzbek, and English passably; small letters without punctuation",
        languages=_GIGAAM_MULTILINGUAL, licence="MIT", aliases=("gigaam-multilingual",),
    ),
    _onnx(
        "gigaam-multilingual-large-ctc", "istupakov/gigaam-multilingual-large-ctc-onnx",
        "gigaam-multilingual-large-ctc", "config.json multilingual*_ctc.onnx multilingual_vocab.txt",
        2_400 * _MB, 2_900 * _MB, "the same with 600 instead of 220 million parameters",
        languages=_GIGAAM_MULTILINGUAL, licence="MIT", aliases=("gigaam-multilingual-large",),
    ),
    _onnx(
        "fastconformer-ru-ctc", _FASTCONFORMER_REPO, "nemo-fastconformer-ru-ctc", "vocab.txt model.onnx",
        460 * _MB, 700 * _MB, "Russian with punctuation, half as big as GigaAM", languages=_RU, licence="CC-BY-4.0",
    ),
    _onnx(
        "fastconformer-ru-rnnt", _FASTCONFORMER_REPO, "nemo-fastconformer-ru-rnnt", _NEMO_RNNT,
        460 * _MB, 700 * _MB, "the same with a transducer: slower, a little better",
        languages=_RU, licence="CC-BY-4.0",
    ),
    _PARAKEET_V3,
    _int8(_PARAKEET_V3, 670 * _MB, 1_000 * _MB, ("parakeet-int8", "parakeet-v3-int8")),
    _PARAKEET_V2,
    _int8(_PARAKEET_V2, 660 * _MB, 1_000 * _MB, ("parakeet-v2-int8",)),
    _onnx(
        "parakeet-ctc-0.6b", "istupakov/parakeet-ctc-0.6b-onnx", "nemo-parakeet-ctc-0.6b",
        "vocab.txt model.onnx model.onnx?data", 2_440 * _MB, 2_900 * _MB,
        "English in small letters", languages=_EN, licence="CC-BY-4.0",
    ),
    _onnx(
        "parakeet-rnnt-0.6b", "istupakov/parakeet-rnnt-0.6b-onnx", "nemo-parakeet-rnnt-0.6b",
        f"{_NEMO_RNNT} encoder-model.onnx?data", 2_470 * _MB, 2_900 * _MB,
        "English in small letters, with a transducer", languages=_EN, licence="CC-BY-4.0",
    ),
    _onnx(
        "canary-1b-v2", "istupakov/canary-1b-v2-onnx", "nemo-canary-1b-v2",
        "config.json vocab.txt encoder-model.onnx encoder-model.onnx?data decoder-model.onnx",
        3_950 * _MB, 4_500 * _MB, "25 European languages, and translates between English and them",
        languages=_EUROPE_25, licence="CC-BY-4.0", aliases=("canary",), tasks=("transcribe", "translate"),
    ),
    _onnx(
        "t-one", "t-tech/T-one", "t-tech/t-one", "config.json model.onnx", 145 * _MB, 400 * _MB,
        "Russian on the telephone (8 kHz); small letters without punctuation", languages=_RU, licence="Apache-2.0",
    ),
    _onnx(
        "vosk-model-ru", "alphacep/vosk-model-ru", "alphacep/vosk-model-ru", _VOSK, 262 * _MB, 500 * _MB,
        "Russian; small letters without punctuation", languages=_RU, licence="Apache-2.0",
        aliases=("vosk", "vosk-ru"),
    ),
    _onnx(
        "vosk-model-small-ru", "alphacep/vosk-model-small-ru", "alphacep/vosk-model-small-ru", _VOSK,
        94 * _MB, 300 * _MB, "Russian for very small machines", languages=_RU, licence="Apache-2.0",
        aliases=("vosk-small", "vosk-small-ru"),
    ),
)  # fmt: skip


def _index(entries: Iterable[CatalogEntry]) -> dict[str, CatalogEntry]:
    entries = tuple(entries)
    repos = [entry.repo.lower() for entry in entries]
    index = {entry.repo.lower(): entry for entry in entries if repos.count(entry.repo.lower()) == 1}
    for entry in entries:
        index |= {name.lower(): entry for name in (entry.name, *entry.aliases)}
    return index


_BY_NAME = _index(ENTRIES)


def find(name: str) -> CatalogEntry | None:
    """The entry of that name, alias or (where it holds only one model) hub repository; case does not matter."""
    return _BY_NAME.get(name.strip().lower())


def nearest(name: str, also: Iterable[str] = ()) -> list[str]:
    """Up to three names that are written most like `name`, best first; `also` are names beside the catalog's."""
    wanted = name.strip().lower()
    spelt = {alias: entry.name for alias, entry in _BY_NAME.items() if "/" not in alias}
    spelt |= {other.lower(): other for other in also}
    close = difflib.get_close_matches(wanted, spelt, n=6, cutoff=0.5)
    return list(dict.fromkeys(spelt[match] for match in close))[:3]
