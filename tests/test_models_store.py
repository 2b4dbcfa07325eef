"""The model store, against a hub on loopback that breaks on request; huggingface_hub is the real one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fake_hub import COMMIT, FakeHub, blob_id
from stenograf.errors import (
    DiskFullError,
    DownloadFailedError,
    ModelDamagedError,
    ModelNotInstalledError,
    ModelsReadOnlyError,
    ModelUnknownError,
    StenografError,
)
from stenograf.models import ModelStore, PullProgress, catalog, download

if TYPE_CHECKING:
    from collections.abc import Iterator

TINY = "Systran/faster-whisper-tiny"
V3 = "istupakov/gigaam-v3-onnx"
MODEL = os.urandom(1 << 20) * 3
WHISPER = {
    "config.json": b'{"lang_ids": [1, 2]}',
    "model.bin": MODEL,
    "tokenizer.json": b"{}" * 800,
    "vocabulary.txt": b"a\nb\n",
    "README.md": b"read me",
    ".gitattributes": b"*.bin",
}
GIGAAM = {
    "config.json": b'{"model_type": "gigaam", "version": "v3"}',
    "v3_ctc.onnx": b"ctc" * 500,
    "v3_ctc.int8.onnx": b"ctc8" * 400,
    "v3_e2e_rnnt_encoder.onnx": b"encoder" * 500,
    "v3_e2e_rnnt_decoder.onnx": b"decoder" * 50,
    "v3_e2e_rnnt_joint.onnx": b"joint" * 50,
    "v3_e2e_rnnt_vocab.txt": b"a 0\n",
    "v3_vocab.txt": b"a 0\n",
}


@pytest.fixture(autouse=True)
def _quick_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({TINY: dict(WHISPER), V3: dict(GIGAAM)}) as hub:
        yield hub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(models: Path, hub: FakeHub) -> ModelStore:
    return ModelStore(models, endpoint=hub.url)


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def put_in_cache(root: Path, repo: str, files: dict[str, bytes], *, main: bool = True) -> Path:
    """A repository as huggingface_hub lays it out: blobs by their hash, and links to them."""
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest() if len(content) > 1000 else blob_id(content)
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / digest).write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder / "blobs" / digest, link.parent))
    if main:
        put(folder, {"refs/main": COMMIT.encode()})
    return snapshot


def says(error: pytest.ExceptionInfo[StenografError], *parts: object) -> None:
    for part in parts:
        assert str(part) in str(error.value)


# Pulling


def test_pull(store: ModelStore, hub: FakeHub, models: Path) -> None:
    seen: list[PullProgress] = []
    model = store.pull("tiny", seen.append)
    assert (model.name, model.engine, model.onnx_type) == ("tiny", "faster-whisper", None)
    assert model.path == models / "tiny"
    assert {path.name for path in model.path.iterdir()} == {
        "config.json", "model.bin", "tokenizer.json", "vocabulary.txt", "stenograf.json",
    }  # fmt: skip
    assert (model.path / "model.bin").read_bytes() == MODEL
    total = sum(len(WHISPER[file]) for file in ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt"))
    assert (seen[-1].done, seen[-1].total, seen[-1].phase) == (total, total, "downloading")
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert len(seen) > 4
    assert not (models / ".partial" / "tiny").exists()
    assert store.resolve("tiny", allow_path=False) == model
    assert store.path("tiny") == model.path


def test_manifest(store: ModelStore) -> None:
    manifest = json.loads((store.pull("tiny").path / "stenograf.json").read_text())
    assert manifest["repo"] == TINY
    assert manifest["revision"] == COMMIT
    for name, facts in manifest["files"].items():
        content = WHISPER[name]
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_pull_takes_only_the_variant(store: ModelStore, models: Path) -> None:
    model = store.pull("gigaam-v3-e2e-rnnt")
    assert model.onnx_type == "gigaam-v3-e2e-rnnt"
    assert model.quantization is None
    assert not (models / "gigaam-v3-e2e-rnnt" / "v3_ctc.onnx").exists()


def test_pull_again_asks_for_nothing(store: ModelStore, hub: FakeHub) -> None:
    store.pull("tiny")
    hub.requests.clear()
    seen: list[PullProgress] = []
    store.pull("tiny", seen.append)
    assert hub.requests == []
    assert {step.phase for step in seen} == {"verifying"}


def test_goes_on_within_a_pull(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.break_after["model.bin"] = 1_000_000
    assert (store.pull("tiny").path / "model.bin").read_bytes() == MODEL
    first, second = hub.files("model.bin")
    assert first.sent == 1_000_000
    assert second.sent_from == 1_000_000
    assert second.sent == len(MODEL) - 1_000_000


def interrupt(progress: PullProgress) -> None:
    """Stop a pull in the middle of its largest file."""
    if progress.file == "model.bin" and progress.done >= 2_100_000:
        raise KeyboardInterrupt


def test_goes_on_in_another_process(store: ModelStore, hub: FakeHub, models: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("tiny", interrupt)
    assert not (models / "tiny").exists()
    assert store.installed() == []
    hub.requests.clear()
    seen: list[PullProgress] = []
    ModelStore(models, endpoint=hub.url).pull("tiny", seen.append)
    (request,) = hub.files("model.bin")
    assert 2_000_000 < request.sent_from < len(MODEL)
    assert request.sent == len(MODEL) - request.sent_from
    assert hub.files("config.json") == []  # that one was complete
    assert seen[-1].done == seen[-1].total
    assert not list(models.rglob("*.part"))


def test_what_was_kept_of_another_version_is_not_gone_on_with(store: ModelStore, hub: FakeHub) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("tiny", interrupt)
    hub.repos[TINY]["model.bin"] = newer = MODEL[::-1]
    hub.requests.clear()
    assert (store.pull("tiny").path / "model.bin").read_bytes() == newer
    (request,) = hub.files("model.bin")
    assert request.sent_from == 0


def test_connection_that_ends_early_without_an_error(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.no_length = True
    hub.faults.break_after["model.bin"] = 1_000_000
    assert (store.pull("tiny").path / "model.bin").read_bytes() == MODEL
    assert [request.sent for request in hub.files("model.bin")] == [1_000_000, len(MODEL) - 1_000_000]


@pytest.mark.parametrize("no_length", [True, False])
def test_connections_of_which_nothing_comes(store: ModelStore, hub: FakeHub, no_length: bool) -> None:
    hub.faults.no_length = no_length
    hub.faults.cut_always.add("model.bin")
    with pytest.raises(DownloadFailedError, match="broke off") as error:
        store.pull("tiny")
    says(error, "the next pull goes on with it")
    assert len(hub.files("model.bin")) == 1 + len(download.PAUSES)


def test_server_without_ranges(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.no_ranges = True
    hub.faults.break_after["model.bin"] = 1_000_000
    seen: list[PullProgress] = []
    assert (store.pull("tiny", seen.append).path / "model.bin").read_bytes() == MODEL
    assert seen[-1].done == seen[-1].total


def test_gives_up_when_nothing_comes(store: ModelStore, hub: FakeHub, models: Path) -> None:
    hub.faults.status["model.bin"] = 503
    with pytest.raises(DownloadFailedError, match="503"):
        store.pull("tiny")
    assert len(hub.files("model.bin")) == 1 + len(download.PAUSES)
    assert not (models / "tiny").exists()


@pytest.mark.parametrize("name", ["model.bin", "vocabulary.txt"])  # known by sha256, by git's sha1
def test_corrupted_bytes_are_refused(store: ModelStore, hub: FakeHub, models: Path, name: str) -> None:
    hub.faults.corrupt.add(name)
    with pytest.raises(DownloadFailedError) as error:
        store.pull("tiny")
    says(error, name, "hash differs", "Nothing was installed")
    assert not (models / "tiny").exists()
    hub.faults.corrupt.clear()
    hub.requests.clear()
    store.pull("tiny")
    (request,) = hub.files(name)
    assert "range" not in request.headers  # nothing of the bad one was kept


def test_longer_than_announced(store: ModelStore, hub: FakeHub, models: Path) -> None:
    class Longer(dict[str, bytes]):
        def get(self, name: str, default: Any = None) -> Any:
            return super().get(name, default) + b"more" if name == "model.bin" else super().get(name, default)

    hub.repos[TINY] = Longer(WHISPER)
    with pytest.raises(DownloadFailedError, match=r"More than the \d+ bytes"):
        store.pull("tiny")
    assert not (models / "tiny").exists()


def test_mirror_that_lists_names_only(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.bare_listing = True
    assert (store.pull("tiny").path / "model.bin").read_bytes() == MODEL
    assert store.verify("tiny") == 4


def test_repository_that_lacks_a_file(store: ModelStore, hub: FakeHub) -> None:
    del hub.repos[TINY]["tokenizer.json"]
    with pytest.raises(DownloadFailedError) as error:
        store.pull("tiny")
    says(error, TINY, "tokenizer.json")
    assert hub.files() == []


def test_listing_cannot_lead_out_of_the_folder(models: Path, hub: FakeHub) -> None:
    hub.repos["alphacep/vosk-model-ru"] = {
        f"{folder}/{name}": b"x"
        for folder in ("..", "am-onnx")
        for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt")
    }
    ModelStore(models, endpoint=hub.url).pull("vosk-model-ru")
    assert (models / "vosk-model-ru/am-onnx/encoder.onnx").is_file()
    assert not list(models.rglob("../encoder.onnx"))
    assert not (models / "encoder.onnx").exists()
    assert not (models / ".partial" / "encoder.onnx").exists()


def test_token_and_mirror(models: Path, hub: FakeHub) -> None:
    hub.faults.token = "hf_secret"
    with pytest.raises(DownloadFailedError) as error:
        ModelStore(models, endpoint=hub.url).pull("tiny")
    says(error, "HTTP 401", "HF_TOKEN", TINY)
    hub.requests.clear()
    ModelStore(models, endpoint=f"{hub.url}/", token="hf_secret").pull("tiny")
    assert len(hub.requests) == 5
    assert {request.headers["authorization"] for request in hub.requests} == {"Bearer hf_secret"}


def test_token_of_this_machine_goes_to_no_mirror(
    store: ModelStore, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(tmp_path / "hf-home", {"token": b"hf_left_by_login"})
    monkeypatch.setenv("HF_TOKEN", "hf_left_by_login")
    store.pull("tiny")
    assert not [request for request in hub.requests if "authorization" in request.headers]


def test_token_is_not_carried_to_another_host(store: ModelStore, models: Path, hub: FakeHub) -> None:
    with FakeHub({TINY: dict(WHISPER)}) as cdn:
        hub.faults.cdn = cdn.url.replace("127.0.0.1", "localhost")
        cdn.faults.break_after["model.bin"] = 1_000_000
        ModelStore(models, endpoint=hub.url, token="hf_secret").pull("tiny")
        assert [request.sent for request in cdn.files("model.bin")] == [1_000_000, len(MODEL) - 1_000_000]
        assert not [request for request in cdn.requests if "authorization" in request.headers]


@pytest.mark.parametrize(("status", "part"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "mirror"), (500, "HTTP 500")])
@pytest.mark.parametrize("path", ["/api/models", "model.bin"])
def test_refusals(store: ModelStore, hub: FakeHub, status: int, part: str, path: str) -> None:
    hub.faults.status[path] = status
    with pytest.raises(DownloadFailedError) as error:
        store.pull("tiny")
    says(error, part, hub.url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "hub.example", "ftp://hub.example", "http://[hub"])
def test_no_hub_there(models: Path, endpoint: str) -> None:
    with pytest.raises(DownloadFailedError) as error:
        ModelStore(models, endpoint=endpoint).pull("tiny")
    says(error, endpoint, "HF_ENDPOINT", "HTTPS_PROXY")


def test_no_room(store: ModelStore, hub: FakeHub, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(models.parent)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError) as error:
        store.pull("tiny")
    says(error, "53 MB are needed", "1 MB are free", models)
    assert hub.files() == []


def run(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, with nothing of this one's environment but the path."""
    bare = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": env.get("HF_HOME", "/"),
    }
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=bare | env, capture_output=True, text=True, timeout=60, check=False)


