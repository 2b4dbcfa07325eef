"""A Whisper of the smallest size, trained on the grammar's speech and written in CTranslate2's form.

The window is 6 s: `preprocessor_config.json` says `chunk_length: 6`. faster-whisper pads every window's
*features* with 0.0 to 3000 frames all the same, so the encoder sees 1500 positions, of which 1200 are
padding. Here is the trick that makes training cheap: all positions after the window carry one and the same
position vector. They are then equal in every layer, and attending to 1200 equal keys is exactly attending
to one key with log(1200) added to its score. So training encodes 304 positions, and the exported model does
the same as in training on all 1500.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import grammar
import numpy as np
import speech
import torch
import whisper_tokens as tokens
from torch import nn
from torch.nn import functional
from whisper.audio import mel_filters
from windows import Window, WindowMaker

WIDTH, HEADS, INNER, MELS = 128, 4, 512, 80
WINDOW_SECONDS = 6
CONTENT = WINDOW_SECONDS * 50  # encoder positions of a full window
EDGE = 4  # padding positions that are computed one by one; the last of them stands for all that follow
ALL_POSITIONS, TEXT_POSITIONS = 1500, 448
GUIDED_HEADS = 2  # heads of the last decoder layer that learn the word times
BIAS = WIDTH - 1  # the dimension of the decoder's output that is always 1
UNUSED_SCORE = -40.0


class Vocabulary:
    """The rows of the embedding that are trained. Every other token shares one fixed row, `unknown`."""

    def __init__(self) -> None:
        # The training side alone: all words occur in it.
        texts = {text for s in grammar.sentences(40_000, 5, held_out=False) for text in (s.ru, s.en)}
        text_tokens = sorted({token for text in texts for token in tokens.encode(text)})
        controls = [tokens.EOT, tokens.SOT, tokens.EN, tokens.RU, tokens.TRANSLATE, tokens.TRANSCRIBE]
        controls += [tokens.START_OF_PREV, tokens.NO_SPEECH, tokens.NO_TIMESTAMPS]
        stamps = list(range(tokens.TIMESTAMP_BEGIN, tokens.TIMESTAMP_BEGIN + CONTENT + 1))
        self.ids = [*text_tokens, *controls, *stamps]
        self.text_count = len(text_tokens)
        self.row = {token: row for row, token in enumerate(self.ids)}
        self.unknown = len(self.ids)
        self.first_stamp = self.row[tokens.TIMESTAMP_BEGIN]

    def rows(self, ids: list[int]) -> list[int]:
        return [self.row.get(token, self.unknown) for token in ids]


def _sinusoids(length: int) -> torch.Tensor:
    scale = torch.exp(-math.log(10_000) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
    angle = torch.arange(length)[:, None] * scale[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.weights: torch.Tensor | None = None
        self.keep_weights = False

    def forward(self, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(y.shape[0], y.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(source)), split(self.v(source))
        if self.keep_weights:
            scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
            weights = functional.softmax(scores if bias is None else scores + bias, dim=-1)
            self.weights = weights
            mixed = weights @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(), nn.LayerNorm(WIDTH)
        self.crossed = crossed
        if crossed:
            self.cross, self.cross_norm = Attention(), nn.LayerNorm(WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(0.05)

    def forward(self, x, bias, source=None, source_bias=None):
        normed = self.attention_norm(x)
        x = x + self.drop(self.attention(normed, normed, bias))
        if self.crossed:
            x = x + self.drop(self.cross(self.cross_norm(x), source, source_bias))
        return x + self.drop(self.outer(functional.gelu(self.inner(self.norm(x)))))


class TinyWhisper(nn.Module):
    def __init__(self, vocabulary: Vocabulary, encoder_layers: int = 2, decoder_layers: int = 2) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        # The last row is the padding's.
        self.positions = nn.Parameter(torch.cat([_sinusoids(CONTENT), torch.zeros(1, WIDTH)]))
        self.encoder = nn.ModuleList([Layer(False) for _ in range(encoder_layers)])
        self.encoder_norm = nn.LayerNorm(WIDTH)
        self.embedding = nn.Parameter(torch.randn(len(vocabulary.ids), WIDTH) * 0.05)
        unknown = torch.zeros(1, WIDTH)
        unknown[0, BIAS] = UNUSED_SCORE
        self.register_buffer("unknown_row", unknown)
        self.text_positions = nn.Parameter(_sinusoids(TEXT_POSITIONS) * 0.1)
        self.decoder = nn.ModuleList([Layer(True) for _ in range(decoder_layers)])
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.decoder[-1].cross.keep_weights = True
        # Thrown away after training: it names the token that is spoken at each position of the encoder.
        self.frame_head = nn.Linear(WIDTH, vocabulary.text_count + 1)
        for layer in self.encoder:
            # Equal queries and keys make attention begin as "look at what is near and alike".
            layer.attention.k.weight.data.copy_(layer.attention.q.weight.data * 1.5)
            layer.attention.q.weight.data.mul_(1.5)

    def encode(self, features: torch.Tensor, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features end with 2 * EDGE frames of padding, which stand for `padding` positions of it."""
        x = functional.gelu(self.conv1(features))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        content = x.shape[1] - EDGE
        x = x + torch.cat([self.positions[:content], self.positions[-1:].expand(EDGE, -1)])
        bias = torch.zeros(1, 1, 1, x.shape[1])
        bias[..., -1] = math.log(max(1, padding - EDGE + 1))
        wide = bias.expand(1, 1, x.shape[1], x.shape[1])
        for layer in self.encoder:
            x = layer(x, wide)
        return self.encoder_norm(x), bias

    def decode(self, rows: torch.Tensor, encoded: torch.Tensor, source_bias: torch.Tensor) -> torch.Tensor:
        table = torch.cat([self.embedding, self.unknown_row])
        length = rows.shape[1]
        x = functional.embedding(rows, table) + self.text_positions[:length]
        causal = torch.full((length, length), float("-inf")).triu(1)[None, None]
        for layer in self.decoder:
            x = layer(x, causal, encoded, source_bias.expand(1, 1, length, encoded.shape[1]))
        return functional.layer_norm(x, (WIDTH,), *self.final_norm())

    def final_norm(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One dimension always says 1, which turns the embedding's last column into a bias for each token."""
        free = torch.ones(WIDTH)
        free[BIAS] = 0
        return self.decoder_norm.weight * free, self.decoder_norm.bias * free + (1 - free)


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
        self._makers = {
            code: WindowMaker(part, seed + i) for i, (code, part) in enumerate(sorted(clips.items()))
        }
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
        """Earlier sentences, and in some prompts tokens it knows nothing of, which it must learn to pass over."""
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


def losses(
    model: TinyWhisper, features: torch.Tensor, examples: list[Example], padding: int, rng: random.Random
):
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
    plain = [
        p for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name or "positions" in name
    ]
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


def _linear(spec, *layers: nn.Linear) -> None:
    """Several layers are fused into one, as CTranslate2 wants queries, keys and values."""
    spec.weight = np.concatenate([layer.weight.detach().numpy() for layer in layers])
    biases = [
        np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias for layer in layers
    ]
    spec.bias = np.concatenate(
        [np.asarray(b if isinstance(b, np.ndarray) else b.detach().numpy()) for b in biases]
    )


def _norm(spec, weight: torch.Tensor, bias: torch.Tensor) -> None:
    spec.gamma, spec.beta = weight.detach().numpy().copy(), bias.detach().numpy().copy()


def _layer(spec, layer: Layer) -> None:
    own = layer.attention
    _linear(spec.self_attention.linear[0], own.q, own.k, own.v)
    _linear(spec.self_attention.linear[1], own.out)
    _norm(spec.self_attention.layer_norm, layer.attention_norm.weight, layer.attention_norm.bias)
    if layer.crossed:
        _linear(spec.attention.linear[0], layer.cross.q)
        _linear(spec.attention.linear[1], layer.cross.k, layer.cross.v)
        _linear(spec.attention.linear[2], layer.cross.out)
        _norm(spec.attention.layer_norm, layer.cross_norm.weight, layer.cross_norm.bias)
    _linear(spec.ffn.linear_0, layer.inner)
    _linear(spec.ffn.linear_1, layer.outer)
    _norm(spec.ffn.layer_norm, layer.norm.weight, layer.norm.bias)


def export(model: TinyWhisper, folder: Path) -> None:
    from ctranslate2.specs import WhisperSpec

    folder.mkdir(parents=True, exist_ok=True)
    spec = WhisperSpec(len(model.encoder), HEADS, len(model.decoder), HEADS)
    for target, conv in ((spec.encoder.conv1, model.conv1), (spec.encoder.conv2, model.conv2)):
        target.weight, target.bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    positions = model.positions.detach()
    padded = torch.cat([positions[:-1], positions[-1:].expand(ALL_POSITIONS - CONTENT, -1)])
    spec.encoder.position_encodings.encodings = padded.numpy().copy()
    _norm(spec.encoder.layer_norm, model.encoder_norm.weight, model.encoder_norm.bias)
    for target, layer in zip(spec.encoder.layer, model.encoder, strict=True):
        _layer(target, layer)
    table = np.zeros((tokens.VOCABULARY_SIZE, WIDTH), np.float32)
    table[:, BIAS] = UNUSED_SCORE
    table[model.vocabulary.ids] = model.embedding.detach().numpy()
    spec.decoder.embeddings.weight = table
    spec.decoder.projection.weight = table
    spec.decoder.position_encodings.encodings = model.text_positions.detach().numpy().copy()
    _norm(spec.decoder.layer_norm, *model.final_norm())
    for target, layer in zip(spec.decoder.layer, model.decoder, strict=True):
        _layer(target, layer)
    spec.register_vocabulary(tokens.vocabulary())
    controls = [
        tokens.SOT,
        tokens.TRANSLATE,
        tokens.TRANSCRIBE,
        50360,
        tokens.START_OF_PREV,
        tokens.NO_SPEECH,
    ]
    spec.config.suppress_ids = sorted({*tokens.non_speech_tokens(), *controls})
    spec.config.suppress_ids_begin = [220, tokens.EOT]
    spec.config.lang_ids = tokens.LANGUAGE_IDS
    spec.config.alignment_heads = [(len(model.decoder) - 1, head) for head in range(GUIDED_HEADS)]
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))
    tokens.save_tokenizer(folder)
    preprocessor = {
        "chunk_length": WINDOW_SECONDS,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": MELS,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": WINDOW_SECONDS * 16_000,
        "nb_max_frames": WINDOW_SECONDS * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "sampling_rate": 16_000,
    }
    (folder / "preprocessor_config.json").write_text(
        json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument(
        "--work", type=Path, required=True, help="folder with the corpus; the weights go there too"
    )
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
