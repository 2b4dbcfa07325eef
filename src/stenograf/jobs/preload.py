"""Loading the models that a worker needs first, before anyone asks for them."""

from __future__ import annotations

import io
import logging
import wave
from collections.abc import Callable

from stenograf.errors import ModelNotInstalledError, StenografError
from stenograf.options import Options
from stenograf.reader import Reader

log = logging.getLogger(__name__)


def preload(reader: Reader, on_failure: Callable[[str, StenografError], None] = lambda _name, _error: None) -> None:
    """Load them, one after the other; what goes wrong is logged, and said again to whoever asks for the model."""
    for name in reader.available.needed_first():
        try:
            _load(reader, name)
        except ModelNotInstalledError as error:
            log.info("not loaded yet: %s", error)  # it is fetched when someone wants it, where it may be
        except StenografError as error:
            log.warning("the model %s is not ready: %s", name, error)
            on_failure(name, error)
        except Exception:
            log.exception("the model %s is not ready", name)


def _load(reader: Reader, name: str) -> None:
    before = {model.name for model in reader.loaded()}
    reader.find(name)
    with reader.use(name) as transcriber:
        for vad in (True, False):  # the first pass through each library takes its time: better now
            transcriber.transcribe(_silence(), Options(beam_size=1, temperature=0.0, vad=vad, trim=1.0))
        log.info("the model %s is loaded", transcriber.model)
    if gone := before - {model.name for model in reader.loaded()}:
        log.warning("%s had to make room for %s: not all models that are loaded first fit", ", ".join(gone), name)


def _silence() -> io.BytesIO:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(32_000))
    file.seek(0)
    return file