PULL = """
    import os, sys
    from pathlib import Path
    from stenograf.models import ModelStore
    store = ModelStore(Path(os.environ["MODELS"]), endpoint=os.environ["HUB"])
    print(store.pull("tiny", lambda p: p.phase == "waiting" and print("waiting")).path)
"""


def test_proxy_of_the_environment(tmp_path: Path, models: Path, hub: FakeHub) -> None:
    """The hub serves as a forward proxy here: it is asked for addresses of a host that does not exist."""
    env = {
        "HTTP_PROXY": hub.url,
        "HUB": "http://hub.invalid",
        "MODELS": str(models),
        "HF_HOME": str(tmp_path),
    }
    done = run(PULL, env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bars or warnings of the library
    assert (models / "tiny" / "model.bin").read_bytes() == MODEL
    assert {request.headers["host"] for request in hub.requests} == {"hub.invalid"}


def test_two_processes_at_once(tmp_path: Path, models: Path, hub: FakeHub) -> None:
    hub.faults.slow = 0.3
    env = {"HUB": hub.url, "MODELS": str(models), "HF_HOME": str(tmp_path)}
    done: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: done.append(run(PULL, env))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 2
    assert len(hub.files("model.bin")) == 1
    assert len([request for request in hub.requests if "/api/" in request.path]) == 1
    assert sorted("waiting" in each.stdout for each in done) == [False, True]


def test_remove_does_not_wait_for_a_download(store: ModelStore, hub: FakeHub) -> None:
    hub.faults.slow = 0.2
    errors = []

    def remove(progress: PullProgress) -> None:
        with pytest.raises(ModelNotInstalledError, match="Another process") as error:
            ModelStore(store.models_dir).remove("tiny")
        errors.append(error)

    store.pull("tiny", remove)
    assert errors


def test_pull_of_an_unknown_name(store: ModelStore, hub: FakeHub) -> None:
    with pytest.raises(ModelUnknownError) as error:
        store.pull("tine")
    says(error, "'tine'", "Did you mean tiny", "stenograf models list")
    assert hub.requests == []


# Offline


def test_offline_says_what_where_and_how(models: Path, hub: FakeHub) -> None:
    store = ModelStore(models, endpoint=hub.url, offline=True)
    for ask in (store.pull, store.path):
        with pytest.raises(ModelNotInstalledError) as error:
            ask("turbo")
        says(
            error,
            "config.json, model.bin, tokenizer.json, vocabulary.*, preprocessor_config.json",
            models / "turbo",
            "STENOGRAF_MODELS_DIR=./models stenograf models pull turbo",
            "copy ./models/turbo to",
        )
    assert hub.requests == []
    assert not models.exists()


def test_what_the_offline_error_advises_works(tmp_path: Path, store: ModelStore, hub: FakeHub) -> None:
    there = tmp_path / "air-gapped"
    shutil.copytree(store.pull("tiny").path, there / "tiny")
    offline = ModelStore(there, offline=True)
    assert offline.pull("tiny").path == there / "tiny"
    assert offline.verify("tiny") == 4


def test_online_but_not_here(store: ModelStore) -> None:
    with pytest.raises(ModelNotInstalledError) as error:
        store.resolve("tiny", allow_path=False)
    says(error, "stenograf models pull tiny", "78 MB")


# Damage and repair


def test_changed_byte(store: ModelStore, hub: FakeHub) -> None:
    path = store.pull("tiny").path / "model.bin"
    path.write_bytes(MODEL[:-1] + b"?")
    assert store.resolve("tiny", allow_path=False)  # the length is right: only hashing tells
    with pytest.raises(ModelDamagedError) as error:
        store.verify("tiny")
    says(error, "model.bin", "stenograf models pull tiny")
    hub.requests.clear()
    store.pull("tiny")
    assert path.read_bytes() == MODEL
    assert [request.path.rsplit("/", 1)[1] for request in hub.files()] == ["model.bin"]
    assert store.verify("tiny") == 4


@pytest.mark.parametrize("content", [None, b"", MODEL[:1000]])
def test_missing_empty_or_cut_off(store: ModelStore, hub: FakeHub, content: bytes | None) -> None:
    path = store.pull("tiny").path / "model.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelDamagedError, match=r"model\.bin") as error:
        store.resolve("tiny", allow_path=False)
    says(error, "stenograf models pull tiny")
    (line,) = store.installed()
    assert line.problem == error.value.message
    hub.requests.clear()
    assert (store.pull("tiny").path / "model.bin").read_bytes() == MODEL
    assert len(hub.files()) == 1


def test_repair_that_fails_leaves_something_to_go_on_with(store: ModelStore, hub: FakeHub) -> None:
    (store.pull("tiny").path / "model.bin").unlink()
    hub.faults.status["model.bin"] = 404
    with pytest.raises(DownloadFailedError):
        store.pull("tiny")
    hub.faults.status.clear()
    hub.requests.clear()
    store.pull("tiny")
    assert len(hub.files()) == 1


def test_verify_of_a_model_put_there_by_hand(store: ModelStore, models: Path) -> None:
    put(models / "tiny", WHISPER)
    assert store.verify("tiny") == 0


# Folders, paths and caches


def test_folder_by_hand(store: ModelStore, models: Path) -> None:
    put(models / "my-finetune", WHISPER)
    model = store.resolve("my-finetune", allow_path=False)
    assert (model.name, model.engine, model.entry) == ("my-finetune", "faster-whisper", None)
    assert store.pull("my-finetune") == model
    with pytest.raises(ModelUnknownError, match="Did you mean my-finetune"):
        store.resolve("my-finetun", allow_path=False)


def test_folder_called_by_an_alias(store: ModelStore, models: Path, hub: FakeHub) -> None:
    put(models / "large-v3-turbo", WHISPER | {"preprocessor_config.json": b"{}"})
    model = store.resolve("turbo", allow_path=False)
    assert (model.name, model.path) == ("turbo", models / "large-v3-turbo")
    assert store.pull("turbo").path == model.path
    assert hub.requests == []


def test_path(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "elsewhere" / "model", WHISPER)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), "./model", "model", "~/elsewhere/model", "../elsewhere/model/"):
        model = store.resolve(name, allow_path=True)
        assert model.path.resolve() == folder
        assert (model.name, model.source, model.entry) == ("model", "path", None)
        with pytest.raises(ModelUnknownError):
            store.resolve(name, allow_path=False)


