"""The models that Stenograf knows by name: where they come from, how big they are, what they can do.

Pure data. Sources, looked up in November 2026:

- names and repositories: `faster_whisper/utils.py` (1.2.1) and `onnx_asr/resolver.py` (0.12);
- download sizes: the file lists of the repositories where a public copy of the page was found (Systran's,
  Mobius Labs', distil-large-v3.5, Vosk, T-one, parakeet's int8 encoder), else parameters x bytes a
  parameter. Good to about 5 %, and only for showing: a download is checked against what the hub says;
- licences: the model cards. Systran's conversions and the distilled models are MIT as Whisper is, GigaAM is
  MIT since December 2024, NVIDIA's models are CC-BY-4.0, Vosk and T-one Apache-2.0;
- memory: measured for base, small and GigaAM in float32 on weights of their shape (`benchmarks/engines.py`), with two
  windows read side by side; the others by their proportions. For choosing a model, and for the budget of the pool.

onnx-asr's `whisper-base` leads to `base`: the same weights, in the engine that also gives timestamps.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from stenograf.languages import WHISPER_LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterable

EngineName = Literal["faster-whisper", "onnx-asr", "openai-whisper"]
Task = Literal["transcribe", "translate"]

_MB = 10**6

_WHISPER_99 = tuple(code for code in WHISPER_LANGUAGES if code != "yue")  # Cantonese came with large-v3
_WHISPER_100 = tuple(WHISPER_LANGUAGES)
_EN = ("en",)
_RU = ("ru",)
_EUROPE_25 = (
    "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it", "lv", "lt", "mt", "pl",
    "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
)  # fmt: skip
_GIGAAM_MULTILINGUAL = ("ru", "kk", "ky", "uz", "en")

_CTRANSLATE2 = ("config.json", "model.bin", "tokenizer.json", "vocabulary.*")


@dataclass(frozen=True)
class CatalogEntry:
    """A model that can be downloaded by its name."""

    name: str
    """Also the name of its folder in the models directory, and of the file itself for openai-whisper."""

    engine: EngineName
    repo: str
    """Repository on the hub; empty where `url` says where the model is."""

    files: tuple[str, ...]
    """Patterns (one path segment each) of the files without which the model cannot be loaded."""

    size: int
    """Bytes to download, approximately."""

    memory: int
    """Bytes of memory when it is loaded on a CPU, approximately."""

    languages: tuple[str, ...] = field(repr=False)
    """Whisper's codes, ISO 639 for what Whisper does not speak."""

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

    url: str | None = None
    """Of a model that is one file and on no hub: where it lies. The second-last part is the file's sha256."""

    @property
    def sha256(self) -> str | None:
        """The hash of the file at `url`."""
        return self.url.split("/")[-2] if self.url else None


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
    """An entry for faster-whisper, MB; with `mels_128` a file is needed that says so."""
    preprocessor = ("preprocessor_config.json",)
    return CatalogEntry(
        name=name,
        engine="faster-whisper",
        repo=repo,
        files=_CTRANSLATE2 + (preprocessor if mels_128 else ()),
        optional=() if mels_128 else preprocessor,
        size=size * _MB,
        memory=memory * _MB,
        languages=languages,
        licence="MIT",
        description=description,
        tasks=("transcribe", "translate") if translates else ("transcribe",),
        aliases=(f"whisper-{name}", *aliases),
    )


def _english(name: str, repo: str, size: int, memory: int, description: str, *, mels_128: bool = False) -> CatalogEntry:
    return _whisper(name, repo, size, memory, description, languages=_EN, translates=False, mels_128=mels_128)


def _onnx(
    name: str,
    repo: str,
    files: str,
    size: int,
    memory: int,
    description: str,
    *,
    languages: tuple[str, ...],
    licence: str,
    onnx_type: str | None = None,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ("transcribe",),
) -> CatalogEntry:
    """An entry for onnx-asr, MB; `files` parted by blanks; `onnx_type` if it is not the name."""
    patterns = tuple(files.split())
    # Weights of more than 2 GB lie beside the graph, under either of two names.
    beside = tuple(f"{file}?data" for file in patterns if file.endswith(".onnx"))
    return CatalogEntry(
        name=name,
        engine="onnx-asr",
        repo=repo,
        files=patterns,
        optional=tuple(file for file in ("config.json", *beside) if file not in patterns),
        size=size * _MB,
        memory=memory * _MB,
        languages=languages,
        licence=licence,
        description=description,
        tasks=tasks,
        onnx_type=onnx_type or name,
        aliases=(*aliases, onnx_type) if onnx_type else aliases,
    )


