"""What goes over the wire of `/api/v1`, for the OpenAPI description and for the code that writes it.

Times are ISO 8601 in UTC, with milliseconds. Lengths are seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from stenograf.api.errors import public
from stenograf.jobs.job import Job, Lane, State
from stenograf.jobs.store import Outlook

TASKS = "/api/v1/tasks"
_ID = "0199f2ab-7c31-7d54-9a5e-3c1f0d2b4e6a"
_TIME = "2026-11-21T09:30:00.125Z"

TaskId = Annotated[str, Field(description="The task's id.", examples=[_ID])]
Seconds = Annotated[float | None, Field(examples=[12.5])]


class Wire(BaseModel):
    """Base of all of them."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


SPARSE = ConfigDict(json_schema_serialization_defaults_required=False)
"""Of those whose fields with a default are left out where there is nothing to say."""


class Links(Wire):
    """Where to go from a task; relative to the address of the service."""

    self: str = Field(description="The task.", examples=[f"{TASKS}/{_ID}"])
    result: str | None = Field(description="The transcript as JSON, once it is there.")
    download: str | None = Field(description="The transcript as a file, once it is there; add `?format=srt`.")
    audio: str | None = Field(description="The recording, while it is kept here.")
    events: str = Field(description="What happens to the task, as server-sent events.")


class TaskError(Wire):
    """Why a task failed; while it is `queued`, why its latest attempt did."""

    code: str = Field(examples=["not_media"])
    message: str = Field(examples=["notes.txt holds no audio or video that can be read."])
    hint: str = Field(examples=["Check that it plays."])


class Task(Wire):
    """One recording to transcribe, and how far it is."""

    task_id: TaskId
    status: State
    progress: float = Field(ge=0, le=1, description="0 to 1.")
    stage: str = Field(
        description="What is done now: `waiting`, `fetching`, `loading`, `transcribing`; at the end the status.",
        examples=["transcribing"],
    )
    position: int | None = Field(
        default=None, description="Tasks of its lane that will start before it; null in lists and at the end."
    )
    estimated_seconds: Seconds = Field(
        default=None, description="Until it is done, as far as can be told; null in lists and at the end."
    )
    filename: str = Field(examples=["Совещание 12 ноября.ogg"])
    size: int = Field(description="Bytes; 0 until a recording named by `url` is fetched.")
    lane: Lane = Field(description="`short` for voice notes, `long` for meetings: neither waits behind the other.")
    priority: int = Field(description="0 to 9; 0 is the most urgent.")
    options: dict[str, Any] = Field(
        description="The options that were given.", examples=[{"language": "ru", "word_timestamps": True}]
    )
    model: str | None = Field(description="The model that reads it, once it is loaded.", examples=["small"])
    engine: str | None = Field(examples=["faster-whisper"])
    device: str | None = Field(description="The device that is really used.", examples=["cpu"])
    compute_type: str | None = Field(examples=["int8"])
    language: str | None = Field(description="As given or as detected.", examples=["ru"])
    audio_seconds: Seconds = Field(description="Length of the recording; a guess until it is opened.")
    attempt: int = Field(description="How often it was begun.")
    created_at: datetime = Field(examples=[_TIME])
    started_at: datetime | None = Field(description="When the latest attempt began.")
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When it is removed with its files; null: not set yet, or never.")
    error: TaskError | None = Field(description="Why it ended in the status `error`; null in any other.")
    last_failure: TaskError | None = Field(
        description="Why an attempt broke off, where the task is tried again; null in the status `error`."
    )
    links: Links

    @classmethod
    def of(cls, job: Job, outlook: Outlook | None = None) -> Task:
        """The task that stands for a job."""
        waits = outlook is not None and not job.at_rest
        failure = TaskError(**public(job.error).to_dict()) if job.error else None
        is_over = job.state == "error"
        return cls(
            task_id=job.id,
            status=job.state,
            progress=round(job.progress, 4),
            stage=job.stage,
            position=outlook.position if outlook and waits else None,
            estimated_seconds=round(outlook.seconds, 1) if outlook and waits else None,
            filename=job.filename,
            size=job.size,
            lane=job.lane,
            priority=job.priority,
            options=dict(job.options),
            model=job.model,
            engine=job.engine,
            device=job.device,
            compute_type=job.compute_type,
            language=job.language,
            audio_seconds=None if job.audio_seconds is None else round(job.audio_seconds, 3),
            attempt=job.attempt,
            created_at=moment(job.created_at),
            started_at=None if job.started_at is None else moment(job.started_at),
            finished_at=None if job.finished_at is None else moment(job.finished_at),
            expires_at=None if job.expires_at is None else moment(job.expires_at),
            error=failure if is_over else None,
            last_failure=None if is_over else failure,
            links=links_of(job),
        )


