"""Memory and time of each engine, with weights of the real shapes and random values: nothing is downloaded.

`make bench-engines`. Each model is loaded and used in a process of its own, whose memory is set up as a worker's.
Shown are MB of the files, seconds to load them from the system's cache, the real-time factor over a minute in chunks of
20 s (after one to warm up), and MB of resident memory above what the process had before: the peak while loading, once
loaded, the peak while reading, after reading, after closing; and what the pool of models counts for it, by the catalog
and by the size of the files. GigaAM's CTC also reads chunks of 3 to 20 s in batches of 1, 2 and 4, and once with waves
that are not filled up to whole seconds.

The texts are noise, of the length of speech. GigaAM's shape is that of its configuration: 16 conformer layers, width 768,
16 heads, kernels of 5, 64 mel bands, predictor and joint of 320; 221 million parameters. Its rotation of queries and keys
by their place is left out.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import lengthen, peak, reset_peak, resident

from stenograf.audio import SAMPLE_RATE, AudioReader
from stenograf.chunk import Chunk
from stenograf.engines import engine, onnx_asr
from stenograf.jobs import allocation
from stenograf.models import catalog
from stenograf.models.found import ModelFiles
from stenograf.models.layout import files_of
from stenograf.models.memory import needed
from stenograf.options import Options

TESTS = Path(__file__).parent.parent / "tests"
SECONDS = 20
TURNS = 2
TOKENS = 80
"""Of such a chunk of Russian speech in Whisper's vocabulary."""
UNEVEN = (8.3, 14.6, 5.1, 10.7, 2.4, 6.2, 3.5)
"""Seconds of the chunks that are put together; batches grow from 1, so that 7 chunks fill those of 4."""
WAYS = {"one by one": (1, True), "batches of 2": (2, True), "batches of 4": (4, True), "one by one, bare": (1, False)}
"""How many together, and whether they are filled up to whole seconds."""
MB = 2**20 / 1e6
"""`resident` and `peak` count in 2^20 bytes."""
MODELS = {
    "base": "faster-whisper",
    "small": "faster-whisper",
    "base.pt": "openai-whisper",
    "gigaam-v3-ctc": "onnx-asr",
    "gigaam-v3-rnnt": "onnx-asr",
}
"""The catalog's names, and the engines."""
WIDTH, HEADS, INNER, LAYERS, KERNEL, MELS, STATE, BLANK = 768, 16, 3072, 16, 5, 64, 320, 33


def cut(folder: Path, lengths: tuple[float, ...]) -> list[Chunk]:
    """Chunks of speech of so many seconds, one after the other."""
    path = folder / "recording.mkv"
    if not path.exists():
        lengthen(TESTS / "audio" / "ru-long.ogg", path, 4 * SECONDS + 1)
    with AudioReader(path) as reader:
        audio = np.concatenate(list(reader.blocks()))
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    places = [slice(round(at * SAMPLE_RATE), round((at + length) * SAMPLE_RATE)) for at, length in zip(starts, lengths)]
    return [Chunk(i, starts[i], audio[places[i]], Options(language="ru")) for i in range(len(lengths))]


def measure(name: str, folder: Path) -> dict[str, Any]:
    """All figures of one model; to be run in a fresh process."""
    allocation.spare()
    first, *minute = cut(folder, (SECONDS,) * 4)
    uneven = cut(folder, UNEVEN)
    before = resident()
    reset_peak()
    started = time.perf_counter()
    variant = name if name.startswith("gigaam") else None
    loaded = engine(MODELS[name]).load(folder / name, device="cpu", compute_type="auto", variant=variant)
    seconds = time.perf_counter() - started
    memory = [peak(), resident()]
    allocation.give_back()
    memory.append(resident())
    reset_peak()
    list(loaded.transcribe([first]))
    started, busy = time.perf_counter(), time.process_time()
    found = list(loaded.transcribe(minute))
    spent = [(time.perf_counter() - started) / 60, (time.process_time() - busy) / 60]
    letters = sum(len(segment.text) for result in found for segment in result.segments)
    memory.append(peak())
    allocation.give_back()
    memory.append(resident())
    tried = compare(loaded, uneven, before) if name == "gigaam-v3-ctc" else []
    loaded.close()
    del loaded
    gc.collect()
    allocation.give_back()
    memory = [(figure - before) * MB for figure in (*memory, resident())]
    return {"load": seconds, "spent": spent, "letters": letters, "memory": memory, "tried": tried}


