"""Memory and time of each engine, with weights of the real shapes and random values: nothing is downloaded.

`make bench-engines`. Each model is used in a process of its own, whose memory is set up as a worker's. Shown are MB of
the files; seconds to load them from the system's cache; seconds, and seconds of all cores, for a second of speech in
chunks of 20 s; and resident memory in MB above what the process had before: the peak of loading, once loaded, after
what is free was given back to the system (`trimmed`), the peak of reading, and again trimmed after reading and after
closing; then what is counted for the model (`memory.needed`), by the catalog and by the size of the files. GigaAM's CTC
also reads chunks of the same length, and of several, in batches of 1, 2 and 4, and not filled up to whole seconds.

The texts are noise, as long as those of speech. GigaAM's shape is that of its configuration (16 conformer layers, width
768, 16 heads, kernels of 5, 64 mel bands, predictor and joint of 320), without the rotation of queries and keys.
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

from stenograf import allocation
from stenograf.audio import SAMPLE_RATE, AudioReader
from stenograf.chunk import Chunk
from stenograf.engines import engine, onnx_asr
from stenograf.models import catalog
from stenograf.models.found import ModelFiles
from stenograf.models.layout import files_of
from stenograf.models.memory import needed
from stenograf.options import Options

TESTS = Path(__file__).parent.parent / "tests"
SECONDS, TOKENS = 20, 80
"""Of a chunk; tokens are as many as Whisper's vocabulary needs for so much Russian."""
EVEN, UNEVEN = (6.0,) * 7, (8.3, 14.6, 5.1, 10.7, 2.4, 6.2, 3.5)
"""Seconds of the chunks that are put together; batches grow from 1, so that 7 chunks fill those of 4."""
WAYS = [(EVEN, 1, True), (EVEN, 2, True), (EVEN, 4, True)]
WAYS += [(UNEVEN, 1, True), (UNEVEN, 2, True), (UNEVEN, 4, True), (UNEVEN, 1, False)]
"""The chunks, how many together, and whether they are filled up to whole seconds."""
MB = 2**20 / 1e6  # `resident` and `peak` count in 2^20 bytes
MODELS = ("base", "small", "base.pt", "gigaam-v3-ctc", "gigaam-v3-rnnt")
WIDTH, HEADS, INNER, LAYERS, KERNEL, MELS, STATE, BLANK = 768, 16, 3072, 16, 5, 64, 320, 33


def cut(folder: Path, lengths: tuple[float, ...]) -> list[Chunk]:
    """Chunks of speech of so many seconds, one after the other."""
    path = folder / "recording.mkv"
    if not path.exists():
        lengthen(TESTS / "audio" / "ru-long.ogg", path, 4 * SECONDS + 1)
    with AudioReader(path) as reader:
        audio = np.concatenate(list(reader.blocks()))
    pieces = np.split(audio, np.rint(np.cumsum(lengths) * SAMPLE_RATE).astype(int))[:-1]
    return [Chunk(index, 0.0, piece, Options(language="ru")) for index, piece in enumerate(pieces)]


def measure(name: str, folder: Path) -> dict[str, Any]:
    """All figures of one model; to be run in a fresh process."""
    allocation.spare()
    first, *minute = cut(folder, (SECONDS,) * 4)
    before = resident()
    reset_peak()
    started = time.perf_counter()
    known = catalog.find(name)
    assert known
    loaded = engine(known.engine).load(folder / name, device="cpu", compute_type="auto", variant=known.onnx_type)
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
    tried = compare(loaded, folder, before) if name == "gigaam-v3-ctc" else []
    loaded.close()
    gc.collect()
    allocation.give_back()
    memory = [(figure - before) * MB for figure in (*memory, resident())]
    return {"load": seconds, "spent": spent, "letters": letters, "memory": memory, "tried": tried}


def compare(loaded: Any, folder: Path, before: float) -> list[list[float]]:
    """For each of `WAYS` the seconds, and those of all cores, of its quickest turn; and the peak so far, MB."""
    lengths, found = onnx_asr.LENGTHS["cpu"], [[float("inf"), float("inf"), 0.0] for _ in WAYS]
    reset_peak()
    for way, (seconds, batch, filled) in [*enumerate(WAYS)] * 2:
        onnx_asr.BATCH["cpu"], onnx_asr.LENGTHS["cpu"] = batch, lengths if filled else ()
        chunks, best = cut(folder, seconds), found[way]
        started, busy = time.perf_counter(), time.process_time()
        list(loaded.transcribe(chunks))
        best[0] = min(best[0], time.perf_counter() - started)
        best[1] = min(best[1], time.process_time() - busy)
        best[2] = best[2] or (peak() - before) * MB
    return found


