"""Whisper's multilingual vocabulary of 51,865 tokens, out of the tiktoken file inside the openai-whisper
package.
"""

from __future__ import annotations

import itertools
import json
from functools import lru_cache
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from whisper.tokenizer import get_encoding

if TYPE_CHECKING:
    from pathlib import Path

EOT, SOT, RU, EN = 50257, 50258, 50263, 50259
TRANSLATE, TRANSCRIBE, START_OF_PREV, NO_SPEECH, NO_TIMESTAMPS, TIMESTAMP_BEGIN = (
    50358,
    50359,
    50361,
    50362,
    50363,
    50364,
)
LANGUAGE_IDS = list(range(50259, 50358))
VOCABULARY_SIZE = 51_865


@lru_cache(maxsize=1)
def encoding():
    made = get_encoding("multilingual")
    special = made._special_tokens  # there is no public way to list them
    expected = {
        "<|endoftext|>": EOT,
        "<|startoftranscript|>": SOT,
        "<|ru|>": RU,
        "<|en|>": EN,
        "<|translate|>": TRANSLATE,
        "<|transcribe|>": TRANSCRIBE,
        "<|startofprev|>": START_OF_PREV,
        "<|nospeech|>": NO_SPEECH,
        "<|notimestamps|>": NO_TIMESTAMPS,
        "<|0.00|>": TIMESTAMP_BEGIN,
    }
    assert all(special[token] == number for token, number in expected.items())
    assert made.n_vocab == VOCABULARY_SIZE
    return made


@lru_cache(maxsize=100_000)
def encode(text: str) -> tuple[int, ...]:
    """As Whisper writes it: with a leading space."""
    return tuple(encoding().encode(" " + text.strip()))


@lru_cache(maxsize=1)
def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + number)
    return letters


def _written(token: bytes) -> str:
    return "".join(_byte_letters()[byte] for byte in token)


def vocabulary() -> list[str]:
    """All tokens in order, as a converted model lists them."""
    special = {number: token for token, number in encoding()._special_tokens.items()}
    ranks = {rank: token for token, rank in encoding()._mergeable_ranks.items()}
    return [special[i] if i in special else _written(ranks[i]) for i in range(VOCABULARY_SIZE)]


def _merges() -> list[tuple[str, str]]:
    """Tiktoken keeps only ranks: a token's halves are what its bytes merge to by the ranks below its own."""
    ranks = encoding()._mergeable_ranks
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((_written(parts[0]), _written(parts[1])))
    return merges


def tokenizer() -> Tokenizer:
    special = encoding()._special_tokens
    words = {token: number for number, token in enumerate(vocabulary()) if token not in special}
    made = Tokenizer(models.BPE(vocab=words, merges=_merges()))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = sorted(special, key=special.__getitem__)
    # The real file marks the timestamps as not special, so that decoding shows them.
    made.add_tokens([AddedToken(name, special=special[name] < TIMESTAMP_BEGIN, normalized=False) for name in names])
    assert all(made.token_to_id(name) == special[name] for name in names)
    return made


def save_tokenizer(folder: Path) -> None:
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)


def non_speech_tokens() -> list[int]:
    """What faster-whisper suppresses by default: music notes, brackets and the like."""
    from faster_whisper.tokenizer import Tokenizer as WhisperTokenizer

    return list(WhisperTokenizer(tokenizer(), True, task="transcribe", language="en").non_speech_tokens)


if __name__ == "__main__":
    check = tokenizer()
    for sample in (
        "Купил продукты на две с половиной тысячи.",
        "It's six o'clock, isn't it?",
        "Ёж 2.5 Straße ♪",
    ):
        assert check.encode(" " + sample).ids == list(encode(sample)), sample
        print(json.dumps([check.decode([token]) for token in encode(sample)], ensure_ascii=False))
