"""`stenograf transcribe`: recordings in, transcripts out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from stenograf import formats as writing
from stenograf import output as saving
from stenograf.audio import missing
from stenograf.cli.console import Reporter, printing, size
from stenograf.cli.inputs import STANDARD_INPUT, Recording, collect, output_format, standard_input, targets
from stenograf.cli.interrupts import Interrupts
from stenograf.errors import (
    CancelledError,
    OptionInvalidError,
    OutputError,
    OutputExistsError,
    StenografError,
    unexpected,
)
from stenograf.models import ModelFiles
from stenograf.models.catalog import CatalogEntry
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


class _Name(click.Path):
    """The name of a file or folder; an empty one, as of a shell variable that is not set, is a mistake."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if str(value) == "":
            self.fail("The name is empty.", param, ctx)
        return super().convert(value, param, ctx)


NAME = _Name(path_type=Path)

OTHER_DOCUMENTS = frozenset({".ass", ".csv", ".doc", ".html", ".lrc", ".md", ".odt", ".pdf", ".rtf", ".sub", ".text"})
"""Suffixes of an --output that is surely meant as a file, in a format that is not written here."""


@click.command("transcribe")
@click.argument("recordings", nargs=-1, type=NAME)
@click.option("-f", "--file", "files", multiple=True, type=NAME, help="A recording; may be repeated.")
@click.option(
    "-d",
    "--dir",
    "folders",
    multiple=True,
    type=NAME,
    help="A folder of recordings; may be repeated.",
)
@click.option("--recursive", is_flag=True, help="Look into the folders below as well.")
@click.option(
    "-o",
    "--output",
    type=NAME,
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
    state = click.get_current_context().ensure_object(dict)
    state["verbose"] = verbose
    if model == "":
        raise click.BadParameter("The name is empty.", param_hint="--model")
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
    if not request.to_files and sys.stdout is None:
        raise OutputError("There is no standard output to print to.", "Give --output.")
    found = _recordings(recordings, files, folders, recursive, output)
    interrupts = Interrupts()
    work = _Work(runtime, request, reporter, found, output, interrupts)
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and reporter.live
    work.prepare(model, ask=at_terminal and not non_interactive)
    try:
        with interrupts:
            return work.run()
    except KeyboardInterrupt:
        state["told"] = True
        raise


def _formats(named: Sequence[str], output: Path | None) -> tuple[str, ...]:
    """The formats to write: those named, else the one that the output's name tells, else txt where there is one."""
    wanted = [writing.check(part) for text in named for part in text.split(",")]
    told = output_format(output)
    if output is not None and output.suffix.lower() in OTHER_DOCUMENTS and not output.exists():
        writing.check(output.suffix)
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
) -> list[Recording]:
    if not (recordings or files or folders):
        raise click.UsageError("Name a recording or a folder, such as: stenograf transcribe meeting.m4a")
    if STANDARD_INPUT in (*recordings, *files):
        if len(recordings) + len(files) + len(folders) > 1:
            raise click.UsageError("- (standard input) stands alone, without other recordings.")
        return [standard_input()]
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
        interrupts: Interrupts,
    ) -> None:
        self._interrupts = interrupts
        self._runtime = runtime
        self._request = request
        self._reporter = reporter
        self._recordings = recordings
        self._targets = targets(recordings, request.formats, output) if request.to_files else {}
        self._closed: dict[Path, OutputError] = {}
        self._transcriber: Transcriber | None = None
        self._done = self._failed = self._skipped = 0

    def prepare(self, model: str | None, *, ask: bool) -> None:
        """Find out what can be found out before the work: the model, its options, the places to write.

        What holds for all recordings is raised; what keeps some of them from being written waits for their turn.
        """
        wanted = [item for item in self._recordings if self._is_wanted(item)]
        if not wanted:
            return
        self._check_folders(wanted)
        files = _model(self._runtime, model, self._reporter, ask=ask)
        with self._reporter.waiting(f"Loading {files.name}"):
            self._transcriber = self._runtime.transcriber(files)
        self._reporter.say(f"Model {files.name} on {self._transcriber.device}, {self._transcriber.compute_type}")
        self._transcriber.check(self._request.options)

    def run(self) -> int:
        """Transcribe; gives the exit status."""
        try:
            for number, item in enumerate(self._recordings, 1):
                self._interrupts.check()
                position = f"[{number}/{len(self._recordings)}] " if len(self._recordings) > 1 else ""
                try:
                    self._one(item, position)
                except CancelledError:
                    raise KeyboardInterrupt from None
                except StenografError as error:
                    self._report_failure(item, error)
                except BrokenPipeError:
                    raise
                except Exception as error:  # a fault of ours with one file must not cost the others
                    self._report_failure(item, unexpected(item.shown, error))
        except KeyboardInterrupt:
            goes_on = "; the same command goes on from there." if self._request.to_files else "."
            self._reporter.say(f"Stopped. {self._done} finished and kept{goes_on}")
            raise
        finally:
            if self._transcriber is not None:
                self._transcriber.close()
        if len(self._recordings) > 1:
            self._reporter.say(f"{self._done} done, {self._failed} failed, {self._skipped} there already")
        return int(self._failed > 0)

    def _check_folders(self, wanted: list[Recording]) -> None:
        """Try now whether results can be written: better than after an hour's work."""
        folders = dict.fromkeys(path.parent for item in wanted for path in self._wanted(item).values())
        for folder in folders:
            try:
                saving.check_writable(folder)
            except OutputError as error:
                self._closed[folder] = error
        if folders and len(self._closed) == len(folders):
            raise next(iter(self._closed.values()))

    def _one(self, item: Recording, position: str) -> None:
        if item.problem is not None:
            raise item.problem
        if not _is_there(item):
            raise missing(item.shown)
        wanted = self._wanted(item)
        if self._request.to_files and not wanted:
            self._skipped += 1
            there = ", ".join(str(path) for path in self._targets[item].values())
            self._reporter.say(f"- {item.shown}: {there} exists already; --force writes it again")
            return
        for path in wanted.values():
            if path.parent in self._closed:
                raise self._closed[path.parent]
        assert self._transcriber is not None
        with self._reporter.transcribing(item.shown, position) as shown:
            transcript = self._transcriber.transcribe(
                item.source,
                self._request.options,
                on_progress=shown.update,
                cancelled=lambda: self._interrupts.pressed,
                name=item.shown,
            )
        written = []
        for name, path in wanted.items():
            # Whoever wrote it meanwhile: without --force it is not ours to overwrite.
            with contextlib.suppress(OutputExistsError):
                written.append(saving.save(transcript, path, name, overwrite=self._request.force))
        self._print(item, transcript)
        self._done += 1
        where = f" -> {', '.join(str(path) for path in written)}" if written else ""
        self._reporter.finished(position + item.shown, transcript, where)

    def _is_wanted(self, item: Recording) -> bool:
        """Whether there is anything to do for a recording that could be read."""
        if item.problem is not None or not _is_there(item):
            return False
        return not self._request.to_files or bool(self._wanted(item))

    def _wanted(self, item: Recording) -> dict[str, Path]:
        """The results that are still to be written."""
        paths = self._targets.get(item, {})
        if self._request.force:
            return paths
        return {name: path for name, path in paths.items() if not os.path.lexists(path)}

    def _print(self, item: Recording, transcript: Transcript) -> None:
        with printing():
            self._print_text(item, transcript)

    def _print_text(self, item: Recording, transcript: Transcript) -> None:
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
        self._failed += 1
        if self._request.as_json:
            fault = {"code": error.code, "message": error.message, "hint": error.hint}
            click.echo(json.dumps({"file": item.shown, "error": fault}, ensure_ascii=False))
        self._reporter.fail(error)


def _is_there(item: Recording) -> bool:
    # A name that is too long, or in a folder that may not be entered, is told by the attempt to open it.
    try:
        item.path.lstat()
    except FileNotFoundError:
        return item.is_standard_input
    except OSError:
        return True
    return True


def _model(runtime: Runtime, name: str | None, reporter: Reporter, *, ask: bool) -> ModelFiles:
    """The model's files, downloaded with a bar where they lack; a person is asked first where it is much."""

    def before_pull(entry: CatalogEntry) -> None:
        if ask and entry.size > BIG_DOWNLOAD:
            question = f"The model {entry.name} is not here yet. Download it ({size(entry.size)})?"
            click.confirm(question, default=True, abort=True, err=True)
        reporter.say(f"Downloading the model {entry.name} to {runtime.store.models_dir}")

    with reporter.pulling(name or runtime.settings.default_model) as download:
        return runtime.model_files(name, on_pull=download.update, before_pull=before_pull)


def _quieten_libraries() -> None:
    for name in ("httpx", "httpcore", "huggingface_hub", "faster_whisper", "urllib3", "filelock", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
