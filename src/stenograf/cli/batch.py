"""The recordings of one call of `stenograf transcribe`, one after the other."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from stenograf import formats as writing
from stenograf import output as saving
from stenograf.audio import Source, missing, rereadable
from stenograf.cli.console import Reporter, printing, size
from stenograf.cli.inputs import Recording, is_folder, targets
from stenograf.cli.interrupts import Interrupts
from stenograf.errors import (
    CancelledError,
    ModelNotInstalledError,
    OutputError,
    OutputExistsError,
    StenografError,
    unexpected,
)
from stenograf.models.catalog import CatalogEntry
from stenograf.models.choice import is_auto
from stenograf.options import Options
from stenograf.reader import BeforePull, Decision
from stenograf.runtime import Runtime
from stenograf.transcriber import Transcriber
from stenograf.transcript import Transcript

BIG_DOWNLOAD = 300_000_000
"""Bytes: a person at a terminal is asked before more than this is downloaded."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the command, after its arguments were understood."""

    options: Options
    formats: tuple[str, ...]
    """What to write: into files, or the first of them to stdout."""
    to_files: bool
    as_json: bool
    force: bool


class Batch:
    """The recordings of one call, one after the other; what fails does not keep the rest from being done."""

    def __init__(
        self,
        runtime: Runtime,
        request: Request,
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
        self._model: str | None = None
        self._before_pull: BeforePull | None = None
        self._said = ""
        self._declined: set[str] = set()
        self._done = self._failed = self._skipped = 0

    def prepare(self, model: str | None, *, ask: bool) -> None:
        """Find out what can be found out before the work: the model, its options, the places to write.

        What holds for all recordings is raised; what keeps some of them from being written waits for their turn.
        """
        wanted = [item for item in self._recordings if self._is_wanted(item)]
        if not wanted:
            return
        self._check_folders(wanted)
        reader = self._runtime.reader
        self._model = model or self._runtime.settings.default_model
        self._before_pull = partial(self._allow_pull, ask=ask)
        if is_auto(self._model):
            self._can_choose()  # what is chosen depends on the recording
            return
        with self._reporter.pulling(self._model) as download:
            files = reader.files(self._model, on_pull=download.update, before_pull=self._before_pull)
        with self._reporter.waiting(f"Loading {files.name}"), reader.use(self._model) as transcriber:
            transcriber.check(self._request.options)
            self._say_model(transcriber)

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
                    self._report_failure(item, error, position)
                except BrokenPipeError:
                    raise
                except Exception as error:  # a fault of ours with one file must not cost the others
                    self._report_failure(item, unexpected(item.shown, error), position)
        except KeyboardInterrupt:
            goes_on = "; the same command goes on from there." if self._request.to_files else "."
            self._reporter.say(f"Stopped. {self._done} finished and kept{goes_on}")
            raise
        finally:
            self._runtime.reader.close()
        if len(self._recordings) > 1:
            self._reporter.say(f"{self._done} done, {self._failed} failed, {self._skipped} there already")
        if self._skipped:
            self._reporter.say("What is there already is kept; --force writes it again.")
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
            self._reporter.say(f"- {position}{item.shown}: there already")
            return
        for path in wanted.values():
            if path.parent in self._closed:
                raise self._closed[path.parent]
        transcript = self._read(item, position)
        written = []
        for name, path in wanted.items():
            # Whoever wrote it meanwhile: without --force it is not ours to overwrite.
            with contextlib.suppress(OutputExistsError):
                written.append(saving.save(transcript, path, name, overwrite=self._request.force))
        self._print(item, transcript)
        self._done += 1
        where = f" -> {', '.join(str(path) for path in written)}" if written else ""
        self._reporter.finished(position + item.shown, transcript, where)

    def _read(self, item: Recording, position: str) -> Transcript:
        assert self._model is not None
        reader = self._runtime.reader
        how: dict[str, Any] = {"cancelled": lambda: self._interrupts.pressed, "name": item.shown}
        with contextlib.ExitStack() as stack:
            source: Source = item.source
            decision = Decision(self._model, self._request.options)
            if is_auto(self._model):
                source, rewind = stack.enter_context(rereadable(source))
                with self._reporter.pulling("the model") as download:
                    decision = reader.decide(
                        source, decision.options, on_pull=download.update, before_pull=self._before_pull, **how
                    )
                rewind()
                with self._reporter.waiting(f"Loading {decision.model}"), reader.use(decision.model) as transcriber:
                    self._say_model(transcriber)
            shown = stack.enter_context(self._reporter.transcribing(item.shown, position))
            return reader.read_as(decision, source, on_progress=shown.update, **how)

    def _say_model(self, transcriber: Transcriber) -> None:
        said = f"Model {transcriber.model} on {transcriber.device}, {transcriber.compute_type}"
        if said != self._said:
            self._said = said
            self._reporter.say(said)

    def _can_choose(self) -> None:
        """Raises `ModelNotInstalledError` where no recording could be read, whatever its language."""
        options, available = self._request.options, self._runtime.reader.available
        try:
            available.choose(options.language, "translate" if options.task == "translate" else "read")
        except ModelNotInstalledError:
            if options.language is not None or options.task == "translate":
                raise
            available.choose("ru")  # what is here may read one language only

    def _allow_pull(self, entry: CatalogEntry, *, ask: bool) -> None:
        """Say that a model will be downloaded; a person is asked first where it is much."""
        place = self._runtime.store.models_dir
        if entry.name in self._declined:
            raise _declined(entry)
        if ask and entry.size > BIG_DOWNLOAD:
            question = f"The model {entry.name} is not here yet. Download it ({size(entry.size)}) to {place}?"
            if not click.confirm(question, default=True, err=True):
                self._declined.add(entry.name)  # asked once, and not for each recording
                raise _declined(entry)
        self._reporter.say(f"Downloading the model {entry.name} ({size(entry.size)}) to {place}")

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
        # A folder of that name is no result, and will be told when it is in the way.
        return {name: path for name, path in paths.items() if not os.path.lexists(path) or is_folder(path)}

    def _print(self, item: Recording, transcript: Transcript) -> None:
        with printing():
            self._print_text(item, transcript)

    def _print_text(self, item: Recording, transcript: Transcript) -> None:
        if self._request.as_json:
            line = {"file": item.listed, **transcript.to_dict()}
            click.echo(json.dumps(line, ensure_ascii=False))
        elif not self._request.to_files:
            chosen = next(iter(self._request.formats), "txt")
            is_text = chosen != "docx"
            if len(self._recordings) > 1 and is_text:
                click.echo(f"==> {item.shown} <==")
            click.echo(writing.render(transcript, chosen), nl=False)
            if len(self._recordings) > 1 and is_text:
                click.echo()

    def _report_failure(self, item: Recording, error: StenografError, position: str) -> None:
        self._failed += 1
        if self._request.as_json:
            fault = {"code": error.code, "message": error.message, "hint": error.hint}
            click.echo(json.dumps({"file": item.listed, "error": fault}, ensure_ascii=False))
        self._reporter.fail(error, position)


def _is_there(item: Recording) -> bool:
    # A name that is too long, or in a folder that may not be entered, is told by the attempt to open it.
    try:
        item.path.lstat()
    except FileNotFoundError:
        return item.is_standard_input
    except OSError:
        return True
    return True


def _declined(entry: CatalogEntry) -> ModelNotInstalledError:
    return ModelNotInstalledError(
        f"The model {entry.name} was not downloaded.", "Choose another: stenograf models list."
    )
