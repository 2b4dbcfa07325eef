"""The Whisper test model as a `.pt` file: built once from its other form, which is the one that is kept in git."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests" / "models" / "whisper-test"
BUILDER = ROOT / "tools" / "train_test_models" / "whisper_twin.py"


def whisper_twin() -> Path:
    """`.cache/models/whisper-twin.pt`; needs PyTorch. Built anew after a change of the model or of its builder."""
    target = ROOT / ".cache" / "models" / "whisper-twin.pt"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        newest = max(path.stat().st_mtime for path in (MODEL / "model.bin", BUILDER))
        if not target.exists() or target.stat().st_mtime < newest:
            spec = importlib.util.spec_from_file_location(BUILDER.stem, BUILDER)
            assert spec is not None
            assert spec.loader is not None
            builder = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(builder)
            builder.build(MODEL, target)
    return target