def _gigaam(name: str, repo: str, files: str, description: str, aliases: tuple[str, ...] = ()) -> CatalogEntry:
    return _onnx(name, repo, files, 890, 1_300, description, languages=_RU, licence="MIT", aliases=aliases)


def _int8(entry: CatalogEntry, size: int, memory: int, aliases: tuple[str, ...] = ()) -> CatalogEntry:
    """The same model quantised, MB: less to download and to hold, about as fast, a little less accurate."""
    files = tuple(file.replace(".onnx", "?int8.onnx") for file in entry.files if not file.endswith("data"))
    return replace(
        entry,
        name=f"{entry.name}-int8",
        files=files,
        optional=tuple(f"{file}?data" for file in files if file.endswith(".onnx")),
        size=size * _MB,
        memory=memory * _MB,
        description=f"{entry.description}; quantised, for little memory",
        aliases=aliases,
        quantization="int8",
    )


_V2 = "istupakov/gigaam-v2-onnx"
_V3 = "istupakov/gigaam-v3-onnx"
_FASTCONFORMER = "istupakov/stt_ru_fastconformer_hybrid_large_pc_onnx"
_NEMO = "vocab.txt encoder-model.onnx decoder_joint-model.onnx"
_VOSK = "*/encoder.onnx */decoder.onnx */joiner.onnx */tokens.txt"

_GIGAAM_E2E_RNNT = _gigaam(
    "gigaam-v3-e2e-rnnt",
    _V3,
    "config.json v3_e2e_rnnt_encoder.onnx v3_e2e_rnnt_decoder.onnx v3_e2e_rnnt_joint.onnx v3_e2e_rnnt_vocab.txt",
    "Russian with punctuation, capitals and numbers; the best choice on a CPU",
    aliases=("gigaam", "gigaam-v3"),
)
_GIGAAM_E2E_CTC = _gigaam(
    "gigaam-v3-e2e-ctc",
    _V3,
    "config.json v3_e2e_ctc.onnx v3_e2e_ctc_vocab.txt",
    "Russian with punctuation, capitals and numbers; the fastest on a GPU",
)
_PARAKEET_V3 = _onnx(
    "parakeet-tdt-0.6b-v3", "istupakov/parakeet-tdt-0.6b-v3-onnx",
    f"config.json {_NEMO} encoder-model.onnx?data",
    2_550, 3_000, "25 European languages with punctuation; finds out which itself",
    languages=_EUROPE_25, licence="CC-BY-4.0",
    onnx_type="nemo-parakeet-tdt-0.6b-v3", aliases=("parakeet", "parakeet-v3"),
)  # fmt: skip
_PARAKEET_V2 = _onnx(
    "parakeet-tdt-0.6b-v2", "istupakov/parakeet-tdt-0.6b-v2-onnx",
    f"config.json {_NEMO} encoder-model.onnx?data",
    2_520, 3_000, "English with punctuation", languages=_EN, licence="CC-BY-4.0",
    onnx_type="nemo-parakeet-tdt-0.6b-v2", aliases=("parakeet-v2",),
)  # fmt: skip

