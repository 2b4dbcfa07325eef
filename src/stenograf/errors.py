"""Every error a person can meet, as one tree; `docs/errors.md` tells of each code what to do, as a test sees to.

StenografError
├── UsageError              asked for something that cannot be done as asked
│   ├── SettingInvalidError     setting_invalid
│   ├── OptionInvalidError      option_invalid
│   ├── LanguageUnknownError    language_unknown
│   ├── FormatUnknownError      format_unknown
│   ├── ModelUnknownError       model_unknown
│   ├── AddressRefusedError     address_refused
│   ├── NothingToDoError        nothing_to_do
│   ├── BadRequestError         bad_request
│   ├── UnsupportedMediaTypeError  unsupported_media_type
│   └── RequestTimeoutError     request_timeout         (retryable)
├── InputError              this recording cannot be read
│   ├── FileMissingError        file_missing
│   ├── FileForbiddenError      file_forbidden
│   ├── FileEmptyError          file_empty
│   ├── NotMediaError           not_media
│   ├── NoAudioError            no_audio
│   ├── AudioDamagedError       audio_damaged
│   ├── RecordingTooLongError   recording_too_long
│   ├── UploadTooLargeError     upload_too_large
│   ├── FetchFailedError        fetch_failed            (retryable)
│   └── FetchRefusedError       fetch_refused
├── ModelError              the model cannot be had
│   ├── ModelNotInstalledError  model_not_installed
│   ├── ModelDamagedError       model_damaged
│   ├── ModelsReadOnlyError     models_read_only
│   └── DownloadFailedError     download_failed         (retryable)
├── EngineError             the model cannot be run
│   ├── EngineMissingError      engine_missing
│   ├── DeviceUnavailableError  device_unavailable
│   ├── OutOfMemoryError        out_of_memory           (retryable)
│   ├── NoRoomError             no_room                 (retryable)
│   ├── ModelTooLargeError      model_too_large
│   └── EngineFailedError       engine_failed
├── OutputError             the result cannot be written
│   ├── DiskFullError           disk_full               (retryable)
│   ├── OutputForbiddenError    output_forbidden
│   └── OutputExistsError       output_exists
├── ServiceError            the service cannot do it now, or not for this caller
│   ├── UnauthorizedError       unauthorized
│   ├── ForbiddenError          forbidden
│   ├── TaskUnknownError        task_unknown
│   ├── TaskStateError          task_state
│   ├── IdempotencyError        idempotency_conflict
│   ├── RequestInFlightError    request_in_flight       (retryable)
│   ├── RateLimitedError        rate_limited            (retryable)
│   ├── QueueFullError          queue_full              (retryable)
│   ├── ServiceStoppingError    service_stopping        (retryable)
│   ├── KeyUnknownError         key_unknown
│   ├── DatabaseError           database_failed         (retryable)
│   │   ├── DatabaseNewerError          database_newer
│   │   └── DatabaseUnreachableError    database_unreachable    (retryable)
│   ├── StorageError            storage_unavailable     (retryable)
│   ├── WorkerLostError         worker_lost
│   └── LeaseLostError          lease_lost
└── CancelledError          cancelled
"""

from __future__ import annotations

from typing import ClassVar


class StenografError(Exception):
    """Base of all errors that this package raises on purpose.

    `message` says in one sentence what is wrong, naming the file or the value; `hint` in one what to do about it.
    """

    code: ClassVar[str] = "internal"
    """Stable, machine-readable name: the same on every interface."""

    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later without being changed."""

    exit_code: ClassVar[int] = 1
    """What the command line exits with: 1 failed, 2 used wrongly."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[StenografError], tuple[str, str]]:
        # Errors cross process borders: without this the hint would be lost on the way.
        return (type(self), (self.message, self.hint))


def unexpected(what: str, error: Exception) -> StenografError:
    """An exception that nobody foresaw, met while working on `what`, as an error that a person can read."""
    return StenografError(
        f"{what}: something unexpected happened ({type(error).__name__}: {error}).",
        "Run it again with -v to see where, and please report it.",
    )


class UsageError(StenografError):
    """Asked for something that cannot be done as asked."""

    code = "usage"
    exit_code = 2


class SettingInvalidError(UsageError):
    """A setting has a value that makes no sense."""

    code = "setting_invalid"


class OptionInvalidError(UsageError):
    """An option of a transcription is out of its range, or does not suit the model."""

    code = "option_invalid"


class LanguageUnknownError(UsageError):
    """No such language, or the model does not speak it."""

    code = "language_unknown"


class FormatUnknownError(UsageError):
    """No such output format."""

    code = "format_unknown"


class ModelUnknownError(UsageError):
    """No model of that name in the catalog or in the models folder."""

    code = "model_unknown"


class AddressRefusedError(UsageError):
    """A web address is malformed, unknown, or leads where this server sends no requests."""

    code = "address_refused"


class NothingToDoError(UsageError):
    """The folders that were named hold no recording."""

    code = "nothing_to_do"


class BadRequestError(UsageError):
    """The body of a request is broken, or has what it should not have."""

    code = "bad_request"


class UnsupportedMediaTypeError(UsageError):
    """The body of a request is of a kind that is not read here, or the file's name has an ending that is not taken."""

    code = "unsupported_media_type"


class RequestTimeoutError(UsageError):
    """The client stopped sending in the middle of its request."""

    code = "request_timeout"
    retryable = True


