"""`stenograf jobs`: the jobs of the service on this machine, looked at and looked after."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from typing import Any

import click

from stenograf.cli.console import Reporter, clock, new_table, print_table
from stenograf.errors import StenografError, StorageError, TaskUnknownError
from stenograf.jobs.job import STATES, Job, State
from stenograf.runtime import Runtime
from stenograf.setting_sources import load


@click.group("jobs")
def command() -> None:
    """List, look at, cancel, retry and remove the jobs of the service on this machine."""


@command.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only such; may be repeated.")
@click.option("--text", help="Only those with this text in their name or transcript.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_jobs(states: tuple[State, ...], text: str | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    page = _runtime().jobs.page(states=states, text=text, limit=limit)
    if as_json:
        click.echo(json.dumps([_data(job) for job in page.items], ensure_ascii=False, indent=2))
        return
    if not page.items:
        click.echo("There are no such jobs.", err=True)
        return
    table = new_table("id", "state", "recording", "length", "made", right=("length",))
    for job in page.items:
        state = f"{job.state} {job.progress:.0%}" if job.state == "processing" else job.state
        length = clock(job.audio_seconds) if job.audio_seconds and job.model else ""
        table.add_row(job.id, state, job.filename, length, _time(job.created_at) or "")
    print_table(table)
    if page.next:
        click.echo("\nThere are more: see them with a larger --limit.", err=True)


@command.command("show")
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the transcript where there is one.")
def show(job_id: str, as_json: bool) -> None:
    """Tell all about a job; the text goes to stdout, once there is one."""
    store = _runtime().jobs
    job = store.get(_whole(job_id))
    transcript = store.transcript(job.id) if job.state == "done" else None
    if as_json:
        click.echo(json.dumps({**_data(job), "transcript": transcript}, ensure_ascii=False, indent=2))
        return
    for name, value in _data(job).items():
        if value not in (None, {}, ""):
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
            click.echo(f"{name:15} {shown}", err=True)
    if transcript is not None:
        click.echo(transcript["text"])


@command.command("cancel")
@click.argument("job_ids", nargs=-1, required=True, metavar="ID...")
def cancel(job_ids: tuple[str, ...]) -> int:
    """Cancel jobs that wait or are worked on; what was read of them is kept."""
    store = _runtime().jobs
    return _each(job_ids, store.cancel, "cancelled")


@command.command("retry")
@click.argument("job_ids", nargs=-1, required=True, metavar="ID...")
def retry(job_ids: tuple[str, ...]) -> int:
    """Queue jobs in error, or cancelled ones, again; they go on where they stopped."""
    store = _runtime().jobs
    return _each(job_ids, store.retry, "queued")


@command.command("remove")
@click.argument("job_ids", nargs=-1, required=True, metavar="ID...")
def remove(job_ids: tuple[str, ...]) -> int:
    """Remove jobs, with their recordings and transcripts, whatever their state."""
    runtime = _runtime()

    def gone(job_id: str) -> Job:
        job = runtime.jobs.remove(job_id)
        with suppress(StorageError):  # the job is gone, and its file names nobody: the sweep finds it
            runtime.files.remove(job.file)
        return job

    return _each(job_ids, gone, "removed")


def _each(job_ids: tuple[str, ...], act: Any, done: str) -> int:
    reporter = Reporter(quiet=False, verbose=False)
    failed = 0
    for job_id in job_ids:
        try:
            job = act(_whole(job_id))
            reporter.say(f"✓ {done} {job.id} ({job.filename})")
        except StenografError as error:
            failed = max(failed, error.exit_code)
            reporter.fail(error)
    return failed


def _whole(job_id: str) -> str:
    """The id as it is stored; a clear word for what cannot be one."""
    if not job_id.strip():
        raise TaskUnknownError("The id is empty.", "See: stenograf jobs list")
    return job_id.strip().lower()


def _runtime() -> Runtime:
    runtime = Runtime(load().settings)
    runtime.database.migrate()
    return runtime


def _data(job: Job) -> dict[str, Any]:
    failure = job.error.to_dict() if job.error else None
    return {
        "id": job.id,
        "state": job.state,
        "stage": job.stage,
        "progress": round(job.progress, 4),
        "filename": job.filename,
        "size": job.size,
        "owner": job.owner,
        "lane": job.lane,
        "priority": job.priority,
        "options": dict(job.options),
        "url": job.url,
        "audio_seconds": round(job.audio_seconds, 2) if job.model and job.audio_seconds else None,
        "model": job.model,
        "engine": job.engine,
        "device": job.device,
        "compute_type": job.compute_type,
        "language": job.language,
        "attempt": job.attempt,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "expires_at": _time(job.expires_at),
        "error": failure if job.state == "error" else None,
        "last_failure": None if job.state == "error" else failure,
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
