"""`stenograf transcribe`: recordings in, transcripts out."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from stenograf import formats as writing
from stenograf import output as saving
from stenograf.cli.console import Reporter, size
from stenograf.cli.inputs import Recording, collect, output_format, standard_input, targets
from stenograf.errors import OptionInvalidError, OutputExistsError, StenografError
from stenograf.models import ModelFiles
from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import load
from stenograf.transcriber import Transcriber
from stenograf.transcript import Transcript

BIG_DOWNLOAD = 300_000_000
"""Bytes: a person at a terminal is asked before more than this is downloaded."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One call of the command, after its arguments were understood."""

    options: Options
    formats: tuple[str, ...]
    to_files: bool
    as_json: bool
    force: bool


@click.command("transcribe")
@click.argument("recordings", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-f", "--file", "files", multiple=True, type=click.Path(path_type=Path), help="A recording; may be repeated."
)
@click.option(
    "-d",
    "--dir",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A folder of recordings; may be repeated.",
)
@click.option("--recursive", is_flag=True, help="Look into the folders below as well.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the results, or the name of the one file to write.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="FORMAT",
    help="txt, json, srt, vtt, tsv or docx; may be repeated, or separated by commas. "
    "Written beside the recording unless -o says otherwise.",
)
@click.option("--force", is_flag=True, help="Overwrite results that are there already.")
@click.option(
    "-m", "--model", help="Catalog name, folder in the models directory, or path. See: stenograf models list."
)
@click.option("-l", "--language", help="Language spoken, such as ru or en; auto: detect it.")
@click.option(
    "--task",
    type=click.Choice(["transcribe", "translate"]),
    default="transcribe",
    show_default=True,
    help="Write the language spoken, or English.",
)
@click.option("--trim", type=float, metavar="SECONDS", help="Read only the start of each recording; 0: all of it.")
@click.option("--word-timestamps", is_flag=True, help="Give the time of each word (in json, and for better subtitles).")
@click.option("--prompt", help="Text that could stand before the recording: sets the spelling of names and the style.")
@click.option("--hotwords", help="Words to look out for.")
@click.option("--beam-size", type=int, metavar="N", help="Candidates kept while decoding; 1 is fastest.")
@click.option("--temperature", type=float, help="0 to 1; not given: 0, rising only where a passage goes wrong.")
@click.option("--vad/--no-vad", default=None, help="Look for speech first and leave out the rest, or read all.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option("--compute-type", metavar="TYPE", help="auto, int8, float16, float32, ...")
@click.option("--json", "as_json", is_flag=True, help="Print the transcript as JSON, a line for each recording.")
@click.option("-n", "--non-interactive", is_flag=True, help="Never ask a question.")
@click.option("-v", "--verbose", is_flag=True, help="Show segments as they come, and tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
def command(
    recordings: tuple[Path, ...],
    files: tuple[Path, ...],
    folders: tuple[Path, ...],
    recursive: bool,
    output: Path | None,
    formats: tuple[str, ...],
    force: bool,
    model: str | None,
    language: str | None,
    task: str,
    trim: float | None,
    word_timestamps: bool,
    prompt: str | None,
    hotwords: str | None,
    beam_size: int | None,
    temperature: float | None,
    vad: bool | None,
    device: str | None,
    compute_type: str | None,
    as_json: bool,
    non_interactive: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """Write down what is said in RECORDINGS: files and folders of audio or video, - for standard input.

    The text goes to stdout, unless --format or -o says where to write it. A recording whose results are there
    already is passed over, so that the same command goes on where it was stopped.
    """
    reporter = Reporter(quiet=quiet, verbose=verbose)
    overrides = {"device": device, "compute_type": compute_type, "log_level": "debug" if verbose else None}
    loaded = load(overrides=overrides)
    logging.basicConfig(level=loaded.settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    _quieten_libraries()
    for warning in loaded.warnings:
        reporter.say(f"! {warning}", "yellow")
    runtime = Runtime(loaded.settings)
    options = runtime.options(
        language=language,
        task=task,
        trim=trim,
        word_timestamps=word_timestamps,
        prompt=prompt,
        hotwords=hotwords,
        beam_size=beam_size,
        temperature=temperature,
        vad=vad,
    )
    chosen = _formats(formats, output)
    if as_json and not (formats or output):
        chosen = ()
    request = _Request(options, chosen, bool(chosen) or output is not None, as_json, force)
    with contextlib.ExitStack() as stack:
        found = _recordings(recordings, files, folders, recursive, output, stack)
        work = _Work(runtime, request, reporter, found, output)
        work.prepare(model, ask=not non_interactive and sys.stdin.isatty() and reporter.live)
        return work.run()


def _formats(named: Sequence[str], output: Path | None) -> tuple[str, ...]:
    """The formats to write: those named, else the one that the output's name tells, else txt where there is one."""
    wanted = [writing.check(part) for text in named for part in text.split(",") if part.strip()]
    told = output_format(output)
    if not wanted and output is not None:
        wanted = [told or "txt"]
    elif told is not None and wanted != [told]:
        raise OptionInvalidError(
            f"--output {output} is a {told} file, but --format asks for {', '.join(wanted)}.",
            "Give a folder to --output, or leave --format out.",
        )
    return tuple(dict.fromkeys(wanted))


def _recordings(
    recordings: Sequence[Path],
    files: Sequence[Path],
    folders: Sequence[Path],
    recursive: bool,
    output: Path | None,
    stack: contextlib.ExitStack,
) -> list[Recording]:
    if not (recordings or files or folders):
        raise click.UsageError("Name a recording or a folder, such as: stenograf transcribe meeting.m4a")
    if Path("-") in (*recordings, *files):
        if len(recordings) + len(files) + len(folders) > 1:
            raise click.UsageError("- (standard input) stands alone, without other recordings.")
        return [stack.enter_context(standard_input())]
    return collect([*recordings, *files], folders, recursive=recursive, output=output)


class _Work:
    """The recordings of one call, one after the other; what fails does not keep the rest from being done."""

    def __init__(
        self,
        runtime: Runtime,
        request: _Request,
        reporter: Reporter,
        recordings: list[Recording],
        output: Path | None,
    ) -> None:
        self._runtime = runtime
        self._request = request
        self._reporter = reporter
        self._recordings = recordings
        self._targets = targets(recordings, request.formats, output) if request.to_files else {}
        self._files: ModelFiles | None = None
        self._transcriber: Transcriber | None = None
        self._done = self._failed = self._skipped = 0
        self._exit_code = 0

    def prepare(self, model: str | None, *, ask: bool) -> None:
        """Find out what can be found out before the work: the places to write, the model."""
        for folder in dict.fromkeys(path.parent for paths in self._targets.values() for path in paths.values()):
            saving.check_writable(folder)
        if any(self._wanted(item) for item in self._recordings) or not self._request.to_files:
            self._files = _model(self._runtime, model, self._reporter, ask=ask)

    def run(self) -> int:
        """Transcribe; gives the exit status."""
        try:
            for number, item in enumerate(self._recordings, 1):
                position = f"[{number}/{len(self._recordings)}] " if len(self._recordings) > 1 else ""
                try:
                    self._one(item, position)
                except StenografError as error:
                    self._failed += 1
                    self._exit_code = max(self._exit_code, 1)
                    self._report_failure(item, error)
        except KeyboardInterrupt:
            self._reporter.say(
                f"Stopped. {self._done} finished and kept" + (
                    "; the same command goes on from there." if self._request.to_files else "."
                )
            )  # fmt: skip
            raise
        finally:
            if self._transcriber is not None:
                self._transcriber.close()
        if len(self._recordings) > 1:
            self._reporter.say(f"{self._done} done, {self._failed} failed, {self._skipped} there already")
        return self._exit_code

    def _one(self, item: Recording, position: str) -> None:
        wanted = self._wanted(item)
        if self._request.to_files and not wanted:
            self._skipped += 1
            there = ", ".join(str(path) for path in self._targets[item].values())
            self._reporter.say(f"- {item.shown}: {there} exists already; --force writes it again")
            return
        transcriber = self._load()
        with self._reporter.transcribing(item.shown, position) as shown:
            transcript = transcriber.transcribe(
                item.path, self._request.options, on_progress=shown.update, name=item.shown
            )
        for name, path in wanted.items():
            try:
                saving.save(transcript, path, name, overwrite=self._request.force)
            except OutputExistsError:
                continue  # came into being meanwhile: whoever wrote it, it is not ours to overwrite
        self._done += 1
        self._print(item, transcript)
        written = f" -> {', '.join(str(path) for path in wanted.values())}" if wanted else ""
        self._reporter.finished(position + item.shown, transcript, written)

    def _wanted(self, item: Recording) -> dict[str, Path]:
        """The results that are still to be written."""
        paths = self._targets.get(item, {})
        if self._request.force:
            return paths
        return {name: path for name, path in paths.items() if not path.exists()}

    def _load(self) -> Transcriber:
        # At the first recording and not before: where all is done already, nothing is loaded.
        if self._transcriber is None:
            assert self._files is not None
            with (
                self._reporter.console.status(f"Loading {self._files.name}")
                if self._reporter.live
                else (contextlib.nullcontext())
            ):
                self._transcriber = self._runtime.transcriber(self._files)
            self._reporter.say(
                f"Model {self._files.name} on {self._transcriber.device}, {self._transcriber.compute_type}"
            )
        return self._transcriber

    def _print(self, item: Recording, transcript: Transcript) -> None:
        if self._request.as_json:
            line = {"file": item.shown, **transcript.to_dict()}
            click.echo(json.dumps(line, ensure_ascii=False))
        elif not self._request.to_files:
            if len(self._recordings) > 1:
                click.echo(f"==> {item.shown} <==")
            click.echo(writing.render(transcript, "txt").decode(), nl=False)
            if len(self._recordings) > 1:
                click.echo()

    def _report_failure(self, item: Recording, error: StenografError) -> None:
        if self._request.as_json:
            fault = {"code": error.code, "message": error.message, "hint": error.hint}
            click.echo(json.dumps({"file": item.shown, "error": fault}, ensure_ascii=False))
        self._reporter.fail(error)


def _model(runtime: Runtime, name: str | None, reporter: Reporter, *, ask: bool) -> ModelFiles:
    """The model's files, downloaded with a bar where they lack; a person is asked first where it is much."""
    from stenograf.errors import ModelNotInstalledError
    from stenograf.models import catalog

    wanted = name or runtime.settings.default_model
    try:
        return runtime.store.resolve(wanted, allow_path=True)
    except ModelNotInstalledError:
        if runtime.settings.offline:
            raise
    entry = catalog.find(wanted)
    if ask and entry is not None and entry.size > BIG_DOWNLOAD:
        question = f"The model {entry.name} is not here yet. Download it ({size(entry.size)})?"
        click.confirm(question, default=True, abort=True, err=True)
    reporter.say(f"Downloading the model {wanted} to {runtime.store.models_dir}")
    with reporter.pulling(wanted) as download:
        return runtime.store.pull(wanted, download.update)


def _quieten_libraries() -> None:
    for name in ("httpx", "httpcore", "huggingface_hub", "faster_whisper", "urllib3", "filelock", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
