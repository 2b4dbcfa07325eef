"""The command line as a person uses it: real processes, real recordings, the small real models."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import media
from conftest import Clip, clips
from fake_hub import FakeHub
from stenograf.cli import COMMANDS

ROOT = Path(__file__).parent.parent
MODELS = Path(__file__).parent / "models"
STENOGRAF = [sys.executable, "-m", "stenograf"]


class Result:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr


Run = Callable[..., Result]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    return kept | {
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "200",
        "STENOGRAF_MODELS_DIR": str(MODELS),
        "STENOGRAF_DEFAULT_MODEL": "whisper-test",
        "STENOGRAF_OFFLINE": "1",
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def run(environment: dict[str, str], work: Path) -> Run:
    def run(*arguments: str | Path, stdin: bytes | None = None, **env: str) -> Result:
        done = subprocess.run(
            [*STENOGRAF, *map(str, arguments)],
            capture_output=True,
            cwd=work,
            env=environment | env,
            input=stdin if stdin is not None else b"",
            timeout=120,
            check=False,
        )
        text = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "replace")
        )
        assert "Traceback" not in text.stderr or "-v" in arguments, text.stderr
        return Result(text)

    return run


def short(language: str = "ru") -> Clip:
    return next(c for c in clips() if "whisper-test" in c.exact and c.language == language and c.duration < 6)


def long() -> Clip:
    return next(c for c in clips() if c.data.get("sentences") and c.language == "ru")


def put(clip: Clip, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(clip.path, target))


# What goes where


def test_the_text_goes_to_stdout_and_all_else_to_stderr(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    result = run("transcribe", "a.ogg")
    assert result.status == 0
    assert result.out == short().text + "\n"
    assert "a.ogg: ru" in result.err
    assert sorted(os.listdir(work)) == ["a.ogg"]


def test_quiet_says_nothing(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    result = run("transcribe", "-q", "a.ogg")
    assert (result.out, result.err) == (short().text + "\n", "")


def test_nothing_is_told_to_anyone(run: Run, work: Path, environment: dict[str, str]) -> None:
    """ONNX Runtime keeps what it is about to send in the cache folder of the user: with telemetry off there is none."""
    put(short(), work / "a.ogg")
    assert run("transcribe", "a.ogg").status == 0
    assert run("transcribe", "a.ogg", "-m", "gigaam-test").status == 0
    assert run("doctor").status == 0
    assert not [path for path in Path(environment["HOME"]).rglob("*") if path.is_file()]


AUTO = {"STENOGRAF_DEFAULT_MODEL": "auto"}


def test_auto_takes_a_model_for_each_recording(run: Run, work: Path) -> None:
    put(rnnt(), work / "a.ogg")
    put(short("en"), work / "b.ogg")
    put(rnnt(), work / "c.ogg")
    result = run("transcribe", "--json", "a.ogg", "b.ogg", "c.ogg", **AUTO)
    assert result.status == 0, result.err
    russian, english, _ = map(json.loads, result.out.splitlines())
    assert result.err.count("gigaam-v3-e2e-rnnt would do better") == 1  # not for each recording
    assert (russian["model"], russian["language"], english["model"]) == ("gigaam-rnnt-test", "ru", "whisper-test")
    assert russian["model_reason"].endswith("whisper-test heard Russian")
    assert "Model gigaam-rnnt-test on cpu" in result.err
    assert "would do better" in result.err


def rnnt() -> Clip:
    return next(c for c in clips() if "gigaam-rnnt-test" in c.exact and c.duration < 6)


def test_auto_reads_standard_input_too(run: Run, work: Path) -> None:
    result = run("transcribe", "-", stdin=rnnt().path.read_bytes(), **AUTO)
    assert result.status == 0, result.err
    assert rnnt().text.lower().split()[0] in result.out


def test_auto_without_any_model_says_what_to_do(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    result = run("transcribe", "-l", "ru", "a.ogg", STENOGRAF_MODELS_DIR=str(work), **AUTO)
    assert result.status == 1
    assert "No model that can be had here reads Russian" in result.err
    assert "stenograf models pull gigaam-v3-e2e-rnnt" in result.err


def test_several_recordings_have_headings(run: Run, work: Path) -> None:
    put(short("ru"), work / "a.ogg")
    put(short("en"), work / "b.ogg")
    result = run("transcribe", "a.ogg", "-f", "b.ogg")
    assert result.out == f"==> a.ogg <==\n{short('ru').text}\n\n==> b.ogg <==\n{short('en').text}\n\n"
    assert "2 done, 0 failed" in result.err


def test_json_lines(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    (work / "empty.ogg").touch()
    result = run("transcribe", "--json", "--word-timestamps", "a.ogg", "empty.ogg")
    assert result.status == 1
    first, second = map(json.loads, result.out.splitlines())
    assert first["file"] == "a.ogg"
    assert first["text"] == short().text
    assert first["segments"][0]["words"][0].keys() == {"word", "start", "end", "probability"}
    assert first["language"] == "ru"
    assert first["timings"].keys() >= {"load", "language", "total"}
    assert second["error"]["code"] == "file_empty"


def test_files_beside_the_recording(run: Run, work: Path) -> None:
    put(short(), work / "Голосовое сообщение 🎤.ogg")
    result = run("transcribe", "Голосовое сообщение 🎤.ogg", "--format", "srt,txt", "--format", "docx")
    assert result.status == 0
    assert result.out == ""
    stem = "Голосовое сообщение 🎤"
    assert sorted(os.listdir(work)) == sorted(f"{stem}{s}" for s in (".docx", ".ogg", ".srt", ".txt"))
    assert (work / f"{stem}.txt").read_text("utf-8") == short().text + "\n"
    assert short().text.split()[0] in (work / f"{stem}.srt").read_text("utf-8")


def test_subtitles_on_stdout(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    shown = run("transcribe", "a.ogg", "-o", "-", "--format", "srt").out
    assert shown.startswith("1\n00:00:")
    assert run("transcribe", "a.ogg", "-o", "-").out == short().text + "\n"
    assert os.listdir(work) == ["a.ogg"]


def test_the_name_of_a_result_does_not_depend_on_how_the_recording_was_named(run: Run, work: Path) -> None:
    put(short("ru"), work / "a.ogg")
    put(short("en"), work / "a.mp3")
    assert run("transcribe", "a.ogg", "--format", "txt").status == 0
    assert run("transcribe", "a.mp3", "--format", "txt").status == 0
    assert run("transcribe", ".", "--format", "txt").status == 0
    assert sorted(os.listdir(work)) == ["a.mp3", "a.mp3.txt", "a.ogg", "a.ogg.txt"]


def test_a_folder_in_the_way_of_a_result(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    (work / "a.srt").mkdir()
    result = run("transcribe", "a.ogg", "--format", "txt,srt")
    assert result.status == 1
    assert "a folder is in the way" in result.err


def test_control_characters_in_names_are_spelt_out(run: Run, work: Path) -> None:
    put(short(), work / "new\nline\x1b[31m.ogg")
    result = run("transcribe", ".", "--json")
    assert json.loads(result.out)["file"] == "new\nline\x1b[31m.ogg"
    assert "\x1b" not in result.err
    assert "new\\nline\\x1b[31m.ogg" in result.err


def test_an_unreadable_or_missing_one_does_not_keep_the_rest_from_being_done(run: Run, work: Path) -> None:
    put(short(), work / "good" / "a.ogg")
    result = run("transcribe", "-d", "nowhere", "-d", "good", "x" * 300)
    assert result.status == 1
    assert short().text in result.out
    assert "1 done, 2 failed" in result.err


def test_lists_are_whole_in_a_pipe(run: Run) -> None:
    shown = run("models", "list", COLUMNS="60").out
    assert "gigaam-v3-e2e-rnnt-int8 " in shown
    assert "parakeet-tdt-0.6b-v3-int8 " in shown
    line = next(line for line in run("config", COLUMNS="40").out.splitlines() if "MODELS_DIR" in line)
    assert str(MODELS) in line


def test_a_name_as_long_as_can_be(run: Run, work: Path) -> None:
    name = "я" * 125 + "a.ogg"  # 255 bytes; with .json it would be 256
    put(short(), work / name)
    assert run("transcribe", name, "--format", "json").status == 0
    (written,) = [made for made in os.listdir(work) if made.endswith(".json")]
    assert len(os.fsencode(written)) <= 255
    assert json.loads((work / written).read_text("utf-8"))["text"] == short().text


def test_files_in_a_folder_that_keeps_the_tree(run: Run, work: Path) -> None:
    put(short(), work / "in" / "a.ogg")
    put(short(), work / "in" / "below" / "deep" / "a.ogg")
    put(short(), work / "in" / ".hidden.ogg")
    (work / "in" / "notes.pdf").write_text("no recording")
    result = run("transcribe", "-d", "in", "-o", "out", "--recursive")
    assert result.status == 0
    found = sorted(str(path.relative_to(work / "out")) for path in (work / "out").rglob("*") if path.is_file())
    assert found == ["a.txt", "below/deep/a.txt"]


def test_a_folder_is_not_looked_into_deeper_unless_told(run: Run, work: Path) -> None:
    put(short(), work / "in" / "below" / "a.ogg")
    result = run("transcribe", "in")
    assert result.status == 2
    assert "--recursive" in result.err


def test_one_file_by_its_name(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    assert run("transcribe", "a.ogg", "-o", "subtitles.vtt").status == 0
    assert (work / "subtitles.vtt").read_text("utf-8").startswith("WEBVTT")


def test_recordings_of_one_name_do_not_overwrite_each_other(run: Run, work: Path) -> None:
    put(short("ru"), work / "a.ogg")
    put(short("en"), work / "a.opus")
    assert run("transcribe", ".", "--format", "txt").status == 0
    assert (work / "a.ogg.txt").read_text("utf-8") == short("ru").text + "\n"
    assert (work / "a.opus.txt").read_text("utf-8") == short("en").text + "\n"


def test_what_is_there_is_not_overwritten_without_force(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    (work / "a.txt").write_text("mine")
    result = run("transcribe", "a.ogg", "--format", "txt")
    assert result.status == 0
    assert "there already" in result.err
    assert "--force" in result.err
    assert (work / "a.txt").read_text() == "mine"
    result = run("transcribe", "a.ogg", "--format", "txt,srt")  # what lacks is written
    assert (work / "a.txt").read_text() == "mine"
    assert (work / "a.srt").exists()
    assert run("transcribe", "a.ogg", "--format", "txt", "--force").status == 0
    assert (work / "a.txt").read_text("utf-8") == short().text + "\n"


def test_a_result_never_replaces_a_recording_or_another_result(run: Run, work: Path) -> None:
    recording = put(short(), work / "memo.txt")
    content = recording.read_bytes()
    result = run("transcribe", "memo.txt", "--format", "txt", "--force")
    assert result.status == 2
    assert "would replace the recording" in result.err
    assert recording.read_bytes() == content
    put(short("ru"), work / "1" / "x.ogg")
    put(short("en"), work / "2" / "x.ogg")
    result = run("transcribe", "-d", "1", "-d", "2", "-o", "out")
    assert result.status == 2
    assert "1/x.ogg and 2/x.ogg would both be written" in result.err
    assert not (work / "out").exists()


def test_recordings_that_are_not_there_make_no_folder(run: Run, work: Path) -> None:
    assert run("transcribe", "none.ogg", "-o", "out").status == 1
    assert os.listdir(work) == []


def test_a_pipe_in_a_folder_is_passed_over(run: Run, work: Path) -> None:
    os.mkfifo(work / "pipe.wav")
    put(short(), work / "a.ogg")
    assert run("transcribe", ".").out == short().text + "\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "koi8-r"])
def test_what_is_written_to_a_file_is_utf8(run: Run, work: Path, encoding: str) -> None:
    put(short(), work / "запись 😀.ogg")
    result = run("transcribe", "--json", "запись 😀.ogg", PYTHONIOENCODING=encoding)
    assert json.loads(result.out)["text"] == short().text
    assert json.loads(result.out)["file"] == "запись 😀.ogg"


@pytest.mark.parametrize(("redirection", "status"), [("<&-", 0), (">&-", 1), (">/dev/full", 1), ("2>&-", 0)])
def test_closed_and_full_streams(environment: dict[str, str], work: Path, redirection: str, status: int) -> None:
    put(short(), work / "a.ogg")
    command = f"{' '.join(STENOGRAF)} transcribe a.ogg {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert "unexpected" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_working_directory_that_was_removed(environment: dict[str, str], work: Path) -> None:
    recording = put(short(), work / "a.ogg")
    command = f"mkdir gone && cd gone && rmdir ../gone && {' '.join(STENOGRAF)} transcribe {recording}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not exist any more" in done.stderr


def test_standard_input(run: Run, work: Path) -> None:
    result = run("transcribe", "-", stdin=short().path.read_bytes())
    assert (result.status, result.out) == (0, short().text + "\n")
    assert "standard input: ru" in result.err
    assert run("transcribe", "-", stdin=b"").status == 1
    assert run("transcribe", "-", "--format", "srt", stdin=short().path.read_bytes()).status == 0
    assert os.listdir(work) == ["stdin.srt"]


def test_options_reach_the_engine(run: Run, work: Path) -> None:
    put(long(), work / "a.ogg")
    second = long().data["sentences"][1]["start"]
    result = run("transcribe", "a.ogg", "--trim", f"{second - 0.1:.2f}", "-l", "Russian", "--beam-size", "1")
    assert result.out == long().data["sentences"][0]["text"] + "\n"
    result = run("transcribe", "a.ogg", "--trim", "5", "-m", "gigaam-test", "--json")
    assert json.loads(result.out)["model"] == "gigaam-test"
    result = run("transcribe", "a.ogg", "--trim", "5", "-m", MODELS / "whisper-test", "--json")
    assert json.loads(result.out)["model"] == "whisper-test"


def test_a_reader_that_goes_away(environment: dict[str, str], work: Path) -> None:
    for number in range(3):
        put(short(), work / f"{number}.ogg")
    command = f"{' '.join(STENOGRAF)} transcribe 0.ogg 1.ogg 2.ogg | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "==> 0.ogg <==\n"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


# Bad input: one line, a hint, an exit status, nothing half written


def test_what_fails_does_not_keep_the_rest_from_being_done(run: Run, work: Path) -> None:
    (work / "empty.ogg").touch()
    (work / "text.mp3").write_text("no music " * 1000)
    media.write_mute_video(work / "mute.mp4")
    put(short(), work / "good.ogg")
    result = run("transcribe", "empty.ogg", "text.mp3", "mute.mp4", "none.wav", "good.ogg", "--format", "txt")
    assert result.status == 1
    assert os.listdir(work).count("good.txt") == 1
    assert "1 done, 4 failed" in result.err
    for part in ("empty.ogg is empty", "text.mp3 cannot be read as audio", "mute.mp4 has pictures but no sound"):
        assert part in result.err
    assert "none.wav does not exist" in result.err
    assert not [name for name in os.listdir(work) if name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["transcribe"], 2, ["Name a recording"]),
        (["transcribe", "a.ogg", "-m", "bse"], 2, ["bse", "base"]),
        (["transcribe", "a.ogg", "-m", "large-v3"], 1, ["large-v3", "model.bin", "stenograf models pull large-v3"]),
        (["transcribe", "a.ogg", "-m", "./nowhere"], 2, ["nowhere"]),
        (["transcribe", "a.ogg", "-l", "rusian"], 2, ["rusian", "russian"]),
        (["transcribe", "a.ogg", "-l", "en", "-m", "gigaam-test"], 2, ["gigaam-test", "en"]),
        (["transcribe", "a.ogg", "--task", "translate", "-m", "gigaam-test"], 2, ["cannot translate"]),
        (["transcribe", "a.ogg", "--format", "stl"], 2, ["stl", "srt"]),
        (["transcribe", "a.ogg", "--trim", "-1"], 2, ["trim"]),
        (["transcribe", "a.ogg", "--trim", "a minute"], 2, ["1:30"]),
        (["transcribe", "a.ogg", "-o", "-", "--format", "srt,vtt"], 2, ["stdout"]),
        (["transcribe", "a.ogg", "--beam-size", "0"], 2, ["beam size"]),
        (["transcribe", "a.ogg", "--device", "tpu"], 2, ["--device", "tpu"]),
        (["transcribe", "a.ogg", "--device", "cuda:9"], 1, ["cuda:9", "cpu"]),
        (["transcribe", "empty-folder"], 2, ["No recordings", "empty-folder"]),
        (["transcribe", "-d", "nowhere"], 1, ["nowhere does not exist"]),
        (["transcribe", "a.ogg", "b.ogg", "-o", "one.srt"], 2, ["one.srt"]),
        (["transcribe", "a.ogg", "-o", "one.srt", "--format", "vtt"], 2, ["one.srt", "vtt"]),
        (["transcribe", "a.ogg", "-o", "a.ogg"], 1, ["a.ogg"]),
        (["transcribe", "a.ogg", "-o", "notes.md"], 2, ["md", "txt"]),
        (["transcribe", ""], 2, ["empty"]),
        (["transcribe", "a.ogg", "-o", ""], 2, ["empty"]),
        (["transcribe", "a.ogg", "-m", ""], 2, ["empty"]),
        (["transcribe", "a.ogg", "--format", ""], 2, ["format"]),
        (["transcribe", "https://example.org/a.ogg"], 1, ["download it first"]),
        (["transcribe", "x" * 300], 1, ["xxx"]),
        (["transcribe", "-d", "x" * 300], 1, ["xxx"]),
        (["transcribe", "a.ogg", "-o", "x" * 300], 1, ["xxx"]),
        (["transcribe", "a.ogg", "--modle", "x"], 2, ["--model"]),
        (["a.ogg"], 2, ["stenograf transcribe"]),
        (["models", "pull", "bse"], 2, ["base"]),
        (["models", "remove", "base"], 1, ["base"]),
        (["models", "remove", "whisper-test"], 2, ["your own", "--force"]),
        (["models", "path", "base"], 1, ["base"]),
    ],
)
def test_wrong_usage(run: Run, work: Path, arguments: list[str], status: int, parts: list[str]) -> None:
    put(short(), work / "a.ogg")
    put(short(), work / "b.ogg")
    (work / "empty-folder").mkdir()
    before = sorted(os.listdir(work))
    result = run(*arguments)
    assert result.status == status, result.err
    for part in parts:
        assert part in result.err
    assert result.out == ""
    assert sorted(os.listdir(work)) == before


def test_a_traceback_only_when_asked_for(run: Run, work: Path) -> None:
    (work / "empty.ogg").touch()
    assert "Traceback" not in run("transcribe", "empty.ogg").err
    assert "Traceback" in run("transcribe", "empty.ogg", "-v").err


def test_a_folder_that_may_not_be_written_is_told_before_the_work(
    environment: dict[str, str], work: Path, tmp_path: Path, unprivileged: None
) -> None:
    put_as = work / "a.ogg"
    os.seteuid(0) if os.getuid() == 0 else None
    shutil.copy(short().path, put_as)
    closed = work / "closed"
    closed.mkdir(mode=0o555)
    command = [*STENOGRAF, "transcribe", str(put_as), "-o", str(closed)]
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is missing: root's rights cannot be given up for a process")
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        if subprocess.run([*command[:4], sys.executable, "-c", "import stenograf"], check=False, cwd="/").returncode:
            pytest.skip("the interpreter may not be run by another user here")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 1
    assert "may not be written" in done.stderr
    assert "Model " not in done.stderr


# Stopping


def wait_for(found: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_ctrl_c_keeps_what_is_finished(environment: dict[str, str], work: Path) -> None:
    put(short(), work / "1.ogg")
    for number in range(2, 30):
        put(long(), work / f"{number}.ogg")
    names = [f"{number}.ogg" for number in range(1, 30)]
    process = subprocess.Popen(
        [*STENOGRAF, "transcribe", *names, "--format", "txt"],
        cwd=work,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    wait_for((work / "1.txt").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.count("Stopped.") == 1
    assert "finished and kept" in err
    assert "Traceback" not in err
    assert (work / "1.txt").read_text("utf-8") == short().text + "\n"
    left = [name for name in os.listdir(work) if name.endswith(".txt")]
    assert 1 <= len(left) < 29
    assert not [name for name in os.listdir(work) if name.endswith(".tmp")]


def test_a_ctrl_c_that_native_code_swallows_is_not_lost(run_python: Callable[[str], str]) -> None:
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
from stenograf.cli.interrupts import Interrupts
with Interrupts() as interrupts:
    interrupts.check()
    try:
        os.kill(os.getpid(), signal.SIGINT)  # where it lands, someone catches it and goes on
    except KeyboardInterrupt:
        pass
    try:
        interrupts.check()
    except KeyboardInterrupt:
        print("not lost")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    assert run_python(code) == "not lost"


# On a terminal


def on_terminal(
    arguments: list[str], environment: dict[str, str], folder: Path, answer: bytes = b""
) -> tuple[int, str]:
    """Runs the command on a pseudo-terminal; gives the exit status and all that was shown."""
    try:
        process_id, terminal = pty.fork()
    except OSError as error:
        pytest.skip(f"there are no pseudo-terminals here ({error})")
    if process_id == 0:
        os.chdir(folder)
        os.execve(STENOGRAF[0], [*STENOGRAF, *arguments], environment | {"TERM": "xterm-256color"})
    shown = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if not ready:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
        if answer and b"[Y/n]" in shown:
            os.write(terminal, answer)
            answer = b""
    _, status = os.waitpid(process_id, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_progress_on_a_terminal(environment: dict[str, str], work: Path) -> None:
    put(long(), work / "meeting.ogg")
    status, shown = on_terminal(["transcribe", "meeting.ogg", "--format", "srt"], environment, work)
    assert status == 0
    assert re.search(r"0:\d\d of \d:\d\d, \d+\.\dx, \d:\d\d left", shown)
    assert "✓ meeting.ogg: ru" in shown
    assert (work / "meeting.srt").exists()


def test_a_big_download_is_asked_for_on_a_terminal(environment: dict[str, str], work: Path) -> None:
    put(short(), work / "a.ogg")
    online = environment | {
        "STENOGRAF_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "STENOGRAF_MODELS_DIR": str(work / "models"),
    }
    status, shown = on_terminal(["transcribe", "a.ogg", "-m", "small"], online, work, b"n\r")
    assert status == 1
    assert "Download it (486 MB) to " in shown
    assert "was not downloaded" in shown
    status, shown = on_terminal(["transcribe", "-n", "a.ogg", "-m", "small"], online, work)
    assert status == 1
    assert "Download it" not in shown
    assert "cannot be reached" in shown


# The other commands


def test_help_tells_all_commands_and_imports_nothing_heavy(run: Run, run_python: Callable[[str], str]) -> None:
    shown = run("--help").out
    for name, what in COMMANDS.items():
        assert name in shown
        assert what in shown
        assert run(name, "--help").status == 0
    code = (
        "import sys; sys.argv = ['stenograf', '--help']\n"
        "from stenograf.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'av', 'rich', 'huggingface_hub', 'faster_whisper', 'ctranslate2', 'onnxruntime', 'docx'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code).splitlines()[-1] == "HEAVY []"


def test_every_command_and_option_is_documented(run: Run) -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name in COMMANDS:
        assert f"stenograf {name}" in page
    for option in re.findall(r"^\s+(?:-\w, )?(--[a-z-]+)", run("transcribe", "--help").out, re.MULTILINE):
        assert f"`{option}" in page or f", {option}" in page, option


def test_doctor(run: Run) -> None:
    result = run("doctor")
    assert result.status == 0
    for part in ("engine faster-whisper: runs on", "cpu", "model whisper-test", "model gigaam-test", "free for models"):
        assert part in result.out
    findings = json.loads(run("doctor", "--json").out)
    assert all(item["ok"] is not False for item in findings)


def test_doctor_tells_what_auto_takes(run: Run, work: Path) -> None:
    result = run("doctor", **AUTO)
    assert result.status == 0
    told = "auto: gigaam-rnnt-test for Russian (here), whisper-test for other languages (here)"
    assert told in " ".join(result.out.split())
    assert "nothing for Russian" in run("doctor", STENOGRAF_MODELS_DIR=str(work), **AUTO).out


def test_doctor_notices_what_is_missing(run: Run, work: Path) -> None:
    result = run("doctor", STENOGRAF_MODELS_DIR=str(work), STENOGRAF_DEVICE="cuda:8")
    assert result.status == 1
    assert "cuda:8 is set, but cannot be used" in result.out
    assert "whisper-test" in result.out
    result = run("doctor", STENOGRAF_DEVICE="tpu")
    assert result.status == 1
    assert "settings: The setting STENOGRAF_DEVICE" in result.out
    assert "free for models" in result.out


def test_doctor_looks_twice_at_a_model_that_is_too_small(run: Run, work: Path) -> None:
    shutil.copytree(MODELS / "whisper-test", work / "small")
    result = run("doctor", STENOGRAF_MODELS_DIR=str(work), STENOGRAF_DEFAULT_MODEL="small")
    assert "though about 486 MB are usual" in result.out


def test_config(run: Run, work: Path) -> None:
    (work / ".env").write_text("WHISPER_BEAM_SIZE = 3\nHF_TOKEN = hf_secret\n")
    rows = {row["setting"]: row for row in json.loads(run("config", "--json").out)}
    assert (rows["beam_size"]["value"], rows["beam_size"]["from"]) == (3, ".env WHISPER_BEAM_SIZE")
    assert rows["models_dir"]["from"] == "environment STENOGRAF_MODELS_DIR"
    assert rows["device"]["from"] == "default"
    shown = run("config").out
    assert "hf_secret" not in shown
    for address, told in (
        ("postgresql://anna:secret@db.internal:5432/name", "postgresql://...@db.internal:5432/name"),
        ("postgresql://anna:se@c/ret@db/name", "postgresql://...@db/name"),
        ("postgresql://db/name?password=secret", "(set)"),
        ("redis://db/0", "redis://db/0"),
    ):
        rows = {row["setting"]: row for row in json.loads(run("config", "--json", STENOGRAF_DATABASE_URL=address).out)}
        assert rows["database_url"]["value"] == told
    assert "WHISPER_BEAM_SIZE" in shown
    assert "Candidates kept" in run("config", "--help-settings").out


def test_a_misspelt_setting_is_told(run: Run, work: Path) -> None:
    put(short(), work / "a.ogg")
    assert "STENOGRAF_BEAM_SIZE" in run("transcribe", "a.ogg", STENOGRAF_BEAM_SISE="3").err
    result = run("transcribe", "a.ogg", STENOGRAF_BEAM_SIZE="x")
    assert result.status == 2
    assert "STENOGRAF_BEAM_SIZE" in result.err


def test_models_list_and_path(run: Run) -> None:
    shown = run("models", "list").out
    for name in ("tiny", "large-v3", "turbo", "gigaam-v3-e2e-rnnt", "whisper-test", "gigaam-test"):
        assert name in shown
    listed = {row["name"]: row for row in json.loads(run("models", "list", "--json").out)}
    assert listed["whisper-test"]["installed"]
    assert not listed["turbo"]["installed"]
    assert run("models", "path", "whisper-test").out.strip() == str(MODELS / "whisper-test")


def test_version(run: Run) -> None:
    assert re.fullmatch(r"stenograf \d+\.\d+\.\d+\n", run("--version").out)


# Models from a hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    files = {file.name: file.read_bytes() for file in (MODELS / "whisper-test").iterdir()}
    with FakeHub({"Systran/faster-whisper-tiny": files}) as served:
        yield served


def test_a_model_is_downloaded_at_its_first_use(run: Run, work: Path, hub: FakeHub) -> None:
    put(short(), work / "a.ogg")
    online = {"STENOGRAF_OFFLINE": "0", "HF_ENDPOINT": hub.url, "STENOGRAF_MODELS_DIR": str(work / "models")}
    result = run("transcribe", "a.ogg", "-m", "tiny", **online)
    assert (result.status, result.out) == (0, short().text + "\n")
    assert "Downloading the model tiny" in result.err
    asked = len(hub.requests)
    assert run("transcribe", "-q", "a.ogg", "-m", "tiny", **online).out == short().text + "\n"
    assert len(hub.requests) == asked


def test_models_pull_and_remove(run: Run, work: Path, hub: FakeHub) -> None:
    online = {"STENOGRAF_OFFLINE": "0", "HF_ENDPOINT": hub.url, "STENOGRAF_MODELS_DIR": str(work / "models")}
    result = run("models", "pull", "tiny", **online)
    assert result.status == 0
    assert re.search(r"Downloading tiny: \d+ MB of \d+ MB", result.err)
    assert (work / "models" / "tiny" / "model.bin").exists()
    assert run("models", "path", "tiny", **online).out.strip() == str(work / "models" / "tiny")
    weights = work / "models" / "tiny" / "model.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = run("models", "pull", "tiny", **online | {"STENOGRAF_OFFLINE": "1"})
    assert result.status == 1
    assert "model.bin changed since the download" in result.err
    assert run("models", "pull", "tiny", **online).status == 0
    assert weights.read_bytes() == whole
    result = run("models", "pull", "whisper-test")  # put there by hand
    assert result.status == 0
    assert "no hashes to verify it by" in result.err
    assert run("models", "remove", "tiny", **online).status == 0
    assert not (work / "models" / "tiny").exists()
    result = run("models", "pull", "base", **online)  # the hub does not have it
    assert result.status == 1
    assert "Hint" in result.err or "\n  " in result.err
