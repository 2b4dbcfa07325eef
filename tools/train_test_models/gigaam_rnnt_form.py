"""A transducer (RNNT) in the form of GigaAM v3 as onnx-asr reads it: `v3_rnnt_encoder.onnx`,
`v3_rnnt_decoder.onnx`, `v3_rnnt_joint.onnx`, `v3_vocab.txt`, `config.json`.

It begins with the encoder of the CTC model (`gigaam_form.py`). First the predictor and the joint learn on the
encoder as it is, then all three together.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import speech
import torch
from gigaam_form import BLANK, MELS, WIDTH, Encoder, batch, describe
from onnx_asr.preprocessors.numpy_preprocessor import GigaamPreprocessorNumpy
from torch import nn
from torch.nn import functional
from windows import WindowMaker

STATE = 320  # onnx-asr starts the predictor with states of this width
EMBEDDED, JOINED = 32, 64
IMPOSSIBLE = -1e30  # a log-probability; an infinite one would make the gradients NaN
SWAPPED = 0.25  # share of the letters that the predictor is told wrong, so that it trusts the sound more than itself


class RnntEncoder(Encoder):
    def forward(self, audio_signal: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, lengths = self.encode(audio_signal, length)
        return hidden, lengths.to(torch.int32)


class Predictor(nn.Module):
    """What comes next, judged by the letters so far; the blank stands for the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BLANK + 1, EMBEDDED)
        self.lstm = nn.LSTM(EMBEDDED, STATE, batch_first=True)
        self.drop = nn.Dropout(0.2)

    def forward(
        self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        output, (hidden, cell) = self.lstm(self.drop(self.embedding(x)), (hidden, cell))
        return self.drop(output), hidden, cell


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heard = nn.Linear(WIDTH, JOINED)
        self.expected = nn.Linear(STATE, JOINED)
        self.out = nn.Linear(JOINED, BLANK + 1)

    def forward(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """[items, WIDTH, positions] and [items, STATE, letters] to log-probabilities of each with each."""
        heard, expected = self.heard(enc.transpose(1, 2)), self.expected(dec.transpose(1, 2))
        return functional.log_softmax(self.out(functional.relu(heard[:, :, None] + expected[:, None])), dim=-1)


class Rnnt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor, self.joint = RnntEncoder(), Predictor(), Joint()


def transducer_loss(
    log_probs: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor, letters: torch.Tensor
) -> torch.Tensor:
    """-log of the probability of all ways to write each target, one number an item.

    `log_probs` are [items, T, U + 1, tokens], `targets` [items, U]. A way is a path over the grid of T positions and
    U letters: a blank goes one position on, a letter one letter on, and a blank at the last position ends it. All
    points with the same sum of position and letter are computed at once.
    """
    items, most, columns, _ = log_probs.shape
    blank = log_probs[..., BLANK]
    letter = log_probs[:, :, :-1].gather(3, targets[:, None, :, None].expand(-1, most, -1, 1))[..., 0]
    letter = functional.pad(letter, (0, 1), value=IMPOSSIBLE)
    # Row n of these holds the points (position n - u, letter u).
    diagonal = torch.arange(most + columns - 1)[:, None] - torch.arange(columns)[None, :]
    outside = (diagonal < 0) | (diagonal >= most)
    index = diagonal.clamp(0, most - 1)[None].expand(items, -1, -1)
    blank = blank.gather(1, index).masked_fill(outside, IMPOSSIBLE)
    letter = letter.gather(1, index).masked_fill(outside, IMPOSSIBLE)
    row = torch.full((items, columns), IMPOSSIBLE)
    row[:, 0] = 0.0
    rows = [row]
    for n in range(most + columns - 2):
        written = functional.pad((row + letter[:, n])[:, :-1], (1, 0), value=IMPOSSIBLE)
        row = torch.logaddexp(row + blank[:, n], written)
        rows.append(row)
    item, last = torch.arange(items), positions + letters - 1
    return -(torch.stack(rows, 1)[item, last, letters] + blank[item, last, letters])


def item_losses(model: Rnnt, made: tuple[torch.Tensor, ...], frozen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Each item's loss, and its number of letters."""
    features, feature_lengths, joined_targets, letters = made
    with torch.set_grad_enabled(not frozen):
        encoded, positions = model.encoder(features, feature_lengths)
    targets = nn.utils.rnn.pad_sequence(list(joined_targets.split(letters.tolist())), batch_first=True)
    told = torch.where(torch.rand(targets.shape) < SWAPPED, torch.randint(0, BLANK, targets.shape), targets)
    start = torch.full((len(targets), 1), BLANK)
    state = torch.zeros(1, len(targets), STATE)
    predicted, _, _ = model.predictor(torch.cat([start, told], dim=1), state, state)
    log_probs = model.joint(encoded, predicted.transpose(1, 2))
    return transducer_loss(log_probs, targets, positions.long(), letters), letters


def train(arguments: argparse.Namespace) -> Rnnt:
    torch.manual_seed(arguments.seed)
    maker = WindowMaker(speech.load(arguments.work / "train_ru"), arguments.seed)
    preprocess = GigaamPreprocessorNumpy("gigaam_v3")
    model = Rnnt()
    if arguments.resume:
        model.load_state_dict(torch.load(arguments.resume, weights_only=True))
    else:
        ctc = torch.load(arguments.work / "gigaam.pt", weights_only=True)
        model.encoder.load_state_dict({name: value for name, value in ctc.items() if not name.startswith("out.")})
    optimizer = torch.optim.AdamW(
        [
            {"params": [*model.predictor.parameters(), *model.joint.parameters()], "share": 1.0},
            {"params": list(model.encoder.parameters()), "share": 0.2},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    # The encoder's batch norms keep the CTC's figures: batches are small when windows are long.
    model.train()
    model.encoder.eval()
    began = time.monotonic()
    for step in range(arguments.steps):
        done = max(step / arguments.steps, (time.monotonic() - began) / arguments.limit)
        if done >= 1:
            break
        frozen = done < arguments.frozen
        rate = arguments.rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        # As long as the product's chunks in some steps: the predictor must not lose its way there.
        seconds, size, most = (5.0, 20, 4) if done < 0.5 or step % 3 == 0 else (9.0, 10, 4)
        if done > 0.4 and step % 5 == 4:
            seconds, size, most = 20.0, 4, 9
        losses, letters = item_losses(model, batch(maker, size, seconds, preprocess, most), frozen)
        loss = losses.sum() / letters.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f} after {time.monotonic() - began:.0f} s", flush=True)
            torch.save(model.state_dict(), arguments.work / "gigaam_rnnt.pt")
    print(f"stopped before step {step}" if done >= 1 else "all steps done", flush=True)
    return model.eval()


def export(model: Rnnt, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    state = torch.zeros(1, 1, STATE)
    parts = [
        (
            "encoder",
            (torch.zeros(2, MELS, 200), torch.tensor([200, 150])),
            ["audio_signal", "length"],
            ["encoded", "encoded_len"],
            {
                "audio_signal": {0: "batch", 2: "frames"},
                "length": {0: "batch"},
                "encoded": {0: "batch", 2: "subsampled"},
                "encoded_len": {0: "batch"},
            },
        ),
        ("decoder", (torch.tensor([[BLANK]]), state, state), ["x", "h.1", "c.1"], ["dec", "h", "c"], {}),
        ("joint", (torch.zeros(1, WIDTH, 1), torch.zeros(1, STATE, 1)), ["enc", "dec"], ["joint"], {}),
    ]
    modules = {"encoder": model.encoder, "decoder": model.predictor, "joint": model.joint}
    for name, inputs, input_names, output_names, axes in parts:
        with torch.no_grad():  # the TorchScript exporter: the newer one needs onnxscript
            torch.onnx.export(
                modules[name],
                inputs,
                str(target / f"v3_rnnt_{name}.onnx"),
                input_names=input_names,
                output_names=output_names,
                dynamic_axes=axes,
                opset_version=17,
                dynamo=False,
            )
    describe(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with the corpus and gigaam.pt")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--resume", type=Path, help="weights to go on from, instead of the CTC's encoder")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--frozen", type=float, default=0.4, help="share of the time in which the encoder stays")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = train(arguments)
    torch.save(model.state_dict(), arguments.work / "gigaam_rnnt.pt")
    export(model, arguments.out)


if __name__ == "__main__":
    main()
