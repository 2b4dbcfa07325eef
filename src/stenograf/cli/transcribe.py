"""`stenograf transcribe`: recordings in, transcripts out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from stenograf import formats as writing
from stenograf.cli.arguments import DURATION, NAME
from stenograf.cli.batch import Batch, Request
from stenograf.cli.console import Reporter
from stenograf.cli.inputs import STANDARD_INPUT, Recording, collect, output_format, standard_input
from stenograf.cli.interrupts import Interrupts
from stenograf.errors import OptionInvalidError, OutputError
from stenograf.runtime import Runtime
from stenograf.setting_sources import load

STANDARD_OUTPUT = Path("-")
"""How standard output is named."""

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
    help="Folder for the results, or the name of the one file to write; - for stdout.",
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
    "-m",
    "--model",
    help="auto: by the language; or a catalog name, a folder in the models directory, or a path. "
    "See: stenograf models list.",
)
@click.option("-l", "--language", help="Language spoken, such as ru or en; auto: detect it.")
@click.option(
    "--task",
    type=click.Choice(["transcribe", "translate"]),
    default="transcribe",
    show_default=True,
    help="Write the language spoken, or English.",
)
@click.option("--trim", type=DURATION, metavar="SECONDS", help="Read only the start; 90 or 1:30; 0: all of it.")
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
    to_stdout = output == STANDARD_OUTPUT
    chosen = _formats(formats, None if to_stdout else output)
    if to_stdout and len(chosen) > 1:
        raise OptionInvalidError(
            f"Only one format fits on stdout, not {', '.join(chosen)}.", "Choose one, or a folder."
        )
    request = Request(options, chosen, not to_stdout and bool(chosen), as_json, force)
    if not request.to_files and sys.stdout is None:
        raise OutputError("There is no standard output to print to.", "Give --output.")
    found = _recordings(recordings, files, folders, recursive, output)
    interrupts = Interrupts()
    batch = Batch(runtime, request, reporter, found, output, interrupts)
    at_terminal = sys.stdin is not None and sys.stdin.isatty() and reporter.live
    batch.prepare(model, ask=at_terminal and not non_interactive)
    try:
        with interrupts:
            return batch.run()
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


def _quieten_libraries() -> None:
    for name in ("httpx", "httpcore", "huggingface_hub", "faster_whisper", "urllib3", "filelock", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