def compare(loaded: Any, chunks: list[Chunk], before: float) -> list[tuple[str, float, float]]:
    """Each of `WAYS`: the seconds of its quickest turn, and the peak of its first, MB."""
    lengths, best, highest = onnx_asr.LENGTHS["cpu"], dict.fromkeys(WAYS, float("inf")), {}
    for _ in range(TURNS):
        for label, (batch, filled) in WAYS.items():
            onnx_asr.BATCH["cpu"], onnx_asr.LENGTHS["cpu"] = batch, lengths if filled else ()
            reset_peak()
            started = time.perf_counter()
            list(loaded.transcribe(chunks))
            best[label] = min(best[label], time.perf_counter() - started)
            highest.setdefault(label, (peak() - before) * MB)
    return [(label, best[label], highest[label]) for label in WAYS]


def whisper_pt(target: Path) -> None:
    """A `.pt` file of the base shape that gives `TOKENS` tokens a window; see `shapes.build`.

    The tokens' own matrix turns states into tokens here, so the first dimension is left to the end of the text.
    """
    import torch
    from shapes import END_OF_TEXT, FIRST_TIMESTAMP, SHAPES, VOCABULARY
    from whisper.model import ModelDimensions, Whisper

    width, heads, encoder_layers, decoder_layers = SHAPES["base"]
    dims = ModelDimensions(80, 1500, width, heads, encoder_layers, VOCABULARY, 448, width, heads, decoder_layers)
    torch.manual_seed(0)
    model = Whisper(dims)
    with torch.no_grad():
        tokens, places = model.decoder.token_embedding.weight, model.decoder.positional_embedding
        tokens.normal_(0, 0.5)
        tokens[FIRST_TIMESTAMP:] *= 0.1
        tokens[:, 0] = 0.0
        tokens[END_OF_TEXT, 0] = 6.0
        # Another token at each place, and a sure one: else it would be tried again at higher temperatures.
        places.normal_(0, 30)
        places[:, 0] = -60.0
        places[TOKENS:, 0] = 6000.0
    halves = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"dims": vars(dims), "model_state_dict": halves}, target)


def encode(parts: Any, features: Any, lengths: Any) -> tuple[Any, Any]:
    """Features, shape (batch, MELS, frames), to states, shape (batch, WIDTH, a quarter of the frames)."""
    for down in parts["down"]:
        features, lengths = down(features).relu(), (lengths - 1) // 2 + 1
    hidden = features.transpose(1, 2)
    outside = (hidden[0, :, 0].new_ones(hidden.shape[1]).cumsum(0) > lengths[:, None])[:, None, None, :]
    for layer in parts["layers"]:
        hidden = conform(layer, hidden, outside)
    return hidden.transpose(1, 2), lengths.int()


def classify(parts: Any, features: Any, lengths: Any) -> Any:
    """Log-probabilities of the tokens, for each state."""
    return parts["head"](encode(parts, features, lengths)[0]).transpose(1, 2).log_softmax(-1)