def test_a_name_of_the_catalog_wins_over_a_folder_here(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "tiny", WHISPER)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotInstalledError):
        store.resolve("tiny", allow_path=True)
    assert store.resolve("./tiny", allow_path=True).path == tmp_path / "tiny"


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "",
        " ",
        "/",
        "a/../../secret",
        "..\\secret",
        "~",
        "~root",
        "secret\x00",
        "C:secret",
        ".partial",
        ".hidden",
    ],
)
def test_names_from_the_network_stay_inside(store: ModelStore, models: Path, name: str) -> None:
    put(models.parent / "secret", WHISPER)
    put(models / "here", WHISPER)
    put(models / ".partial", WHISPER)
    for ask in (store.path, store.pull, store.verify, store.remove):
        with pytest.raises(ModelUnknownError):
            ask(name)
    assert (models.parent / "secret" / "model.bin").is_file()


def test_absolute_name_from_the_network(store: ModelStore, tmp_path: Path) -> None:
    folder = put(tmp_path / "secret", WHISPER)
    with pytest.raises(ModelUnknownError):
        store.resolve(str(folder), allow_path=False)


@pytest.mark.parametrize("allow_path", [True, False])
def test_endless_name(store: ModelStore, allow_path: bool) -> None:
    with pytest.raises(ModelUnknownError) as error:
        store.resolve("x" * 10_000, allow_path=allow_path)
    assert len(str(error.value)) < 300