_ON_HUB: tuple[CatalogEntry, ...] = (
    _whisper("tiny", "Systran/faster-whisper-tiny", 78, 300, "the quickest Whisper, and the least accurate"),
    _english("tiny.en", "Systran/faster-whisper-tiny.en", 78, 300, "tiny for English only"),
    _whisper("base", "Systran/faster-whisper-base", 148, 400, "quick; good for clear speech"),
    _english("base.en", "Systran/faster-whisper-base.en", 148, 400, "base for English only"),
    _whisper("small", "Systran/faster-whisper-small", 486, 800, "balanced; as much as two CPU cores bear"),
    _english("small.en", "Systran/faster-whisper-small.en", 486, 800, "small for English only"),
    _whisper("medium", "Systran/faster-whisper-medium", 1_530, 1_900, "accurate; slow on a CPU"),
    _english("medium.en", "Systran/faster-whisper-medium.en", 1_530, 1_900, "medium for English only"),
    _whisper("large-v1", "Systran/faster-whisper-large-v1", 3_090, 3_000, "the first large"),
    _whisper("large-v2", "Systran/faster-whisper-large-v2", 3_090, 3_000, "the second large"),
    _whisper(
        "large-v3", "Systran/faster-whisper-large-v3", 3_090, 3_000,
        "the most accurate Whisper, and the one to translate with",
        languages=_WHISPER_100, mels_128=True, aliases=("large", "whisper-large"),
    ),
    _whisper(
        "turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo", 1_620, 2_000,
        "nearly as accurate as large-v3, several times as fast; cannot translate",
        languages=_WHISPER_100, translates=False, mels_128=True,
        aliases=("large-v3-turbo", "whisper-large-v3-turbo"),
    ),
    _english(
        "distil-small.en", "Systran/faster-distil-whisper-small.en", 336, 500, "small.en, distilled",
    ),
    _english(
        "distil-medium.en", "Systran/faster-distil-whisper-medium.en", 794, 900, "medium.en, distilled",
    ),
    _english(
        "distil-large-v2", "Systran/faster-distil-whisper-large-v2", 1_520, 1_500,
        "large-v2, distilled for English",
    ),
    _english(
        "distil-large-v3", "Systran/faster-distil-whisper-large-v3", 1_520, 1_500,
        "large-v3, distilled for English", mels_128=True,
    ),
    _english(
        "distil-large-v3.5", "distil-whisper/distil-large-v3.5-ct2", 1_520, 1_500,
        "large-v3, distilled for English on more speech", mels_128=True,
    ),
    _GIGAAM_E2E_RNNT,
    _int8(_GIGAAM_E2E_RNNT, 230, 500),
    _GIGAAM_E2E_CTC,
    _int8(_GIGAAM_E2E_CTC, 225, 500),
    _gigaam(
        "gigaam-v3-rnnt", _V3,
        "config.json v3_rnnt_encoder.onnx v3_rnnt_decoder.onnx v3_rnnt_joint.onnx v3_vocab.txt",
        "the fewest wrong words in Russian; without capitals and punctuation",
    ),
    _gigaam(
        "gigaam-v3-ctc", _V3, "config.json v3_ctc.onnx v3_vocab.txt",
        "the fastest in Russian; without capitals and punctuation",
    ),
    _gigaam(
        "gigaam-v2-rnnt", _V2, "v2_rnnt_encoder.onnx v2_rnnt_decoder.onnx v2_rnnt_joint.onnx v2_vocab.txt",
        "what was before gigaam-v3-rnnt",
    ),
    _gigaam("gigaam-v2-ctc", _V2, "v2_ctc.onnx v2_vocab.txt", "what was before gigaam-v3-ctc"),
    _onnx(
        "gigaam-multilingual-ctc", "istupakov/gigaam-multilingual-ctc-onnx",
        "config.json multilingual*_ctc.onnx multilingual_vocab.txt", 890, 1_300,
        "Russian, Kazakh, Kyrgyz, Uzbek, passable English; without capitals and punctuation",
        languages=_GIGAAM_MULTILINGUAL, licence="MIT", aliases=("gigaam-multilingual",),
    ),
    _onnx(
        "gigaam-multilingual-large-ctc", "istupakov/gigaam-multilingual-large-ctc-onnx",
        "config.json multilingual*_ctc.onnx multilingual_vocab.txt", 2_400, 2_900,
        "the same with 600 instead of 220 million parameters",
        languages=_GIGAAM_MULTILINGUAL, licence="MIT", aliases=("gigaam-multilingual-large",),
    ),
    _onnx(
        "fastconformer-ru-ctc", _FASTCONFORMER, "vocab.txt model.onnx", 460, 700,
        "Russian with punctuation, half as big as GigaAM", languages=_RU, licence="CC-BY-4.0",
        onnx_type="nemo-fastconformer-ru-ctc",
    ),
    _onnx(
        "fastconformer-ru-rnnt", _FASTCONFORMER, _NEMO, 460, 700,
        "the same with a transducer: slower, a little better", languages=_RU, licence="CC-BY-4.0",
        onnx_type="nemo-fastconformer-ru-rnnt",
    ),
    _PARAKEET_V3,
    _int8(_PARAKEET_V3, 670, 1_000, ("parakeet-int8", "parakeet-v3-int8")),
    _PARAKEET_V2,
    _int8(_PARAKEET_V2, 660, 1_000, ("parakeet-v2-int8",)),
    _onnx(
        "parakeet-ctc-0.6b", "istupakov/parakeet-ctc-0.6b-onnx", "vocab.txt model.onnx model.onnx?data",
        2_440, 2_900, "English without capitals and punctuation", languages=_EN, licence="CC-BY-4.0",
        onnx_type="nemo-parakeet-ctc-0.6b",
    ),
    _onnx(
        "parakeet-rnnt-0.6b", "istupakov/parakeet-rnnt-0.6b-onnx", f"{_NEMO} encoder-model.onnx?data",
        2_470, 2_900, "the same with a transducer", languages=_EN, licence="CC-BY-4.0",
        onnx_type="nemo-parakeet-rnnt-0.6b",
    ),
    _onnx(
        "canary-1b-v2", "istupakov/canary-1b-v2-onnx",
        "config.json vocab.txt encoder-model.onnx encoder-model.onnx?data decoder-model.onnx", 3_950, 4_500,
        "25 European languages with punctuation; the language must be named",
        languages=_EUROPE_25, licence="CC-BY-4.0",
        onnx_type="nemo-canary-1b-v2", aliases=("canary",),
    ),
    _onnx(
        "t-one", "t-tech/T-one", "config.json model.onnx", 145, 400,
        "Russian on the telephone (8 kHz); without capitals and punctuation",
        languages=_RU, licence="Apache-2.0", onnx_type="t-tech/t-one",
    ),
    _onnx(
        "vosk-model-ru", "alphacep/vosk-model-ru", _VOSK, 262, 500,
        "Russian without capitals and punctuation", languages=_RU, licence="Apache-2.0",
        onnx_type="alphacep/vosk-model-ru", aliases=("vosk", "vosk-ru"),
    ),
    _onnx(
        "vosk-model-small-ru", "alphacep/vosk-model-small-ru", _VOSK, 94, 300,
        "Russian for very small machines", languages=_RU, licence="Apache-2.0",
        onnx_type="alphacep/vosk-model-small-ru", aliases=("vosk-small", "vosk-small-ru"),
    ),
)  # fmt: skip