def conform(layer: Any, hidden: Any, outside: Any) -> Any:
    """One conformer layer: half a feed-forward, attention, convolution, the other half."""
    hidden = hidden + 0.5 * layer["feed1"](hidden)
    shape = (*hidden.shape[:2], 3, HEADS, WIDTH // HEADS)
    query, key, value = layer["split"](hidden).view(shape).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(2, 3) / shape[-1] ** 0.5).masked_fill(outside, -10_000.0).softmax(-1)
    hidden = hidden + layer["join"]((weights @ value).transpose(1, 2).flatten(2))
    deep = layer["depth"](layer["gates"](layer["norm1"](hidden).transpose(1, 2)))
    hidden = hidden + layer["narrow"](layer["act"](deep.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
    return layer["norm3"](hidden + 0.5 * layer["feed2"](hidden))


def predict(parts: Any, token: Any, hidden: Any, cell: Any) -> tuple[Any, Any, Any]:
    """What the tokens so far say of the next one."""
    output, (hidden, cell) = parts["lstm"](parts["embedding"](token), (hidden, cell))
    return output, hidden, cell


def join(parts: Any, heard: Any, expected: Any) -> Any:
    """Log-probabilities of the tokens, for each frame with each state of the predictor."""
    heard, expected = parts["heard"](heard.transpose(1, 2)), parts["expected"](expected.transpose(1, 2))
    return parts["out"]((heard[:, :, None] + expected[:, None]).relu()).log_softmax(-1)


def gigaam(ctc: Path, rnnt: Path, chunk: Chunk) -> None:
    """Both forms of GigaAM v3 in float32, each in its folder, with the same encoder.

    The joint's bias for the blank is such that other tokens win in a tenth of the frames of `chunk`: there the RNNT
    writes three, the most that onnx-asr takes from one, so about 7.5 a second (of speech come 4 to 5 pieces of words,
    or 12 to 14 letters).
    """
    import torch
    from onnx_asr.preprocessors.numpy_preprocessor import GigaamPreprocessorNumpy
    from torch import nn
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    # The exporter wants the package `onnx` only to look for functions of onnxscript, of which there are none.
    onnx_proto_utils._add_onnxscript_fn = lambda model, _functions: model

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self, run: Any, **parts: Any) -> None:
            super().__init__()
            self.run, self.parts = run, nn.ModuleDict(parts)

        def forward(self, *inputs: Any) -> Any:
            return self.run(self.parts, *inputs)

    def export(network: Any, file: Path, inputs: Any, names: str, axes: Any) -> None:
        taken, given = (part.split() for part in names.split(" -> "))
        how = {"dynamic_axes": axes, "opset_version": 17, "dynamo": False}
        torch.onnx.export(network, inputs, str(file), input_names=taken, output_names=given, **how)

    def feed() -> Any:
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.SiLU(), nn.Linear(INNER, WIDTH))

    def layer() -> Any:
        gates = nn.Sequential(nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.GLU(1))
        depth = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        split = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH))
        norms = {"norm1": nn.LayerNorm(WIDTH), "act": nn.Sequential(nn.LayerNorm(WIDTH), nn.SiLU())}
        norms["norm3"] = nn.LayerNorm(WIDTH)
        parts = {"feed1": feed(), "feed2": feed(), "split": split, "join": nn.Linear(WIDTH, WIDTH), **norms}
        return nn.ModuleDict({**parts, "gates": gates, "depth": depth, "narrow": nn.Conv1d(WIDTH, WIDTH, 1)})

    torch.manual_seed(0)
    down = nn.ModuleList(nn.Conv1d(bands, WIDTH, 5, stride=2, padding=2) for bands in (MELS, WIDTH))
    encoder = Network(encode, down=down, layers=nn.ModuleList(layer() for _ in range(LAYERS)))
    head = nn.Conv1d(WIDTH, BLANK + 1, 1)
    whole = Network(classify, **encoder.parts, head=head)
    predictor = Network(predict, embedding=nn.Embedding(BLANK + 1, STATE), lstm=nn.LSTM(STATE, STATE, batch_first=True))
    out = nn.Linear(STATE, BLANK + 1)
    joint = Network(join, heard=nn.Linear(WIDTH, STATE), expected=nn.Linear(STATE, STATE), out=out)
    features = GigaamPreprocessorNumpy("gigaam_v3")(chunk.audio[None], np.array([len(chunk.audio)]))
    sound = tuple(torch.from_numpy(array) for array in features)
    start = (torch.tensor([[BLANK]]), torch.zeros(1, 1, STATE), torch.zeros(1, 1, STATE))
    for folder in (ctc, rnnt):
        folder.mkdir()
        for name in ("config.json", "v3_vocab.txt"):
            shutil.copy(TESTS / "models" / "gigaam-test" / name, folder)
    with torch.no_grad():
        scores = joint(encoder(*sound)[0], predictor(*start)[0].transpose(1, 2))[0, :, 0]
        out.bias[BLANK] += (scores[:, :BLANK].amax(1) - scores[:, BLANK]).quantile(0.9)
        two, items = (torch.zeros(2, MELS, 200), torch.tensor([200, 150])), {0: "batch"}
        axes = {"features": {0: "batch", 2: "frames"}, "feature_lengths": items, "log_probs": {0: "batch", 1: "t"}}
        export(whole, ctc / "v3_ctc.onnx", two, "features feature_lengths -> log_probs", axes)
        axes = {"audio_signal": {0: "batch", 2: "frames"}, "encoded": {0: "batch", 2: "t"}}
        axes |= {"length": items, "encoded_len": items}
        export(encoder, rnnt / "v3_rnnt_encoder.onnx", two, "audio_signal length -> encoded encoded_len", axes)
        export(predictor, rnnt / "v3_rnnt_decoder.onnx", start, "x h.1 c.1 -> dec h c", {})
        one = (torch.zeros(1, WIDTH, 1), torch.zeros(1, STATE, 1))
        export(joint, rnnt / "v3_rnnt_joint.onnx", one, "enc dec -> joint", {})


