"""openai-whisper's `.pt` files in the store: found where others left them, verified once, downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fake_hub import FakeHub
from stenograf.errors import DownloadFailedError, ModelDamagedError, ModelNotInstalledError, ModelUnknownError
from stenograf.models import ModelStore, PullProgress, catalog, digests, download
from stenograf.models.catalog import CatalogEntry

WEIGHTS = os.urandom(1 << 20) * 3
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({"openai/whisper": {f"{SHA256}/small.pt": WEIGHTS}}) as hub:
        yield hub


@pytest.fixture
def small(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """`small.pt` as the catalog has it, but with our content and on our server."""
    real = catalog.find("small.pt")
    assert real is not None
    entry = replace(real, url=f"{hub.url}/openai/whisper/resolve/main/{SHA256}/small.pt")
    monkeypatch.setitem(catalog._BY_NAME, "small.pt", entry)
    monkeypatch.setattr(catalog, "ENTRIES", tuple(entry if e.name == "small.pt" else e for e in catalog.ENTRIES))
    return entry


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(models: Path, small: CatalogEntry) -> ModelStore:
    return ModelStore(models)


def put(path: Path, content: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def reads(store: ModelStore, name: str, *, allow_path: bool = False) -> int:
    """How many bytes were hashed to verify a model."""
    steps: list[PullProgress] = []
    store.verify_once(store.resolve(name, allow_path=allow_path), steps.append)
    return steps[-1].done if steps else 0


# The catalog


def test_names_and_hashes_are_those_of_the_library() -> None:
    import whisper

    for name, url in whisper._MODELS.items():
        entry = catalog.find(f"{name}.pt")
        assert entry is not None, name
        assert entry.url == url
        assert entry.name == url.rsplit("/", 1)[1]
        assert entry.files == (entry.name,)
    urls = {entry.url for entry in catalog.ENTRIES if entry.url}
    assert urls == set(whisper._MODELS.values())


@pytest.mark.parametrize(("name", "found"), [("turbo.pt", "large-v3-turbo.pt"), ("LARGE.pt", "large-v3.pt")])
def test_aliases(name: str, found: str) -> None:
    entry = catalog.find(name)
    assert entry is not None
    assert entry.name == found
    assert catalog.find(name.removesuffix(".pt").lower()) is not entry  # without the ending: for faster-whisper


def test_what_a_model_can_does_not_change_with_its_form() -> None:
    for entry in catalog.ENTRIES:
        if entry.url:
            same = catalog.find(entry.name.removesuffix(".pt"))
            assert same is not None
            assert (entry.languages, entry.tasks) == (same.languages, same.tasks)
            assert entry.sha256 is not None
            assert len(entry.sha256) == 64


# Found


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("models/small.pt", "models folder"),
        ("models/small.pt/small.pt", "models folder"),
        ("here/_cache/whisper/small.pt", "whisper cache"),
        ("cache/whisper/small.pt", "whisper cache"),
    ],
)
def test_found_where_it_lies(store: ModelStore, small: CatalogEntry, tmp_path: Path, place: str, source: str) -> None:
    file = put(tmp_path / place)
    model = store.resolve("small.pt", allow_path=False)
    assert (model.name, model.engine, model.entry, model.source) == ("small.pt", "openai-whisper", small, source)
    assert model.path in (file, file.parent)
    (line,) = store.installed()
    assert (line.name, line.source, line.bytes, line.problem) == ("small.pt", source, len(WEIGHTS), "")
    assert reads(store, "small.pt") == len(WEIGHTS)
    assert file.read_bytes() == WEIGHTS


def test_home_without_a_named_cache(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = put(tmp_path / "home" / ".cache" / "whisper" / "small.pt")
    assert store.resolve("small.pt", allow_path=False).path == file


def test_the_models_folder_comes_first(store: ModelStore, models: Path, tmp_path: Path) -> None:
    put(tmp_path / "cache" / "whisper" / "small.pt", b"old")
    file = put(models / "small.pt")
    assert store.resolve("small.pt", allow_path=False).path == file
    assert len(store.installed()) == 1


def test_a_file_called_by_an_alias(store: ModelStore, models: Path) -> None:
    put(models / "turbo.pt", b"x")
    assert store.resolve("large-v3-turbo.pt", allow_path=False).path == models / "turbo.pt"


def test_a_file_of_ones_own(store: ModelStore, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(models / "mine.pt", b"mine")
    put(tmp_path / "here" / "other.pt", b"other")
    mine = store.resolve("mine.pt", allow_path=False)
    assert (mine.name, mine.engine, mine.entry) == ("mine.pt", "openai-whisper", None)
    for name in ("other.pt", "./other.pt", str(tmp_path / "here" / "other.pt")):
        model = store.resolve(name, allow_path=True)
        assert (model.name, model.path, model.source) == ("other.pt", tmp_path / "here" / "other.pt", "path")
        assert reads(store, name, allow_path=True) == 0  # nobody knows its hash
        with pytest.raises(ModelUnknownError):
            store.resolve(name, allow_path=False)


def test_only_files_of_the_catalog_are_taken_from_the_cache(store: ModelStore, tmp_path: Path) -> None:
    put(tmp_path / "cache" / "whisper" / "mine.pt")
    with pytest.raises(ModelUnknownError):
        store.resolve("mine.pt", allow_path=True)


def test_a_folder_with_one_file_of_any_name(store: ModelStore, models: Path) -> None:
    put(models / "finetune" / "model.pt", b"mine")
    assert store.resolve("finetune", allow_path=False).engine == "openai-whisper"
    put(models / "finetune" / "more.pt", b"more")
    with pytest.raises(ModelUnknownError, match="a single"):
        store.resolve("finetune", allow_path=False)


def test_a_folder_of_the_name_with_another_file(store: ModelStore, models: Path) -> None:
    put(models / "small.pt" / "other.pt")
    with pytest.raises(ModelDamagedError, match=r"small\.pt is missing"):
        store.resolve("small.pt", allow_path=False)


def test_an_empty_file(store: ModelStore, models: Path) -> None:
    put(models / "small.pt", b"")
    with pytest.raises(ModelDamagedError, match="empty"):
        store.resolve("small.pt", allow_path=False)


def test_a_file_of_another_kind_is_no_model(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelUnknownError, match=r"no folder or \.pt file"):
        store.resolve(str(put(tmp_path / "model.bin")), allow_path=True)


# Verified once


def test_read_once_and_again_when_it_was_changed(store: ModelStore, models: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "cache" / "whisper" / "small.pt")
    assert reads(store, "small.pt") == len(WEIGHTS)
    assert reads(store, "small.pt") == 0
    assert reads(ModelStore(models), "small.pt") == 0  # another process
    os.utime(file, ns=(1, 1))
    assert reads(store, "small.pt") == len(WEIGHTS)
    assert reads(ModelStore(models), "small.pt") == 0
    file.write_bytes(WEIGHTS[:-1])
    with pytest.raises(ModelDamagedError):
        reads(store, "small.pt")
    assert list(json.loads((models / digests.NAME).read_text())) == [str(file)]


def test_a_models_folder_that_cannot_be_written(small: CatalogEntry, tmp_path: Path) -> None:
    put(tmp_path / "cache" / "whisper" / "small.pt")
    models = put(tmp_path / "a-file") / "models"
    store = ModelStore(models)
    assert reads(store, "small.pt") == len(WEIGHTS)
    assert reads(store, "small.pt") == 0


@pytest.mark.parametrize("broken", [b"", b"[]", b'{"x": 1', b'{"PATH": [1]}', b'{"PATH": "x"}'])
def test_a_broken_memory_is_no_memory(store: ModelStore, models: Path, tmp_path: Path, broken: bytes) -> None:
    file = put(tmp_path / "cache" / "whisper" / "small.pt")
    put(models / digests.NAME, broken.replace(b"PATH", str(file).encode()))
    assert reads(store, "small.pt") == len(WEIGHTS)
    assert reads(ModelStore(models), "small.pt") == 0


@pytest.mark.parametrize("content", [WEIGHTS[:1000], b"?" + WEIGHTS[1:]])
def test_half_downloaded_or_changed(store: ModelStore, tmp_path: Path, content: bytes) -> None:
    file = put(tmp_path / "cache" / "whisper" / "small.pt", content)
    for _ in range(2):
        with pytest.raises(ModelDamagedError) as caught:
            reads(store, "small.pt")
        assert str(file) in caught.value.message
        assert "Remove it" in caught.value.hint
        assert "stenograf models pull small.pt" in caught.value.hint
        assert "another name" in caught.value.hint
    assert file.read_bytes() == content


def test_a_file_that_may_not_be_read(store: ModelStore, tmp_path: Path, unprivileged: None) -> None:
    file = put(tmp_path / "cache" / "whisper" / "small.pt")
    file.chmod(0)
    with pytest.raises(ModelDamagedError, match="cannot be read"):
        reads(store, "small.pt")


def test_what_the_hint_advises_works(store: ModelStore, models: Path, tmp_path: Path) -> None:
    cached = put(tmp_path / "cache" / "whisper" / "small.pt", WEIGHTS[:1000])
    store.pull("small.pt")
    model = store.resolve("small.pt", allow_path=False)
    assert model.path == models / "small.pt"
    store.verify_once(model)
    assert cached.read_bytes() == WEIGHTS[:1000]


def test_another_model_under_its_name(store: ModelStore, models: Path) -> None:
    put(models / "large.pt")  # the library called its first large one so
    with pytest.raises(ModelDamagedError, match=r"is not large-v3\.pt but small\.pt") as caught:
        reads(store, "large.pt")
    assert "Rename it to small.pt" in caught.value.hint


def test_other_engines_are_not_read(store: ModelStore) -> None:
    model = store.resolve(str(Path(__file__).parent / "models" / "whisper-test"), allow_path=True)
    steps: list[PullProgress] = []
    store.verify_once(model, steps.append)
    assert steps == []


# Downloaded


def test_pull(store: ModelStore, hub: FakeHub, models: Path) -> None:
    seen: list[PullProgress] = []
    model = store.pull("small.pt", seen.append)
    assert model.path == models / "small.pt"
    assert (model.path / "small.pt").read_bytes() == WEIGHTS
    assert (seen[-1].done, seen[-1].total) == (len(WEIGHTS), len(WEIGHTS))
    manifest = json.loads((model.path / "stenograf.json").read_text())
    assert manifest["files"] == {"small.pt": {"size": len(WEIGHTS), "sha256": SHA256}}
    assert reads(store, "small.pt") == 0  # it was verified when it came
    assert store.verify("small.pt") == 1
    hub.requests.clear()
    assert store.pull("small.pt") == model
    assert hub.requests == []


def test_pull_goes_on_where_it_broke_off(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.break_after[f"{SHA256}/small.pt"] = 1_000_000
    store.pull("small.pt")
    assert [request.sent for request in hub.files("small.pt")] == [1_000_000, len(WEIGHTS) - 1_000_000]


def test_pull_refuses_what_has_another_hash(store: ModelStore, hub: FakeHub, models: Path) -> None:
    hub.faults.corrupt.add(f"{SHA256}/small.pt")
    with pytest.raises(DownloadFailedError, match="hash differs"):
        store.pull("small.pt")
    assert not (models / "small.pt").exists()


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_pull_that_is_refused_says_where_to_put_the_file(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    answer = hub._route

    def route(request: object, seen: object, *, with_body: bool) -> None:
        hub.faults.status = {"small.pt": 403} if with_body == (method == "GET") else {}
        answer(request, seen, with_body=with_body)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "_route", route)
    with pytest.raises(DownloadFailedError) as caught:
        store.pull("small.pt")
    assert "small.pt (HTTP 403)" in caught.value.message
    assert "models folder" in caught.value.hint


def test_a_length_that_is_not_told(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.no_length = True
    with pytest.raises(DownloadFailedError, match="how long"):
        store.pull("small.pt")


def test_the_token_of_the_hub_goes_nowhere_else(models: Path, small: CatalogEntry, hub: FakeHub) -> None:
    ModelStore(models, endpoint="http://127.0.0.1:9", token="hf_secret").pull("small.pt")
    assert len(hub.requests) == 2
    assert not [request for request in hub.requests if "authorization" in request.headers]


def test_pull_copies_what_the_cache_has(store: ModelStore, hub: FakeHub, tmp_path: Path) -> None:
    cached = put(tmp_path / "cache" / "whisper" / "small.pt")
    model = store.pull("small.pt")
    assert (model.path / "small.pt").read_bytes() == WEIGHTS
    assert [request.method for request in hub.requests] == ["HEAD"]
    assert cached.is_file()


def test_pull_puts_a_good_one_in_the_place_of_a_damaged_file(store: ModelStore, models: Path) -> None:
    put(models / "small.pt", WEIGHTS[:1000])
    store.pull("small.pt")
    assert (models / "small.pt" / "small.pt").read_bytes() == WEIGHTS


def test_offline(models: Path, small: CatalogEntry, tmp_path: Path) -> None:
    store = ModelStore(models, offline=True)
    with pytest.raises(ModelNotInstalledError, match=r"small\.pt of OpenAI"):
        store.pull("small.pt")
    put(tmp_path / "cache" / "whisper" / "small.pt")
    assert store.pull("small.pt").source == "whisper cache"
    put(tmp_path / "cache" / "whisper" / "small.pt", b"broken")
    with pytest.raises(ModelDamagedError, match="half-downloaded"):
        store.pull("small.pt")


# Removed


@pytest.mark.parametrize("place", ["small.pt", "small.pt/small.pt"])
def test_remove(store: ModelStore, models: Path, place: str) -> None:
    put(models / place)
    assert store.remove("small.pt") == models / "small.pt"
    assert not (models / "small.pt").exists()
    assert store.installed() == []


def test_remove_leaves_what_is_in_the_cache(store: ModelStore, tmp_path: Path) -> None:
    file = put(tmp_path / "cache" / "whisper" / "small.pt")
    with pytest.raises(ModelNotInstalledError, match="other programs") as caught:
        store.remove("small.pt")
    assert str(file.parent) in caught.value.message
    assert file.is_file()
