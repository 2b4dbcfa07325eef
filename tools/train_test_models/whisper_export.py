"""Writes the trained weights in CTranslate2's form, with the files that faster-whisper wants beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
import whisper_tokens as tokens
from ctranslate2.specs import WhisperSpec
from whisper_model import (
    ALL_POSITIONS,
    BIAS,
    CONTENT,
    GUIDED_HEADS,
    HEADS,
    MELS,
    UNUSED_SCORE,
    WIDTH,
    WINDOW_SECONDS,
    Layer,
    TinyWhisper,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def _linear(spec, *layers: nn.Linear) -> None:
    """Several layers are fused into one, as CTranslate2 wants queries, keys and values."""
    spec.weight = np.concatenate([layer.weight.detach().numpy() for layer in layers])
    biases = [np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias for layer in layers]
    spec.bias = np.concatenate([np.asarray(b if isinstance(b, np.ndarray) else b.detach().numpy()) for b in biases])


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
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
