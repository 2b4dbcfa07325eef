"""Whisper models of the real shapes with random weights, in CTranslate2 form: for measuring speed without a download.

The text they give is noise. Tokenizer and vocabulary are those of the small test model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from ctranslate2.specs import WhisperSpec
from ctranslate2.specs.model_spec import LayerSpec

TEST_MODEL = Path(__file__).parent.parent / "tests" / "models" / "whisper-test"

SHAPES = {
    "tiny": (384, 6, 4, 4),
    "base": (512, 8, 6, 6),
    "small": (768, 12, 12, 12),
    "turbo": (1280, 20, 32, 4),
}
"""Name -> width, heads, encoder layers, decoder layers (OpenAI's model card). All with 80 mel bands here."""

VOCABULARY = 51_865


END_OF_TEXT, FIRST_TIMESTAMP = 50_257, 50_364


def build(name: str, folder: Path, quantization: str = "int8", *, tokens: int | None = None) -> Path:
    """Write a model of the shape `name` into `folder`.

    Random weights never end a text: they write until the window is full, and hop about between timestamps. With
    `tokens` each window is read once and gives about so many tokens, as a trained model's would: the positions from
    there on speak for the end of the text.
    """
    width, heads, encoder_layers, decoder_layers = SHAPES[name]
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float32)

    def linear(layer: LayerSpec, rows: int, columns: int) -> None:
        layer.weight, layer.bias = matrix(rows, columns), np.zeros(rows, np.float32)

    def norm(layer: LayerSpec) -> None:
        layer.gamma, layer.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    def attention(layer: LayerSpec, *, crossed: bool) -> None:
        norm(layer.layer_norm)
        linear(layer.linear[0], width if crossed else 3 * width, width)
        if crossed:
            linear(layer.linear[1], 2 * width, width)
        linear(layer.linear[-1], width, width)

    def feed_forward(layer: LayerSpec) -> None:
        norm(layer.layer_norm)
        linear(layer.linear_0, 4 * width, width)
        linear(layer.linear_1, width, 4 * width)

    spec = WhisperSpec(encoder_layers, heads, decoder_layers, heads)
    encoder, decoder = spec.encoder, spec.decoder
    for conv, channels in ((encoder.conv1, 80), (encoder.conv2, width)):
        conv.weight = (random.standard_normal((width, channels, 3)) * 0.02).astype(np.float32)
        conv.bias = np.zeros(width, np.float32)
    encoder.position_encodings.encodings = matrix(1500, width)
    decoder.position_encodings.encodings = matrix(448, width)
    decoder.embeddings.weight = matrix(VOCABULARY, width)
    decoder.projection.weight = decoder.embeddings.weight
    decoder.scale_embeddings = False
    if tokens is not None:
        towards_end = np.zeros(width, np.float32)
        towards_end[0] = 1.0
        # Sure of itself, and of another token at each place: else it would be tried again at higher temperatures.
        decoder.position_encodings.encodings[:tokens, 1:] += random.standard_normal((tokens, width - 1), np.float32)
        decoder.position_encodings.encodings[tokens:] += 40 * towards_end
        decoder.projection.weight = decoder.embeddings.weight * 40
        decoder.projection.weight[END_OF_TEXT] = 8 * towards_end
        decoder.projection.bias = np.zeros(VOCABULARY, np.float32)
        decoder.projection.bias[FIRST_TIMESTAMP:] = -100.0
        decoder.projection.bias[END_OF_TEXT] = -40.0  # more than the chance direction of a state can outweigh
    norm(encoder.layer_norm)
    norm(decoder.layer_norm)
    for layer in encoder.layer:
        attention(layer.self_attention, crossed=False)
        feed_forward(layer.ffn)
    for layer in decoder.layer:
        attention(layer.self_attention, crossed=False)
        attention(layer.attention, crossed=True)
        feed_forward(layer.ffn)
    config = json.loads((TEST_MODEL / "config.json").read_text())
    spec.config.suppress_ids = config["suppress_ids"]
    spec.config.suppress_ids_begin = config["suppress_ids_begin"]
    spec.config.lang_ids = config["lang_ids"]
    spec.config.alignment_heads = [[decoder_layers - 1, 0]]
    tokens = json.loads((TEST_MODEL / "vocabulary.json").read_text("utf-8"))
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    shutil.copy(TEST_MODEL / "tokenizer.json", folder)
    return folder