def test_path_to_nothing(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(ModelUnknownError, match="no folder"):
        store.resolve(str(tmp_path / "nothing"), allow_path=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnknownError, match=r"model\.bin"):
        store.resolve(str(tmp_path / "empty"), allow_path=True)


def test_model_in_the_cache_of_other_programs(tmp_path: Path, store: ModelStore, models: Path, hub: FakeHub) -> None:
    root = tmp_path / "hf-home" / "hub"
    snapshot = put_in_cache(root, TINY, WHISPER)
    model = store.resolve("tiny", allow_path=False)
    assert (model.path, model.source) == (snapshot, "hub cache")
    (line,) = store.installed()
    assert (line.name, line.path, line.source, line.problem) == ("tiny", snapshot, "hub cache", "")
    assert store.verify("tiny") == 5  # the blobs are called by their hashes
    with pytest.raises(ModelNotInstalledError) as error:
        store.remove("tiny")
    says(error, root / "models--Systran--faster-whisper-tiny", f"hf cache rm model/{TINY}")
    assert snapshot.is_dir()
    assert not models.exists()
    assert hub.requests == []


def test_pull_copies_from_that_cache(tmp_path: Path, store: ModelStore, models: Path, hub: FakeHub) -> None:
    put_in_cache(tmp_path / "hf-home" / "hub", TINY, WHISPER | {"model.bin": MODEL[:-1] + b"?"})
    model = store.pull("tiny")
    assert model.path == models / "tiny"
    assert not (model.path / "tokenizer.json").is_symlink()
    assert [request.path.rsplit("/", 1)[1] for request in hub.files()] == ["model.bin"]  # the bad one
    assert (model.path / "model.bin").read_bytes() == MODEL


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"])
def test_where_that_cache_is(tmp_path: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    root = tmp_path / "cache" / ("huggingface/hub" if variable == "XDG_CACHE_HOME" else "")
    put_in_cache(root, TINY, WHISPER, main=False)
    assert store.resolve("tiny", allow_path=False).source == "hub cache"


def test_incomplete_cache_is_not_used(tmp_path: Path, store: ModelStore) -> None:
    put_in_cache(tmp_path / "hf-home" / "hub", TINY, {"config.json": b"{}", "model.bin": MODEL})
    with pytest.raises(ModelNotInstalledError):
        store.resolve("tiny", allow_path=False)
    assert store.installed() == []


def test_models_folder_as_a_cache(store: ModelStore, models: Path) -> None:
    snapshot = put_in_cache(models, TINY, WHISPER)
    model = store.resolve("tiny", allow_path=False)
    assert (model.name, model.path, model.source) == ("tiny", snapshot, "models folder")
    assert store.resolve("models--Systran--faster-whisper-tiny", allow_path=False).path == snapshot
    assert store.resolve(str(snapshot.parent.parent), allow_path=True).path == snapshot
    assert [line.name for line in store.installed()] == ["tiny"]
    assert store.remove("tiny") == snapshot.parent.parent
    assert store.installed() == []


def test_one_repository_of_several_models(store: ModelStore, models: Path) -> None:
    put_in_cache(models, V3, GIGAAM)
    assert store.resolve("gigaam-v3-ctc", allow_path=False).onnx_type == "gigaam-v3-ctc"
    assert store.resolve("gigaam-v3-e2e-rnnt", allow_path=False).onnx_type == "gigaam-v3-e2e-rnnt"
    with pytest.raises(ModelNotInstalledError):
        store.resolve("gigaam-v3-rnnt", allow_path=False)
    with pytest.raises(ModelUnknownError) as error:
        store.remove("gigaam-v3-ctc")
    says(error, "together with gigaam-v3-e2e-rnnt", "models remove models--istupakov--gigaam-v3-onnx")
    store.remove("models--istupakov--gigaam-v3-onnx")
    assert store.installed() == []


# Removing and listing


def test_remove(store: ModelStore, models: Path) -> None:
    path = store.pull("tiny").path
    assert store.remove("TINY") == path
    assert [entry.name for entry in models.iterdir()] == [".partial"]
    with pytest.raises(ModelNotInstalledError):
        store.remove("tiny")
    with pytest.raises(ModelUnknownError):
        store.remove("no-such-model")


def test_remove_what_is_not_finished(store: ModelStore, hub: FakeHub, models: Path) -> None:
    hub.faults.status["model.bin"] = 404
    with pytest.raises(DownloadFailedError):
        store.pull("tiny")
    partial = models / ".partial" / "tiny"
    assert partial.is_dir()
    assert store.remove("tiny") == partial
    assert not partial.exists()


def test_remove_of_a_link_leaves_what_it_leads_to(store: ModelStore, models: Path, tmp_path: Path) -> None:
    folder = put(tmp_path / "shared", WHISPER)
    models.mkdir()
    (models / "linked").symlink_to(folder)
    assert store.resolve("linked", allow_path=False).engine == "faster-whisper"
    store.remove("linked")
    assert not (models / "linked").exists()
    assert (folder / "model.bin").is_file()


def test_installed(store: ModelStore, models: Path) -> None:
    assert store.installed() == []
    store.pull("tiny")
    put(models / "b-damaged", {"model.bin": b"x", "config.json": b"{}"})
    put(models / "c-nothing", {"notes.txt": b"x"})
    put(models / ".hidden", WHISPER)
    damaged, nothing, tiny = store.installed()
    assert (damaged.name, damaged.engine) == ("b-damaged", None)
    assert "tokenizer.json, vocabulary.* are missing" in damaged.problem
    assert nothing.problem
    assert (tiny.name, tiny.problem, tiny.source) == ("tiny", "", "models folder")
    assert tiny.entry == catalog.find("tiny")
    assert tiny.bytes > len(MODEL)


# A models folder that may not be written

AS_NOBODY = """
    import os
    from pathlib import Path
    from stenograf.errors import StenografError
    from stenograf.models import ModelStore
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    models = Path(os.environ["MODELS"])
    store = ModelStore(models, endpoint=os.environ["HUB"])
    print(store.resolve("tiny", allow_path=False).path == models / "tiny")
    print(store.verify("tiny"), [line.name for line in store.installed()], store.pull("tiny").name)
    for attempt in (lambda: store.pull("gigaam-v3-ctc"), lambda: store.remove("tiny")):
        try:
            attempt()
        except StenografError as error:
            print(type(error).__name__, error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_read_only_folder(hub: FakeHub, open_folder: Path) -> None:
    models = open_folder / "models"
    ModelStore(models, endpoint=hub.url).pull("tiny")
    shutil.rmtree(models / ".partial")
    before = sorted(models.rglob("*"))
    models.chmod(0o555)
    (models / "tiny").chmod(0o555)
    try:
        done = run(AS_NOBODY, {"MODELS": str(models), "HUB": hub.url, "HF_HOME": str(open_folder / "hf")})
    finally:
        models.chmod(0o755)
        (models / "tiny").chmod(0o755)
    assert done.returncode == 0, done.stderr
    first, second, pull, remove = done.stdout.splitlines()
    assert first == "True"
    assert second == "4 ['tiny'] tiny"
    for line in (pull, remove):
        assert line.startswith("ModelsReadOnlyError")
        assert str(models) in line
        assert "STENOGRAF_MODELS_DIR" in line
    assert sorted(models.rglob("*")) == before


def test_models_folder_is_a_file(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelsReadOnlyError):
        ModelStore(tmp_path / "file", endpoint=hub.url).pull("tiny")
    with pytest.raises(ModelsReadOnlyError):
        ModelStore(tmp_path / "file", endpoint=hub.url).installed()


# Layouts

NEMO = {"encoder-model.onnx": b"e", "decoder_joint-model.onnx": b"d", "vocab.txt": b"v"}
PARTS = "encoder", "decoder", "joiner"
VOSK = {f"am-onnx/{part}.onnx": b"w" for part in PARTS} | {"lang/tokens.txt": b"t"}
RNNT = {f"v3_rnnt_{part}.onnx": b"w" for part in ("encoder", "decoder", "joint")} | {"v3_vocab.txt": b"v"}
NO_TOKENIZER = {name: WHISPER[name] for name in ("config.json", "model.bin", "vocabulary.txt")}
LARGE_V3 = WHISPER | {"config.json": json.dumps({"lang_ids": [1] * 100}).encode()}


def config(model_type: str) -> dict[str, bytes]:
    return {"config.json": json.dumps({"model_type": model_type}).encode()}


@pytest.mark.parametrize(
    ("files", "onnx_type", "quantization"),
    [
        (RNNT | config("gigaam"), "gigaam-v3-rnnt", None),
        ({"v3_ctc.onnx": b"m", "v3_vocab.txt": b"v"} | config("gigaam"), "gigaam-v3-ctc", None),
        ({"v3_ctc.int8.onnx": b"m", "v3_vocab.txt": b"v"} | config("gigaam"), "gigaam-v3-ctc", "int8"),
        (
            {"v3_e2e_ctc.onnx": b"m", "v3_e2e_ctc_vocab.txt": b"v"} | config("gigaam"),
            "gigaam-v3-e2e-ctc",
            None,
        ),
        ({"v2_ctc.onnx": b"m", "v2_vocab.txt": b"v"}, "gigaam-v2-ctc", None),
        ({"v2_ctc.ort": b"m", "v2_vocab.txt": b"v"}, "gigaam-v2-ctc", None),
        (
            {"multilingual_large_ctc.onnx": b"m", "multilingual_vocab.txt": b"v"} | config("gigaam"),
            "gigaam-multilingual-ctc",
            None,
        ),
        (NEMO | config("nemo-conformer-tdt"), "nemo-conformer-tdt", None),
        (NEMO | config("nemo-conformer-rnnt"), "nemo-conformer-rnnt", None),
        (
            {name.replace("model", "model.int8"): b"x" for name in NEMO} | config("nemo-conformer-tdt"),
            "nemo-conformer-tdt",
            "int8",
        ),
        ({"model.onnx": b"m", "vocab.txt": b"v"} | config("nemo-conformer-ctc"), "nemo-conformer-ctc", None),
        (VOSK, "vosk", None),
        ({"model.onnx": b"m", "config.json": b'{"decoder_params": {}}'}, "t-one-ctc", None),
        (
            {"onnx/encoder_model.onnx": b"e", "onnx/decoder_model_merged.onnx": b"d"}
            | {"vocab.json": b"{}", "added_tokens.json": b"{}"}
            | config("whisper"),
            "whisper",
            None,
        ),
    ],
)
def test_layouts_of_onnx_asr(
    store: ModelStore, tmp_path: Path, files: dict[str, bytes], onnx_type: str, quantization: str | None
) -> None:
    folder = put(tmp_path / "model", files)
    model = store.resolve(str(folder), allow_path=True)
    assert (model.engine, model.onnx_type, model.quantization) == ("onnx-asr", onnx_type, quantization)
    # onnx-asr itself finds the files by what we tell it.
    loader = pytest.importorskip("onnx_asr.loader")
    resolver = loader.create_asr_resolver(model.onnx_type, folder, offline=True)
    assert resolver.resolve_model(quantization=model.quantization)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (NO_TOKENIZER, "tokenizer.json is missing"),
        ({"model.bin": b"x"}, "config.json, tokenizer.json, vocabulary.* are missing"),
        (LARGE_V3, "preprocessor_config.json is missing"),
        (WHISPER | {"model.bin": b""}, "model.bin (empty) is missing"),
        (RNNT, "config.json is missing"),  # onnx-asr would take it for v2, silently
        (RNNT | {"v3_rnnt_joint.onnx": b""} | config("gigaam"), "v3_rnnt_joint.onnx (empty) is missing"),
        ({"v3_ctc.onnx": b"m"} | config("gigaam"), "v3_vocab.txt is missing"),
        (NEMO, "config.json with model_type is missing"),
        ({"encoder-model.onnx": b"m"} | config("nemo-conformer-tdt"), "_joint-model.onnx, vocab.txt are"),
        ({"am-onnx/encoder.onnx": b"e", "lang/tokens.txt": b"t"}, "*/decoder.onnx, */joiner.onnx are"),
    ],
)  # fmt: skip
def test_damaged_layouts(store: ModelStore, tmp_path: Path, files: dict[str, bytes], missing: str) -> None:
    with pytest.raises(ModelDamagedError) as error:
        store.resolve(str(put(tmp_path / "model", files)), allow_path=True)
    says(error, missing, tmp_path / "model")


@pytest.mark.parametrize(
    "files", [{"pytorch_model.bin": b"x"}, {"silero_vad.onnx": b"x"}, {"a.pt": b"x", "b.pt": b"x"}]
)
def test_no_layout(store: ModelStore, tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ModelUnknownError):
        store.resolve(str(put(tmp_path / "model", files)), allow_path=True)


def test_another_model_in_a_folder_of_the_catalogs_name(store: ModelStore, models: Path) -> None:
    put(models / "tiny", RNNT | config("gigaam"))
    model = store.resolve("tiny", allow_path=False)
    assert (model.engine, model.onnx_type, model.entry) == ("onnx-asr", "gigaam-v3-rnnt", None)


@pytest.mark.parametrize(("folder", "engine"), [("whisper-test", "faster-whisper"), ("gigaam-test", "onnx-asr")])
def test_our_own_small_models(store: ModelStore, folder: str, engine: str) -> None:
    path = Path(__file__).parent / "models" / folder
    if not path.is_dir():
        pytest.skip(f"{path.name} is not there")
    assert store.resolve(str(path), allow_path=True).engine == engine


def test_every_model_of_the_catalog_can_be_pulled(models: Path) -> None:
    """From a hub that has exactly the files that are asked for; what comes is what onnx-asr can find.

    The `.pt` files, whose hashes are known, come from elsewhere: `test_models_pt.py`.
    """
    repos: dict[str, dict[str, bytes]] = {}
    on_hub = [entry for entry in catalog.ENTRIES if entry.repo]
    for entry in on_hub:
        names = (pattern.replace("*", "x").replace("?", ".") for pattern in entry.files)
        repos.setdefault(entry.repo, {}).update({name: name.encode() for name in names})
    with FakeHub(repos) as hub:
        store = ModelStore(models, endpoint=hub.url)
        resolver = pytest.importorskip("onnx_asr.loader").create_asr_resolver
        for entry in on_hub:
            model = store.pull(entry.name)
            assert (model.entry, model.onnx_type, model.quantization) == (
                entry, entry.onnx_type, entry.quantization,
            )  # fmt: skip
            if entry.onnx_type:
                files = resolver(entry.onnx_type, model.path, offline=True)
                assert files.resolve_model(quantization=entry.quantization)
        assert [line.problem for line in store.installed()] == [""] * len(on_hub)