_OPENAI = "https://openaipublic.azureedge.net/main/whisper/models"

# Name of the same model on the hub, sha256, MB to download, MB of memory, name of the file if it is another, aliases.
_PT = (
    ("tiny", "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9", 76, 500),
    ("tiny.en", "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03", 76, 500),
    ("base", "ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e", 145, 700),
    ("base.en", "25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead", 145, 700),
    ("small", "9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794", 484, 1_400),
    ("small.en", "f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872", 484, 1_400),
    ("medium", "345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1", 1_530, 3_500),
    ("medium.en", "d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f", 1_530, 3_500),
    ("large-v1", "e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a", 3_090, 6_800),
    ("large-v2", "81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524", 3_090, 6_800),
    ("large-v3", "e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb", 3_090, 6_800, "large-v3", "large"),
    (
        "turbo",
        "aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a",
        1_620,
        3_700,
        "large-v3-turbo",
        "turbo",
    ),
)


def _pt(of: str, sha256: str, size: int, memory: int, file: str = "", *aliases: str) -> CatalogEntry:
    """The same weights in OpenAI's own form."""
    same = next(entry for entry in _ON_HUB if entry.name == of)
    name = f"{file or of}.pt"
    return replace(
        same,
        name=name,
        engine="openai-whisper",
        repo="",
        files=(name,),
        optional=(),
        size=size * _MB,
        memory=memory * _MB,
        description=f"{of} as OpenAI publishes it, for the extra openai-whisper",
        aliases=tuple(f"{alias}.pt" for alias in aliases),
        url=f"{_OPENAI}/{sha256}/{name}",
    )


ENTRIES: tuple[CatalogEntry, ...] = (*_ON_HUB, *(_pt(*facts) for facts in _PT))


def _index(entries: Iterable[CatalogEntry]) -> dict[str, CatalogEntry]:
    entries = tuple(entries)
    repos = [entry.repo.lower() for entry in entries]
    index = {entry.repo.lower(): entry for entry in entries if entry.repo and repos.count(entry.repo.lower()) == 1}
    for entry in entries:
        index |= {name.lower(): entry for name in (entry.name, *entry.aliases)}
    return index


_BY_NAME = _index(ENTRIES)


def find(name: str) -> CatalogEntry | None:
    """The entry of that name, alias or hub repository (if that holds one model); case does not matter."""
    return _BY_NAME.get(name.strip().lower())


def nearest(name: str, also: Iterable[str] = ()) -> list[str]:
    """Up to three names that look most like `name`, best first; `also` are others than the catalog's."""
    wanted = name.strip().lower()
    spelt = {alias: entry.name for alias, entry in _BY_NAME.items() if "/" not in alias}
    spelt |= {other.lower(): other for other in also}
    close = difflib.get_close_matches(wanted, spelt, n=6, cutoff=0.5)
    return list(dict.fromkeys(spelt[match] for match in close))[:3]
