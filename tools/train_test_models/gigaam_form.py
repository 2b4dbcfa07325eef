"""A CTC model in the form of GigaAM v3 as onnx-asr reads it: `v3_ctc.onnx`, `v3_vocab.txt`, `config.json`.

Five blocks of convolution after a fourfold subsampling; no attention, so any length works, and nothing
leaks between the items of a batch because each block masks what lies after an item's end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import grammar
import numpy as np
import speech
import torch
from onnx_asr.preprocessors.numpy_preprocessor import GigaamPreprocessorNumpy
from torch import nn
from torch.nn import functional
from windows import WindowMaker

LETTERS = [chr(code) for code in range(ord("а"), ord("я") + 1)]
BLANK = 33
WIDTH, KERNEL, BLOCKS, MELS = 128, 9, 5, 64


def encode(text: str) -> list[int]:
    """Space is 0, а-я are 1-32."""
    return [0 if letter == " " else LETTERS.index(letter) + 1 for letter in " ".join(grammar.words(text))]


class Encoder(nn.Module):
    """Log-mel frames to one vector for each 40 ms. The CTC and the RNNT form share it."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv1d(MELS, WIDTH, 3, stride=2, padding=1)
        self.down2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm1d(WIDTH) for _ in range(BLOCKS + 2)])
        self.blocks = nn.ModuleList([nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2) for _ in range(BLOCKS)])
        self.drop = nn.Dropout(0.05)

    def encode(self, features: torch.Tensor, feature_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`features` are [items, MELS, frames]; gives [items, WIDTH, positions] and each item's positions."""
        # The log-mel goes from -20.7 (silence) to about 8: bring it near zero, and silence too.
        hidden = _masked((features + 6.0) / 5.0, feature_lengths)
        lengths = torch.div(feature_lengths - 1, 2, rounding_mode="floor") + 1
        hidden = _masked(functional.relu(self.norms[0](self.down1(hidden))), lengths)
        lengths = torch.div(lengths - 1, 2, rounding_mode="floor") + 1
        hidden = _masked(functional.relu(self.norms[1](self.down2(hidden))), lengths)
        for norm, block in zip(self.norms[2:], self.blocks, strict=True):
            hidden = _masked(hidden + self.drop(functional.relu(norm(block(hidden)))), lengths)
        return hidden, lengths


class Ctc(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv1d(WIDTH, BLANK + 1, 1)

    def forward(self, features: torch.Tensor, feature_lengths: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.encode(features, feature_lengths)
        return functional.log_softmax(self.out(hidden).transpose(1, 2), dim=-1)


def _masked(hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    inside = torch.arange(hidden.shape[2], device=hidden.device)[None, :] < lengths[:, None]
    return hidden * inside[:, None, :].to(hidden.dtype)


def batch(maker: WindowMaker, size: int, seconds: float, preprocess: GigaamPreprocessorNumpy, most: int = 4):
    """Features, their lengths, targets and target lengths; one window holds no speech, the others up to `most`
    sentences.
    """
    made = [maker.silence(seconds) if index == 0 else maker.speech(seconds, most) for index in range(size)]
    longest = max(len(window.audio) for window in made)
    waves = np.stack([np.pad(window.audio, (0, longest - len(window.audio))) for window in made])
    features, lengths = preprocess(waves, np.array([len(window.audio) for window in made]))
    targets = []
    for window in made:
        whole = [clip.text for start, clip in window.placed if start + len(clip.audio) / speech.RATE <= seconds]
        targets.append(encode(" ".join(whole)))
    return (
        torch.from_numpy(features),
        torch.from_numpy(lengths),
        torch.tensor([token for target in targets for token in target], dtype=torch.long),
        torch.tensor([len(target) for target in targets], dtype=torch.long),
    )


def train(arguments: argparse.Namespace) -> Ctc:
    torch.manual_seed(arguments.seed)
    steps, limit = arguments.steps, arguments.limit
    maker = WindowMaker(speech.load(arguments.work / "train_ru"), arguments.seed)
    preprocess = GigaamPreprocessorNumpy("gigaam_v3")
    model = Ctc()
    if arguments.resume:
        model.load_state_dict(torch.load(arguments.resume, weights_only=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    for step in range(steps):
        # The clock may cut training short on a busy machine; the learning rate still ends where it should.
        done = max(step / steps, (time.monotonic() - began) / limit)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = (
                arguments.rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            )
        features, lengths, targets, target_lengths = batch(
            maker, arguments.batch, 5.0 if done < 0.7 else 9.0, preprocess
        )
        log_probs = model(features, lengths)
        out_lengths = torch.div(lengths - 1, 4, rounding_mode="floor") + 1
        loss = functional.ctc_loss(
            log_probs.transpose(0, 1), targets, out_lengths, target_lengths, blank=BLANK, zero_infinity=True
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f} after {time.monotonic() - began:.0f} s", flush=True)
    return model.eval()


def export(model: Ctc, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():  # the TorchScript exporter: the newer one needs onnxscript
        torch.onnx.export(
            model,
            (torch.zeros(2, MELS, 200), torch.tensor([200, 150])),
            str(target / "v3_ctc.onnx"),
            input_names=["features", "feature_lengths"],
            output_names=["log_probs"],
            dynamic_axes={
                "features": {0: "batch", 2: "frames"},
                "feature_lengths": {0: "batch"},
                "log_probs": {0: "batch", 1: "subsampled"},
            },
            opset_version=17,
            dynamo=False,
        )
    describe(target)


def describe(target: Path) -> None:
    """The vocabulary and the configuration, which both forms share."""
    lines = ["▁ 0", *(f"{letter} {index + 1}" for index, letter in enumerate(LETTERS)), f"<blk> {BLANK}"]
    (target / "v3_vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"model_type": "gigaam", "version": "v3", "features_size": MELS, "subsampling_factor": 4}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with the corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--resume", type=Path, help="weights to go on from")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = train(arguments)
    torch.save(model.state_dict(), arguments.work / "gigaam.pt")
    export(model, arguments.out)


if __name__ == "__main__":
    main()