class TaskAccepted(Wire):
    """A task that was taken in: it is on the disk, and will be done even if the service is restarted now."""

    task_id: TaskId
    status: State
    position: int = Field(description="Tasks of its lane that will start before it.")
    estimated_seconds: float = Field(description="Until it is done, as far as can be told.", examples=[12.5])
    links: Links

    @classmethod
    def of(cls, job: Job, outlook: Outlook) -> TaskAccepted:
        """The answer to a request that brought a job."""
        return cls(
            task_id=job.id,
            status=job.state,
            position=outlook.position,
            estimated_seconds=round(outlook.seconds, 1),
            links=links_of(job),
        )


class TaskList(Wire):
    """A page of tasks, newest first."""

    items: list[Task]
    next: str | None = Field(description="The `cursor` of the next page; null at the end.")


class WordOut(Wire):
    """A word of a transcript."""

    word: str
    start: float
    end: float
    probability: float | None


class SegmentOut(Wire):
    """A stretch of speech."""

    model_config = SPARSE

    id: int
    start: float
    end: float
    text: str
    words: list[WordOut] | None = Field(default=None, description="Only with `word_timestamps`.")
    speaker: str | None = Field(default=None, description="Only where speakers were told apart.")
    avg_logprob: float | None
    no_speech_prob: float | None
    compression_ratio: float | None
    uncertain: bool = Field(description="Worth checking by ear: the model was unsure, or a part was dropped.")


class WarningOut(Wire):
    """Something that the reader of a transcript should know."""

    code: str = Field(examples=["audio_damaged"])
    message: str


class TranscriptOut(Wire):
    """The result of a task."""

    text: str = Field(examples=["Добрый день, коллеги!"])
    language: str | None
    language_probability: float | None
    duration: float = Field(description="Seconds of audio that were read.")
    segments: list[SegmentOut]
    model: str
    model_reason: str | None = Field(
        description="Why `auto` chose it; null where it was named.",
        examples=["chosen because it reads Russian on a GPU"],
    )
    engine: str
    device: str
    compute_type: str
    warnings: list[WarningOut]
    timings: dict[str, float] = Field(description="Seconds of work by stage.")


class ParameterFault(Wire):
    """A parameter that is wrong."""

    param: str
    message: str


class Problem(Wire):
    """An error by RFC 9457."""

    model_config = SPARSE

    type: str = Field(description="Where the code is explained.", examples=["/docs/errors#task_unknown"])
    title: str = Field(examples=["Task unknown"])
    status: int = Field(examples=[404])
    detail: str = Field(description="What is wrong.")
    code: str = Field(description="Stable, for programs.", examples=["task_unknown"])
    hint: str = Field(description="What to do about it.")
    instance: str = Field(description="The path of the request.")
    request_id: str | None = Field(description="Names the request in the log of the service.")
    errors: list[ParameterFault] | None = Field(default=None, description="Where several parameters are wrong.")


def moment(seconds: float) -> datetime:
    """A time of the database as it stands on the wire: UTC, cut to milliseconds."""
    return datetime.fromtimestamp(int(seconds * 1000) / 1000, UTC)


def links_of(job: Job) -> Links:
    """Where to go from a job's task."""
    task = f"{TASKS}/{job.id}"
    done = job.state == "done"
    return Links(
        self=task,
        result=f"{task}/result" if done else None,
        download=f"{task}/download" if done else None,
        audio=f"{task}/audio" if job.file else None,
        events=f"{task}/events",
    )
