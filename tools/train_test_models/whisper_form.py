"""Trains the smallest Whisper on the grammar's speech, and exports it.

    python whisper_form.py train --work DIR
    python whisper_form.py export --work DIR --out MODEL_DIR

Windows are 6 s long and hold one to three sentences. Two things speed it up: a head on the encoder that names
the token spoken at each position (thrown away afterwards), and two heads of attention that are shown the word
times.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import speech
import torch
import whisper_tokens as tokens
from torch import nn
from torch.nn import functional
from whisper.audio import mel_filters
from whisper_export import export
from whisper_model import (
    ALL_POSITIONS,
    CONTENT,
    EDGE,
    GUIDED_HEADS,
    MELS,
    WINDOW_SECONDS,
    TinyWhisper,
    Vocabulary,
)
from windows import Window, WindowMaker

_FILTERS = mel_filters("cpu", MELS)
_HANN = torch.hann_window(400)


def features_of(windows: list[Window], positions: int) -> torch.Tensor:
    """faster-whisper's log-mel: clamped by each recording's own loudest point, then padded with 0.0."""
    longest = max(len(window.audio) for window in windows) + 160
    waves = torch.from_numpy(np.stack([np.pad(w.audio, (0, longest - len(w.audio))) for w in windows]))
    power = torch.stft(waves, 400, 160, window=_HANN, return_complex=True)[..., :-1].abs() ** 2
    mel = (_FILTERS @ power).clamp(min=1e-10).log10()
    out = torch.zeros(len(windows), MELS, 2 * (positions + EDGE))
    for index, window in enumerate(windows):
        frames = min(len(window.audio) // 160, 2 * positions)
        own = mel[index, :, : len(window.audio) // 160 + 1]
        out[index, :, :frames] = (torch.maximum(own, own.max() - 8.0)[:, :frames] + 4.0) / 4.0
    return out


@dataclass
class Example:
    """One training item, all in rows of the vocabulary; -1 where nothing is to be learnt."""

    inputs: list[int]
    targets: list[int]
    spans: list[tuple[int, int] | None]  # for each input: the encoder positions of the token it predicts
    frames: np.ndarray  # the token spoken at each encoder position


def _token_times(clip: speech.Clip, start: float) -> list[tuple[int, float, float]]:
    """Each token with its time; the time of a word goes to its tokens by their length in bytes."""
    found = []
    for begin, end, word in clip.words:
        ids = tokens.encode(word)
        sizes = [len(tokens.encoding().decode_single_token_bytes(token)) for token in ids]
        if word[-1] in ".?":
            sizes[-1] = 0.2  # punctuation has no sound
        edges = np.concatenate([[0], np.cumsum(sizes)]) / sum(sizes) * (end - begin) + begin + start
        edges = edges.clip(min=0)  # a window may begin inside the first sound
        found += [(token, float(a), float(b)) for token, a, b in zip(ids, edges, edges[1:], strict=False)]
    return found


class ExampleMaker:
    def __init__(self, vocabulary: Vocabulary, clips: dict[str, list[speech.Clip]], seed: int) -> None:
        self._vocabulary = vocabulary
        self._clips = clips
        self._makers = {code: WindowMaker(part, seed + i) for i, (code, part) in enumerate(sorted(clips.items()))}
        self._random = random.Random(seed)

    def window(self, seconds: float, most: int) -> tuple[str, Window]:
        language = self._random.choice(["ru", "en"])
        maker = self._makers[language]
        if self._random.random() < 0.04:
            return language, maker.silence(seconds)
        return language, maker.speech(seconds, most)

    def example(self, language: str, window: Window, positions: int, prompt_limit: int) -> Example:
        rng, rows = self._random, self._vocabulary.row
        translating = language == "ru" and rng.random() < 0.2
        stamped = rng.random() < 0.72
        inputs: list[int] = []
        if prompt_limit:
            inputs += [rows[tokens.START_OF_PREV], *self._prompt(language, prompt_limit)]
        targets: list[int] = [-1] * len(inputs)
        spans: list[tuple[int, int] | None] = [None] * len(inputs)
        code = rows[tokens.RU if language == "ru" else tokens.EN]
        inputs += [rows[tokens.SOT], code, rows[tokens.TRANSLATE if translating else tokens.TRANSCRIBE]]
        targets += [code if window.placed else rows[tokens.NO_SPEECH], -1]
        spans += [None, None]
        if not stamped:
            inputs.append(rows[tokens.NO_TIMESTAMPS])
            targets.append(-1)
            spans.append(None)
        said: list[tuple[int, tuple[int, int] | None]] = []
        frames = np.full(positions + EDGE, self._vocabulary.text_count)
        if stamped and not window.placed:
            said.append((rows[tokens.TIMESTAMP_BEGIN], None))
        for start, clip in window.placed:
            end = start + len(clip.audio) / speech.RATE
            timed = _token_times(clip, start)
            for token, begin, finish in timed:
                frames[int(begin * 50) : max(int(begin * 50) + 1, int(finish * 50))] = rows[token]
            if not timed:
                frames[max(0, int(start * 50)) : int(end * 50) + 1] = -100
            text = tokens.encode(clip.translation if translating else clip.text)
            known = [t for t, _, _ in timed] == list(text)
            if stamped:
                said.append((self._stamp(start), None))
            for index, token in enumerate(text):
                span = (int(timed[index][1] * 50), int(timed[index][2] * 50) + 1) if known else None
                said.append((rows[token], span))
            if stamped:
                said.append((self._stamp(end), None))
        said.append((rows[tokens.EOT], None))
        for row, span in said:
            targets.append(row)
            spans.append(span)
            inputs.append(row)
        inputs.pop()  # nothing follows the end
        return Example(inputs, targets, spans, frames)

    def _stamp(self, seconds: float) -> int:
        return self._vocabulary.first_stamp + min(CONTENT, max(0, round(seconds * 50)))

    def _prompt(self, language: str, limit: int) -> list[int]:
        """Earlier sentences, and tokens it knows nothing of, which it must learn to pass over."""
        rng = self._random
        found: list[int] = []
        if rng.random() < 0.7:
            for _ in range(rng.randint(1, max(1, limit // 12))):
                found += self._vocabulary.rows(list(tokens.encode(rng.choice(self._clips[language]).text)))
        if not found or rng.random() < 0.4:
            strange = [self._vocabulary.unknown] * rng.randint(1, max(1, limit // 3))
            place = rng.randint(0, len(found))
            found[place:place] = strange
        return found[-limit:]

    def batch(self, size: int, seconds: float, most: int, long_prompts: bool):
        positions = round(seconds * 50)
        made = [self.window(seconds, most) for _ in range(size)]
        examples = []
        for language, window in made:
            limit = 0
            if long_prompts:
                limit = self._random.randint(1, 223)
            elif self._random.random() < 0.15:
                limit = self._random.randint(2, 36)
            examples.append(self.example(language, window, positions, limit))
        return features_of([window for _, window in made], positions), examples


def losses(model: TinyWhisper, features: torch.Tensor, examples: list[Example], padding: int, rng: random.Random):
    """Tokens, frames, guided attention; and the share of tokens that are right."""
    vocabulary = model.vocabulary
    encoded, bias = model.encode(features, padding)
    length = max(len(example.inputs) for example in examples)
    inputs = torch.full((len(examples), length), vocabulary.row[tokens.EOT])
    targets = torch.full((len(examples), length), -1)
    for index, example in enumerate(examples):
        inputs[index, : len(example.inputs)] = torch.tensor(example.inputs)
        targets[index, : len(example.targets)] = torch.tensor(example.targets)
    hidden = model.decode(inputs, encoded, bias)
    learnt = targets >= 0
    wanted = targets[learnt]
    log_probs = functional.log_softmax(hidden[learnt] @ model.embedding.T, dim=-1)
    first = vocabulary.first_stamp
    stamped = wanted >= first
    text_loss = -log_probs[~stamped].gather(1, wanted[~stamped][:, None]).sum()
    # A timestamp that is 20 ms off is nearly right: the target is a bell of two ticks around it.
    ticks = torch.arange(CONTENT + 1)[None, :] - (wanted[stamped] - first)[:, None]
    bell = functional.softmax(-(ticks.float() ** 2) / (2 * 2.0**2), dim=-1)
    stamp_loss = -(bell * log_probs[stamped][:, first:]).sum()
    token_loss = (text_loss + 0.5 * stamp_loss) / learnt.sum()
    right = (log_probs[~stamped].argmax(-1) == wanted[~stamped]).float().mean()

    # Every third position is enough for the frame head, and three times as cheap.
    shift = rng.randrange(3)
    spoken = torch.from_numpy(np.stack([example.frames for example in examples]))[:, shift::3]
    frame_loss = functional.cross_entropy(
        model.frame_head(encoded[:, shift::3]).flatten(0, 1), spoken.flatten(), ignore_index=-100
    )

    weights = model.decoder[-1].cross.weights[:, :GUIDED_HEADS]
    inside = torch.zeros(len(examples), length, features.shape[2] // 2)
    guided = torch.zeros(len(examples), length, dtype=torch.bool)
    for index, example in enumerate(examples):
        for position, span in enumerate(example.spans):
            if span:
                inside[index, position, max(0, span[0] - 1) : span[1] + 1] = 1
                guided[index, position] = True
    mass = (weights * inside[:, None]).sum(-1).transpose(1, 2)[guided]
    guide_loss = -(mass + 1e-4).log().mean()
    return token_loss, frame_loss, guide_loss, right


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    clips = {code: speech.load(arguments.work / f"train_{code}") for code in ("ru", "en")}
    vocabulary = Vocabulary()
    model = TinyWhisper(vocabulary, arguments.encoder_layers)
    if arguments.resume:
        model.load_state_dict(torch.load(arguments.resume, weights_only=True))
    maker = ExampleMaker(vocabulary, clips, arguments.seed)
    plain = [p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name or "positions" in name]
    heavy = [p for name, p in model.named_parameters() if all(p is not q for q in plain)]
    groups = [{"params": heavy, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    began, step, saved = time.monotonic(), 0, 0.0
    averages: dict[str, float] = {}
    while True:
        seconds_gone = time.monotonic() - began
        done = seconds_gone / arguments.limit
        if done >= 1:
            break
        rate = 3e-5 + (arguments.rate - 3e-5) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100)
        early = done < 0.2 and not arguments.resume
        seconds, most = (4, 1) if early else (WINDOW_SECONDS, 3)
        long_prompts = not early and step % 25 == 0
        content = seconds * 50
        padding = ALL_POSITIONS - content
        if rng.random() < 0.2:  # some callers encode short windows without the padding
            padding = round(math.exp(rng.uniform(math.log(EDGE), math.log(ALL_POSITIONS - content))))
        size = arguments.batch // 2 if long_prompts else arguments.batch
        features, examples = maker.batch(size, seconds, most, long_prompts)
        token_loss, frame_loss, guide_loss, right = losses(model, features, examples, padding, rng)
        loss = token_loss + (1.0 - 0.7 * done) * frame_loss + 0.2 * guide_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values = {"token": token_loss, "frame": frame_loss, "guide": guide_loss, "right": right}
        for name, value in values.items():
            averages[name] = averages.get(name, value.item()) * 0.95 + value.item() * 0.05
        if step % 50 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in averages.items())
            print(f"step {step} {shown} rate {rate:.5f} after {seconds_gone:.0f} s", flush=True)
        if seconds_gone - saved > 120:
            saved = seconds_gone
            torch.save(model.state_dict(), arguments.work / f"{arguments.name}.pt")
        step += 1
    torch.save(model.state_dict(), arguments.work / f"{arguments.name}.pt")
    print(f"{step} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--work", type=Path, required=True, help="folder with the corpus; the weights go there too")
    parser.add_argument("--out", type=Path, help="folder of the finished model")
    parser.add_argument("--name", default="whisper", help="name of the weights in the work folder")
    parser.add_argument("--resume", type=Path, help="weights to go on from")
    parser.add_argument("--limit", type=float, default=1500, help="seconds of training")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--encoder-layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.command == "train":
        train(arguments)
        return
    model = TinyWhisper(Vocabulary(), arguments.encoder_layers)
    model.load_state_dict(torch.load(arguments.work / f"{arguments.name}.pt", weights_only=True))
    export(model.eval(), arguments.out)


if __name__ == "__main__":
    main()
