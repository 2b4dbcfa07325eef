"""`/api/v1/models`: what can be had, what is here and in memory; downloads, and removals."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import Field

from stenograf.api import limits
from stenograf.api.auth import require
from stenograf.api.connection import kept
from stenograf.api.errors import described, fault_of, problems
from stenograf.api.parameters import invalid
from stenograf.api.schemas import TaskError, Wire
from stenograf.api.service import Served, Service
from stenograf.errors import ModelNotInstalledError, RequestInFlightError, StenografError, unexpected
from stenograf.models import Installed, ModelStore, PullProgress, catalog
from stenograf.models.catalog import CatalogEntry
from stenograf.models.layout import files_of

PATH = "/api/v1/models"

PullState = Literal["waiting", "downloading", "verifying", "done", "error"]
FINAL: frozenset[PullState] = frozenset({"done", "error"})

_log = logging.getLogger(__name__)


class PullOut(Wire):
    """The latest download of a model since the service was started."""

    state: PullState = Field(description="`waiting`: another process downloads it; `verifying`: it is here already.")
    done: int = Field(description="Bytes that are here; may go back where a server cannot go on in the middle.")
    total: int = Field(description="Bytes in all; 0 while that is not known.")
    error: TaskError | None


class ModelOut(Wire):
    """A model."""

    name: str = Field(examples=["small"])
    aliases: list[str] = Field(examples=[["whisper-small"]])
    engine: str | None = Field(examples=["faster-whisper"])
    languages: list[str] | None = Field(description="null: it is not known; it is a model of your own.")
    tasks: list[str] | None = Field(examples=[["transcribe", "translate"]])
    size: int = Field(description="Bytes on the disk, or to download, approximately.", examples=[486_000_000])
    memory: int | None = Field(description="Bytes that it takes when it is loaded on a processor, approximately.")
    licence: str | None = Field(examples=["MIT"])
    description: str | None = Field(examples=["balanced; as much as two CPU cores bear"])
    own: bool = Field(description="It is in no catalog, and cannot be downloaded again.")
    installed: bool = Field(description="It is on this server, and can be used.")
    damaged: bool = Field(description="Some of it is on this server; a pull mends it.")
    default: bool = Field(description="It is taken where none is named.")
    loaded: list[str] = Field(description="The workers that hold it in memory.", examples=[["worker-1"]])
    device: str | None = Field(description="Where it ran when it was loaded last.", examples=["cpu"])
    held: int = Field(description="Bytes that it takes in all of them together, approximately.")
    loads: int = Field(description="How often it was loaded since the service was started.")
    evictions: int = Field(description="How often it left the memory since then.")
    pull: PullOut | None


class ModelList(Wire):
    """All models."""

    items: list[ModelOut]
    next: None = Field(default=None, description="There is one page only.")


@dataclass(frozen=True, slots=True)
class Pull:
    """A download, as it is at a moment."""

    state: PullState = "waiting"
    done: int = 0
    total: int = 0
    error: StenografError | None = None


class Pulls:
    """Downloads in threads, one at a time for each model; to be used by many threads."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._pulls: dict[str, Pull] = {}

    def latest(self) -> Mapping[str, Pull]:
        """The latest download of each model."""
        with self._lock:
            return dict(self._pulls)

    def is_under_way(self, name: str) -> bool:
        """Whether a model is being downloaded by this process."""
        pull = self.latest().get(name)
        return pull is not None and pull.state not in FINAL

    def start(self, name: str) -> None:
        """Download a model of the catalog, or verify it; one that is under way goes on."""
        with self._lock:
            pull = self._pulls.get(name)
            if pull is not None and pull.state not in FINAL:
                return
            self._pulls[name] = Pull()
        # The service does not wait for it when it ends: the next pull goes on where it was.
        threading.Thread(target=self._run, args=(name,), name=f"pull {name}", daemon=True).start()

    def forget(self, name: str) -> None:
        """The model was removed: what is known of its download says nothing any more."""
        with self._lock:
            self._pulls.pop(name, None)

    def _run(self, name: str) -> None:
        try:
            self._store.pull(name, lambda progress: self._came(name, progress))
        except StenografError as error:
            _log.warning("the model %s could not be downloaded: %s", name, error)
            self._change(name, state="error", error=error)
        except Exception as error:
            _log.exception("the model %s could not be downloaded", name)
            self._change(name, state="error", error=unexpected(name, error))
        else:
            self._change(name, state="done")

    def _came(self, name: str, progress: PullProgress) -> None:
        self._change(name, state=progress.phase, done=progress.done, total=progress.total)

    def _change(self, name: str, **changes: object) -> None:
        with self._lock:
            self._pulls[name] = replace(self._pulls[name], **changes)  # type: ignore[arg-type]


def _pulls(request: Request) -> Pulls:
    return kept(request.app, "pulls", lambda service: Pulls(service.models))


Downloads = Annotated[Pulls, Depends(_pulls)]

router = APIRouter(prefix=PATH, tags=["models"])
READER = [Depends(require("read")), Depends(limits.requests)]
UNKNOWN: dict[int | str, dict[str, Any]] = {404: described("There is no such model.")}
KEEPER = [Depends(require("models")), Depends(limits.requests)]


