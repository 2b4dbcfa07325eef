"""The catalog: consistent in itself, and as complete as the engines' own lists."""

from __future__ import annotations

import subprocess
import sys
import typing

import pytest

from stenograf.languages import WHISPER_LANGUAGES
from stenograf.models import catalog
from stenograf.models.layout import matches

NAMES = [entry.name for entry in catalog.ENTRIES]


def test_names_and_aliases_are_unique() -> None:
    spelt = [name.lower() for entry in catalog.ENTRIES for name in (entry.name, *entry.aliases)]
    assert len(spelt) == len(set(spelt))


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_complete(name: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert entry.name == name
    assert not set(name) & set("/\\:~ ")  # it is the name of a folder
    assert not name.startswith(".")
    assert entry.repo.count("/") == (0 if entry.url else 1)
    assert entry.files
    assert 10**7 < entry.size < 10**10
    assert 10**8 < entry.memory < 10**10
    assert entry.languages
    assert set(entry.languages) <= {*WHISPER_LANGUAGES, "ky"}  # Whisper does not speak Kyrgyz, GigaAM does
    assert entry.licence in {"MIT", "Apache-2.0", "CC-BY-4.0"}
    assert entry.description
    assert "\n" not in entry.description
    assert (entry.onnx_type is None) == (entry.engine != "onnx-asr")
    assert (entry.url is None) == (entry.engine != "openai-whisper")


def test_every_name_of_faster_whisper_leads_to_the_same_repository() -> None:
    utils = pytest.importorskip("faster_whisper.utils")
    for name, repo in utils._MODELS.items():
        entry = catalog.find(name)
        assert entry is not None, name
        assert entry.repo == repo, name


def test_every_name_of_onnx_asr_is_known() -> None:
    loader = pytest.importorskip("onnx_asr.loader")
    repos = pytest.importorskip("onnx_asr.resolver").model_repos
    # In the catalog as `base`: the same weights in the engine that also gives timestamps.
    elsewhere = {"whisper-base": "base"}
    for name in typing.get_args(loader.AsrNames):
        entry = catalog.find(name)
        assert entry is not None, name
        if name in elsewhere:
            assert entry.name == elsewhere[name]
            continue
        assert entry.onnx_type == name
        assert entry.repo.lower() == repos.get(name, name).lower()


@pytest.mark.parametrize("name", [entry.name for entry in catalog.ENTRIES if entry.onnx_type])
def test_onnx_asr_finds_its_files_among_those_of_the_entry(name: str) -> None:
    """Whatever `load_model` will look for is downloaded."""
    loader = pytest.importorskip("onnx_asr.loader")
    entry = catalog.find(name)
    assert entry is not None
    wanted = loader.create_asr_resolver(entry.onnx_type, None).model_type._get_model_files(entry.quantization)
    examples = [pattern.replace("*", "x").replace("?", ".") for pattern in entry.files]
    for pattern in wanted.values():
        assert any(matches(example, pattern) for example in examples), pattern


def test_models_that_were_not_trained_to_translate_say_so() -> None:
    translating = {entry.name for entry in catalog.ENTRIES if "translate" in entry.tasks}
    assert {"tiny", "base", "small", "medium", "large-v1", "large-v2", "large-v3"} <= translating
    assert not {name for name in translating if "turbo" in name or "distil" in name or name.endswith(".en")}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("large", "large-v3"),
        ("LARGE-V3-Turbo", "turbo"),
        (" base ", "base"),
        ("Systran/faster-whisper-base", "base"),
        ("parakeet", "parakeet-tdt-0.6b-v3"),
        ("nemo-parakeet-tdt-0.6b-v3", "parakeet-tdt-0.6b-v3"),
        ("t-tech/t-one", "t-one"),
        ("vosk", "vosk-model-ru"),
        ("gigaam", "gigaam-v3-e2e-rnnt"),
    ],
)
def test_find(name: str, found: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert entry.name == found


@pytest.mark.parametrize("name", ["", "bas", "istupakov/gigaam-v3-onnx", "../base", "whisper-1"])
def test_find_nothing(name: str) -> None:
    assert catalog.find(name) is None


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("trubo", "turbo"),
        ("large-v4", "large-v3"),
        ("Smal", "small"),
        ("gigam", "gigaam-v3-e2e-rnnt"),
        ("parakit", "parakeet-tdt-0.6b-v3"),
        ("distil-lagre-v3", "distil-large-v3"),
    ],
)
def test_nearest(wrong: str, right: str) -> None:
    assert right in catalog.nearest(wrong)


def test_nearest_of_nonsense_is_nothing() -> None:
    assert catalog.nearest("qqqqqqqq") == []


def test_nearest_knows_other_names_too() -> None:
    assert catalog.nearest("my-finetun", ["my-finetune"])[0] == "my-finetune"


def test_importing_loads_no_library() -> None:
    heavy = "huggingface_hub", "httpx", "httpx2", "ctranslate2", "onnxruntime", "numpy", "filelock"
    code = f"import sys, stenograf.models; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