def whisper_pt(target: Path) -> None:
    """A `.pt` file of the base shape that gives `TOKENS` tokens a window; the first dimension is left to their end."""
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
        tokens[:, 0], tokens[END_OF_TEXT, 0] = 0.0, 6.0
        # Another token at each place, and a sure one: else it would be tried again at higher temperatures.
        places.normal_(0, 30)
        places[:TOKENS, 0], places[TOKENS:, 0] = -60.0, 6000.0
    halves = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"dims": vars(dims), "model_state_dict": halves}, target)


def encode(parts: Any, features: Any, lengths: Any) -> tuple[Any, Any]:
    """Features, shape (batch, MELS, frames), to states, shape (batch, WIDTH, a quarter of the frames)."""
    import torch  # nowhere else than where models are made: it is not to count

    for down in parts["down"]:
        features, lengths = down(features).relu(), (lengths - 1) // 2 + 1
    hidden = features.transpose(1, 2)
    outside = (torch.arange(hidden.shape[1]) >= lengths[:, None])[:, None, None, :]
    for layer in parts["layers"]:
        hidden = conform(layer, hidden, outside)
    return hidden.transpose(1, 2), lengths.int()


def conform(layer: Any, hidden: Any, outside: Any) -> Any:
    """One conformer layer: half a feed-forward, attention, convolution, the other half."""
    hidden = hidden + 0.5 * layer["feed1"](hidden)
    shape = (*hidden.shape[:2], 3, HEADS, WIDTH // HEADS)
    query, key, value = layer["split"](hidden).view(shape).permute(2, 0, 3, 1, 4).unbind()
    weights = (query @ key.transpose(2, 3) / shape[-1] ** 0.5).masked_fill(outside, -10_000.0).softmax(-1)
    hidden = hidden + layer["join"]((weights @ value).transpose(1, 2).flatten(2))
    deep = layer["depth"](layer["gates"](layer["norm"](hidden).transpose(1, 2)))
    hidden = hidden + layer["narrow"](layer["bend"](deep.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
    return layer["last"](hidden + 0.5 * layer["feed2"](hidden))


def join(parts: Any, heard: Any, expected: Any) -> Any:
    """Log-probabilities of the tokens, for each frame with each state of the predictor."""
    heard, expected = parts["heard"](heard.transpose(1, 2)), parts["expected"](expected.transpose(1, 2))
    return parts["out"]((heard[:, :, None] + expected[:, None]).relu()).log_softmax(-1)


def gigaam(ctc: Path, rnnt: Path, chunk: Chunk) -> None:
    """Both forms of GigaAM v3 in float32, each in its folder, with the same encoder.

    The joint's bias for the blank is such that other tokens win in a tenth of the frames of `chunk`: there the RNNT
    writes three, the most that onnx-asr takes from one, about 7.5 a second.
    """
    import torch
    from onnx_asr.preprocessors.numpy_preprocessor import GigaamPreprocessorNumpy
    from torch import nn
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    # The exporter wants the package `onnx` only to look for functions of onnxscript, of which there are none.
    onnx_proto_utils._add_onnxscript_fn = lambda model, _functions: model

    def network(run: Any, **parts: Any) -> Any:
        made = nn.ModuleDict(parts)
        made.forward = lambda *inputs: run(made, *inputs)
        return made

    def export(module: Any, file: Path, inputs: Any, names: str, axes: Any = ()) -> None:
        taken, given = (part.split() for part in names.split(" -> "))
        how = {"dynamic_axes": dict(zip(taken + given, axes, strict=False)), "opset_version": 17, "dynamo": False}
        torch.onnx.export(module, inputs, str(file), input_names=taken, output_names=given, **how)

    def layer() -> Any:
        parts: dict[str, Any] = {}
        for name in ("feed1", "feed2"):
            widen, narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
            parts[name] = nn.Sequential(nn.LayerNorm(WIDTH), widen, nn.SiLU(), narrow)
        gates = nn.Sequential(nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.GLU(1))
        depth = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        split = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH))
        parts |= {"split": split, "join": nn.Linear(WIDTH, WIDTH)}
        parts |= {"norm": nn.LayerNorm(WIDTH), "gates": gates, "depth": depth, "last": nn.LayerNorm(WIDTH)}
        parts |= {"bend": nn.Sequential(nn.LayerNorm(WIDTH), nn.SiLU()), "narrow": nn.Conv1d(WIDTH, WIDTH, 1)}
        return nn.ModuleDict(parts)

    torch.manual_seed(0)
    down = nn.ModuleList(nn.Conv1d(bands, WIDTH, 5, stride=2, padding=2) for bands in (MELS, WIDTH))
    encoder = network(encode, down=down, layers=nn.ModuleList(layer() for _ in range(LAYERS)))
    head = nn.Sequential(nn.Linear(WIDTH, BLANK + 1), nn.LogSoftmax(-1))
    whole = network(lambda parts, *wave: head(encode(parts, *wave)[0].transpose(1, 2)), **encoder, head=head)
    embed, lstm = nn.Embedding(BLANK + 1, STATE), nn.LSTM(STATE, STATE, batch_first=True)
    predictor = network(lambda _, token, *states: lstm(embed(token), states), embed=embed, lstm=lstm)
    out = nn.Linear(STATE, BLANK + 1)
    joint = network(join, heard=nn.Linear(WIDTH, STATE), expected=nn.Linear(STATE, STATE), out=out)
    sound = GigaamPreprocessorNumpy("gigaam_v3")(chunk.audio[None], np.array([len(chunk.audio)]))
    start = (torch.tensor([[BLANK]]), torch.zeros(1, 1, STATE), torch.zeros(1, 1, STATE))
    for folder in (ctc, rnnt):
        folder.mkdir()
        for name in ("config.json", "v3_vocab.txt"):
            shutil.copy(TESTS / "models" / "gigaam-test" / name, folder)
    with torch.no_grad():
        joint["expected"].weight *= 0.01  # or what was written would change how much is
        out.bias[0] -= 100.0  # no spaces: letters can be counted
        scores = joint(encoder(*map(torch.from_numpy, sound))[0], predictor(*start)[0].transpose(1, 2))[0, :, 0]
        out.bias[BLANK] += (scores[:, :BLANK].amax(1) - scores[:, BLANK]).quantile(0.9)
        two = (torch.zeros(2, MELS, 200), torch.tensor([200, 150]))
        items, waves = {0: "batch"}, {0: "batch", 2: "frames"}
        axes = [waves, items, {0: "batch", 1: "states"}]
        export(whole, ctc / "v3_ctc.onnx", two, "features feature_lengths -> log_probs", axes)
        axes = [waves, items, {0: "batch", 2: "states"}, items]
        export(encoder, rnnt / "v3_rnnt_encoder.onnx", two, "audio_signal length -> encoded encoded_len", axes)
        export(predictor, rnnt / "v3_rnnt_decoder.onnx", start, "x h.1 c.1 -> dec h c")
        one = (torch.zeros(1, WIDTH, 1), torch.zeros(1, STATE, 1))
        export(joint, rnnt / "v3_rnnt_joint.onnx", one, "enc dec -> joint")


def main(folder: Path) -> None:
    """Print both tables."""
    from shapes import build

    for name in ("base", "small"):
        build(name, folder / name, tokens=TOKENS)
    whisper_pt(folder / "base.pt")
    gigaam(folder / "gigaam-v3-ctc", folder / "gigaam-v3-rnnt", cut(folder, (SECONDS,))[0])
    columns = ["MB", "load", "seconds", "CPU-s", "loading", "loaded", "trimmed", "reading", "read", "closed"]
    columns += ["catalog", "by size"]
    print(f"{os.cpu_count()} cores".ljust(16) + "".join(f"{column:>9}" for column in [*columns, "letters"]))
    tried: list[list[float]] = []
    for name in MODELS:
        call = [sys.executable, __file__, name, str(folder)]
        got = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE).stdout)
        tried += got["tried"]
        known = catalog.find(name)
        assert known
        by_size = needed(ModelFiles(name, known.engine, folder / name, None, None)) / 1e6
        figures = [f"{got['load']:.1f}", *(f"{figure:.3f}" for figure in got["spent"])]
        figures += [f"{figure:.0f}" for figure in (*got["memory"], known.memory / 1e6, by_size)]
        figures.insert(0, f"{sum(files_of(folder / name).values()) / 1e6:.0f}")
        print(f"{name:<16}" + "".join(f"{figure:>9}" for figure in [*figures, got["letters"]]))
    for (seconds, batch, filled), (spent, busy, highest) in zip(WAYS, tried, strict=True):
        one = tried[0] if seconds is EVEN else tried[WAYS.index((UNEVEN, 1, True))]
        label = f"{'even' if seconds is EVEN else 'uneven'}, batches of {batch}{'' if filled else ', bare'}"
        print(f"{label:<28}{spent / one[0]:>6.2f} of the time{busy / one[1]:>6.2f} of the work{highest:>6.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