@router.get("", summary="List the models", dependencies=READER, responses=problems())
def models(service: Served, pulls: Downloads) -> ModelList:
    """Those that can be downloaded, and those of your own."""
    return ModelList(items=list(_all(service, pulls).values()))


@router.get("/{name}", summary="Look at a model", dependencies=READER, responses={**UNKNOWN, **problems()})
def model(name: str, service: Served, pulls: Downloads) -> ModelOut:
    """By its name or an alias."""
    return _one(name, service, pulls)


@router.post(
    "/{name}/pull",
    status_code=202,
    summary="Download a model",
    dependencies=KEEPER,
    responses={**UNKNOWN, **problems("option_invalid", "model_not_installed")},
)
def pull(name: str, service: Served, pulls: Downloads, response: Response) -> ModelOut:
    """It goes on in the background: `pull` of the model tells how far it is. One that is here is verified.

    What an earlier try brought is not downloaded again.
    """
    found = _one(name, service, pulls)
    if found.own:
        raise invalid("name", f"The model {found.name} is your own.", "Copy it to the server again.")
    if service.settings.offline and not found.installed:
        raise ModelNotInstalledError(
            f"The model {found.name} is not on this server, which downloads nothing.", "The operator can copy it there."
        )
    pulls.start(found.name)
    response.headers["Location"] = f"{PATH}/{found.name}"
    return _one(found.name, service, pulls)


@router.delete(
    "/{name}",
    status_code=204,
    summary="Remove a model from the server",
    dependencies=KEEPER,
    responses={
        **UNKNOWN,
        **problems("option_invalid", "request_in_flight", "model_not_installed", "models_read_only"),
    },
)
def remove(
    name: str,
    service: Served,
    pulls: Downloads,
    force: Annotated[bool, Query(description="A model of your own too, which cannot be downloaded again.")] = False,
) -> None:
    """Who reads with it just now reads on."""
    found = _one(name, service, pulls)
    if found.own and not force:
        raise invalid(
            "force", f"The model {found.name} is your own and cannot be downloaded again.", "Remove it with force=true."
        )
    if pulls.is_under_way(found.name):
        raise RequestInFlightError(f"The model {found.name} is being downloaded just now.", "Wait until that ends.")
    try:
        service.models.remove(found.name)
    except ModelNotInstalledError:
        raise ModelNotInstalledError(  # its own words name folders of the server
            f"The model {found.name} is not in the models folder of this server, or another process downloads it.",
            f"GET {PATH}/{found.name} tells whether it is installed.",
        ) from None
    pulls.forget(found.name)


def _one(name: str, service: Service, pulls: Pulls) -> ModelOut:
    entry = catalog.find(name)
    found = _all(service, pulls).get(entry.name if entry else name)
    if found is None:
        raise HTTPException(404, f"There is no model {name[:80]!r}: {PATH} lists all.")
    return found


def _all(service: Service, pulls: Pulls) -> dict[str, ModelOut]:
    """All models by name, those of the catalog first."""
    here = {item.entry.name if item.entry else item.name: item for item in service.models.installed()}
    default = service.default_model
    if default not in here and catalog.find(default) is None and (item := _elsewhere(service)):
        here[default] = item
    held = dict(service.loaded)
    latest = pulls.latest()
    entries = {entry.name: entry for entry in catalog.ENTRIES}
    return {
        name: _out(
            name,
            entries.get(name),
            here.get(name),
            default=name == default,
            held={worker: models[name] for worker, models in held.items() if name in models},
            pull=latest.get(name),
        ).model_copy(
            update={
                "loads": service.loads[name],
                "evictions": service.evictions[name],
                "device": service.devices.get(name),
            }
        )
        for name in dict.fromkeys([*entries, *here])
    }


def _elsewhere(service: Service) -> Installed | None:
    """The default model, where the settings name it by its path."""
    try:
        files = service.models.resolve(service.settings.default_model, allow_path=True)
    except StenografError:
        return None
    size = sum(files_of(files.path).values())
    return Installed(files.name, files.path, size, files.engine, files.source)


def _out(
    name: str,
    entry: CatalogEntry | None,
    item: Installed | None,
    *,
    default: bool,
    held: Mapping[str, int],
    pull: Pull | None,
) -> ModelOut:
    return ModelOut(
        name=name,
        aliases=list(entry.aliases) if entry else [],
        engine=item.engine if item and item.engine else entry.engine if entry else None,
        languages=list(entry.languages) if entry else None,
        tasks=list(entry.tasks) if entry else None,
        size=item.bytes if item else entry.size if entry else 0,
        memory=entry.memory if entry else None,
        licence=entry.licence if entry else None,
        description=entry.description if entry else None,
        own=entry is None,
        installed=item is not None and not item.problem,
        damaged=item is not None and bool(item.problem),
        default=default,
        loaded=sorted(held),
        device=None,
        held=sum(held.values()),
        loads=0,
        evictions=0,
        pull=_pull_out(pull) if pull else None,
    )


def _pull_out(pull: Pull) -> PullOut:
    error = None
    if pull.error is not None:
        fault = fault_of(pull.error)
        error = TaskError(code=fault.code, message=fault.message, hint=fault.hint)
    return PullOut(state=pull.state, done=pull.done, total=pull.total, error=error)
