"""Whether anything is lost where a long recording is cut: eight recordings of ten minutes, read in three ways.

Word error rates of the small GigaAM models: of the sentences one by one, of the whole as it is cut by the product, and
of the whole without any cut, which these models of convolutions can read and real ones cannot. About six minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean

from stenograf.runtime import Runtime
from stenograf.settings import Settings

TESTS = Path(__file__).parent.parent / "tests"
SEEDS = range(7, 15)
MODELS = {"gigaam-test": "gigaam-v3-ctc", "gigaam-rnnt-test": "gigaam-v3-rnnt"}


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(TESTS))
    import onnx_asr
    from jiwer import process_words

    from test_seams import compare, joined, plain

    reader = Runtime(Settings(models_dir=TESTS / "models", offline=True)).reader
    print(f"{'model':<18}{'seed':>6}{'one by one':>12}{'cut':>9}{'uncut':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name, variant in MODELS.items():
            transcriber = reader.transcriber(name)
            bare = onnx_asr.load_model(variant, TESTS / "models" / name)
            rates = []
            for seed in SEEDS:
                recording = joined(seed)
                by_one, in_all = compare(transcriber, recording, Path(folder))
                uncut = process_words(recording.said, plain(bare.recognize(recording.samples, sample_rate=16_000)))
                rates.append((by_one.wer, in_all.wer, uncut.wer))
                print(f"{name:<18}{seed:>6}{by_one.wer:>12.4f}{in_all.wer:>9.4f}{uncut.wer:>9.4f}", flush=True)
            means = [mean(each) for each in zip(*rates, strict=True)]
            print(f"{name:<18}{'mean':>6}{means[0]:>12.4f}{means[1]:>9.4f}{means[2]:>9.4f}", flush=True)


if __name__ == "__main__":
    main()