class InputError(StenografError):
    """This recording cannot be read."""

    code = "input"


class FileMissingError(InputError):
    """There is no such file."""

    code = "file_missing"


class FileForbiddenError(InputError):
    """The file may not be read by this user."""

    code = "file_forbidden"


class FileEmptyError(InputError):
    """The file has no bytes."""

    code = "file_empty"


class NotMediaError(InputError):
    """The file is not an audio or video file that FFmpeg's libraries know."""

    code = "not_media"


class NoAudioError(InputError):
    """A video without sound."""

    code = "no_audio"


class AudioDamagedError(InputError):
    """The file has an audio track, of which nothing can be decoded."""

    code = "audio_damaged"


class UploadTooLargeError(InputError):
    """The file is larger than this server takes."""

    code = "upload_too_large"


class FetchFailedError(InputError):
    """A web address could not be reached, broke off, or its server is in trouble for the moment."""

    code = "fetch_failed"
    retryable = True


class FetchRefusedError(InputError):
    """A web address answered with a refusal, or with something that cannot be used."""

    code = "fetch_refused"


class RecordingTooLongError(InputError):
    """The recording is longer than the service takes."""

    code = "recording_too_long"


class ModelError(StenografError):
    """The model cannot be had."""

    code = "model"


class ModelNotInstalledError(ModelError):
    """The model is known, is not on this machine and may not or can not be downloaded."""

    code = "model_not_installed"


class ModelDamagedError(ModelError):
    """The model's folder lacks files, or holds files that are not what they should be."""

    code = "model_damaged"


class ModelsReadOnlyError(ModelError):
    """The models folder may not be written, so nothing can be downloaded into it or removed."""

    code = "models_read_only"


class DownloadFailedError(ModelError):
    """The hub could not be reached, or broke off."""

    code = "download_failed"
    retryable = True


class EngineError(StenografError):
    """The model cannot be run."""

    code = "engine"


class EngineMissingError(EngineError):
    """The engine's libraries are not installed."""

    code = "engine_missing"


class DeviceUnavailableError(EngineError):
    """The device or compute type that was asked for does not work on this machine."""

    code = "device_unavailable"


class OutOfMemoryError(EngineError):
    """The model does not fit into memory."""

    code = "out_of_memory"
    retryable = True


class NoRoomError(EngineError):
    """The model would fit, but others are in use and took the room for longer than was waited."""

    code = "no_room"
    retryable = True


class ModelTooLargeError(EngineError):
    """The model takes more memory than models may take on this machine."""

    code = "model_too_large"


class EngineFailedError(EngineError):
    """The engine broke while it transcribed."""

    code = "engine_failed"


class OutputError(StenografError):
    """The result cannot be written."""

    code = "output"


class DiskFullError(OutputError):
    """No space is left where the result should go."""

    code = "disk_full"
    retryable = True


class OutputForbiddenError(OutputError):
    """The place where the result should go may not be written by this user."""

    code = "output_forbidden"


class OutputExistsError(OutputError):
    """A result is already there and was not to be overwritten."""

    code = "output_exists"


class ServiceError(StenografError):
    """The service cannot do it now, or not for this caller."""

    code = "service"


class UnauthorizedError(ServiceError):
    """No key or token, or one that is not good any more."""

    code = "unauthorized"


class ForbiddenError(ServiceError):
    """The key is good, but not for this; or the address may not come in."""

    code = "forbidden"


class TaskUnknownError(ServiceError):
    """There is no such task, or it is another owner's."""

    code = "task_unknown"


class TaskStateError(ServiceError):
    """What was asked does not fit the state that the task is in."""

    code = "task_state"


class IdempotencyError(ServiceError):
    """The idempotency key was used for another request."""

    code = "idempotency_conflict"


class RequestInFlightError(ServiceError):
    """The same request is being taken in just now."""

    code = "request_in_flight"
    retryable = True


class RateLimitedError(ServiceError):
    """Too many requests in a short time."""

    code = "rate_limited"
    retryable = True


class QueueFullError(ServiceError):
    """So many tasks wait that no more are taken."""

    code = "queue_full"
    retryable = True


class ServiceStoppingError(ServiceError):
    """The service is being stopped; what it took in is kept and goes on at its next start."""

    code = "service_stopping"
    retryable = True


class KeyUnknownError(ServiceError):
    """There is no such API key."""

    code = "key_unknown"


class DatabaseError(ServiceError):
    """The database cannot be opened, read or written."""

    code = "database_failed"
    retryable = True


class DatabaseNewerError(DatabaseError):
    """A newer version of Stenograf made the database."""

    code = "database_newer"
    retryable = False


class DatabaseUnreachableError(DatabaseError):
    """No server answers for the database; it may come back by itself."""

    code = "database_unreachable"


class StorageError(ServiceError):
    """The object store that keeps the recordings cannot be reached, or refuses."""

    code = "storage_unavailable"
    retryable = True


class WorkerLostError(ServiceError):
    """The processes that tried to read a recording died or hung, one after the other."""

    code = "worker_lost"


class LeaseLostError(ServiceError):
    """A worker wrote to a task that is not its own any more: it stops, nothing is lost."""

    code = "lease_lost"


class CancelledError(StenografError):
    """The caller asked to stop."""

    code = "cancelled"