def build(folder: Path) -> None:
    """Make the models that are not in `folder` yet."""
    import shapes

    for name in ("base", "small"):
        if not (folder / name).exists():
            shapes.build(name, folder / name, tokens=TOKENS)
    if not (folder / "base.pt").exists():
        whisper_pt(folder / "base.pt")
    if not (folder / "gigaam-v3-rnnt").exists():
        gigaam(folder / "gigaam-v3-ctc", folder / "gigaam-v3-rnnt", cut(folder, (SECONDS,))[0])


def main(folder: Path) -> None:
    """Print both tables."""
    build(folder)
    columns = (
        "MB",
        "load",
        "factor",
        "CPU-s",
        "loading",
        "loaded",
        "trimmed",
        "reading",
        "read",
        "closed",
        "catalog",
        "by size",
    )
    print(f"{os.cpu_count()} cores".ljust(16) + "".join(f"{column:>9}" for column in columns) + "  letters")
    tried: list[tuple[str, float, float]] = []
    for name in MODELS:
        call = [sys.executable, __file__, str(folder), name]
        got = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE).stdout)
        tried += got["tried"]
        known = catalog.find(name)
        assert known is not None
        by_size = needed(ModelFiles(name, known.engine, folder / name, None, None)) / 1e6
        figures = [f"{got['load']:.1f}", *(f"{figure:.3f}" for figure in got["spent"])]
        figures += [f"{figure:.0f}" for figure in (*got["memory"], known.memory / 1e6, by_size)]
        weights = sum(files_of(folder / name).values()) / 1e6
        print(f"{name:<16}{weights:>9.0f}" + "".join(f"{figure:>9}" for figure in figures) + f"{got['letters']:>9}")
    for label, seconds, highest in tried:
        print(f"{label:<16}{seconds / tried[0][1]:>9.2f} of the time,{highest:>6.0f} MB at most")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[1]))))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(sys.argv[1] if sys.argv[1:] else temporary))
