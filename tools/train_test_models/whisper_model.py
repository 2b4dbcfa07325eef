"""A Whisper of the smallest size: two layers of encoder and decoder, and the whole multilingual vocabulary.

The window is 6 s: `preprocessor_config.json` says `chunk_length: 6`. faster-whisper pads every window's
*features* with 0.0 to 3000 frames all the same, so the encoder sees 1500 positions, of which 1200 are
padding. Here is the trick that makes training cheap: all positions after the window carry one and the same
position vector. They are then equal in every layer, and attending to 1200 equal keys is exactly attending
to one key with log(1200) added to its score. So training encodes 304 positions, and the exported model does
the same as in training on all 1500.
"""

from __future__ import annotations

import math

import grammar
import torch
import whisper_tokens as tokens
from torch import nn
from torch.nn import functional

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
