"""The Whisper form of the test model as a checkpoint of openai-whisper, `whisper.load_model("twin.pt")`.

    python whisper_twin.py ../../tests/models/whisper-test twin.pt

Reads CTranslate2's `model.bin` itself, so it needs numpy and torch alone, and takes less than a second. The weights are
the 8-bit ones times their scales, stored as float16: what openai-whisper computes differs in roundings only. The
file names no alignment heads (openai-whisper knows them by the names of its own models); they stand in the
`config.json` of the folder: see `alignment_heads`.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

BINARY_VERSION = 6
# In the order of CTranslate2's enum; bfloat16, the sixth, is never written here.
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


class _Reader:
    """CTranslate2's `model.bin`: little-endian numbers, and strings with their length before and a zero after."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return int(value)

    def string(self) -> str:
        return self.bytes(self.number("H")).rstrip(b"\0").decode("utf-8")

    def bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]


def read_model(path: Path) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model by name, as they are stored; aliases name the same array.

    Raises `ValueError` for a binary version other than 6.
    """
    reader = _Reader(path.read_bytes())
    if (version := reader.number("I")) != BINARY_VERSION:
        raise ValueError(f"{path} has the binary version {version}, not {BINARY_VERSION}")
    reader.string()  # the specification's name, WhisperSpec
    reader.number("I")  # its revision
    found = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        dtype = DTYPES[reader.number("B")]
        found[name] = np.frombuffer(reader.bytes(reader.number("I")), dtype).reshape(shape)
    for _ in range(reader.number("I")):
        alias = reader.string()
        found[alias] = found[reader.string()]
    return found


def alignment_heads(model_dir: Path, layers: int, heads: int) -> torch.Tensor:
    """The heads that follow the words, in the form of openai-whisper's buffer `alignment_heads`.

    To be put in after loading: `model.register_buffer("alignment_heads", ..., persistent=False)`.
    """
    mask = torch.zeros(layers, heads, dtype=torch.bool)
    for layer, head in json.loads((model_dir / "config.json").read_text("utf-8"))["alignment_heads"]:
        mask[layer, head] = True
    return mask.to_sparse()


class _Weights:
    """The stored variables as float32 tensors, with the scales of 8-bit ones worked in."""

    def __init__(self, stored: dict[str, np.ndarray]) -> None:
        self.stored = stored

    def tensor(self, name: str) -> torch.Tensor:
        value = self.stored[name].astype(np.float32)
        if self.stored[name].dtype == np.int8:
            scale = self.stored[f"{name}_scale"]
            value /= scale.reshape(-1, *[1] * (value.ndim - 1))
        return torch.from_numpy(value)

    def layers(self, part: str) -> int:
        """How many layers `encoder` or `decoder` has."""
        return sum(name.startswith(f"{part}/layer_") and name.endswith("/ffn/linear_0/bias") for name in self.stored)

    def pair(self, target: str, source: str, names: tuple[str, str] = ("weight", "bias")) -> dict[str, torch.Tensor]:
        weight, bias = (self.tensor(f"{source}/{name}") for name in names)
        return {f"{target}.weight": weight, f"{target}.bias": bias}

    def norm(self, target: str, source: str) -> dict[str, torch.Tensor]:
        return self.pair(target, source, ("gamma", "beta"))

    def attention(self, target: str, source: str, crossed: bool) -> dict[str, torch.Tensor]:
        """CTranslate2 stores queries, keys and values in one matrix, or keys and values where they come from the
        encoder.
        """
        groups = [("query",), ("key", "value")] if crossed else [("query", "key", "value")]
        found = {}
        for number, names in enumerate(groups):
            fused = self.pair("fused", f"{source}/linear_{number}")
            for kind, tensor in fused.items():
                for name, piece in zip(names, tensor.chunk(len(names)), strict=True):
                    found[kind.replace("fused", f"{target}.{name}")] = piece
        if found.pop(f"{target}.key.bias").any():
            raise ValueError(f"{source} has a bias for keys, which openai-whisper has no place for")
        return found | self.pair(f"{target}.out", f"{source}/linear_{len(groups)}")

    def layer(self, target: str, source: str, crossed: bool) -> dict[str, torch.Tensor]:
        found = self.attention(f"{target}.attn", f"{source}/self_attention", False)
        found |= self.norm(f"{target}.attn_ln", f"{source}/self_attention/layer_norm")
        if crossed:
            found |= self.attention(f"{target}.cross_attn", f"{source}/attention", True)
            found |= self.norm(f"{target}.cross_attn_ln", f"{source}/attention/layer_norm")
        found |= self.pair(f"{target}.mlp.0", f"{source}/ffn/linear_0")
        found |= self.pair(f"{target}.mlp.2", f"{source}/ffn/linear_1")
        return found | self.norm(f"{target}.mlp_ln", f"{source}/ffn/layer_norm")


def build(model_dir: Path, target: Path) -> None:
    """Write the checkpoint `target` from the CTranslate2 folder `model_dir`. Raises `ValueError` for other binaries.

    `target` appears whole or not at all, so several tests may build the same file at once.
    """
    weights = _Weights(read_model(model_dir / "model.bin"))
    stored = weights.stored
    mels = stored["encoder/conv1/weight"].shape[1]
    vocabulary, width = stored["decoder/embeddings/weight"].shape
    state = {"decoder.token_embedding.weight": weights.tensor("decoder/embeddings/weight")}
    state |= weights.pair("encoder.conv1", "encoder/conv1") | weights.pair("encoder.conv2", "encoder/conv2")
    state |= weights.norm("encoder.ln_post", "encoder/layer_norm") | weights.norm("decoder.ln", "decoder/layer_norm")
    for part in ("encoder", "decoder"):
        state[f"{part}.positional_embedding"] = weights.tensor(f"{part}/position_encodings/encodings")
        for layer in range(weights.layers(part)):
            state |= weights.layer(f"{part}.blocks.{layer}", f"{part}/layer_{layer}", part == "decoder")
    dims: dict[str, Any] = {"n_mels": mels, "n_vocab": vocabulary}
    for kind, part in (("audio", "encoder"), ("text", "decoder")):
        dims |= {
            f"n_{kind}_ctx": len(stored[f"{part}/position_encodings/encodings"]),
            f"n_{kind}_state": width,
            f"n_{kind}_head": int(stored[f"{part}/num_heads"]),
            f"n_{kind}_layer": weights.layers(part),
        }
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in state.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.part")
    torch.save({"dims": dims, "model_state_dict": halves}, unfinished)
    unfinished.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the CTranslate2 form")
    parser.add_argument("target", type=Path, help="the checkpoint to write")
    arguments = parser.parse_args()
    build(arguments.model, arguments.target)


if __name__ == "__main__":
    main()
