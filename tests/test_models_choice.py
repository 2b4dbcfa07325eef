"""Which model `auto` takes: a table, and what is said where the best cannot be had."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stenograf.errors import ModelNotInstalledError
from stenograf.languages import LANGUAGES
from stenograf.models import catalog
from stenograf.models.choice import OWN_WHISPER, Candidate, Want, choose, tiers
from stenograf.options import Task

ALL = {
    entry.name: Candidate(entry.name, entry.name, frozenset(entry.languages), frozenset(entry.tasks), here=False)
    for entry in catalog.ENTRIES
}
TASKS: frozenset[Task] = frozenset({"transcribe", "translate"})


def had(*here: str, offline: bool = False) -> list[Candidate]:
    """The catalog, some of it on this machine."""
    away = "offline nothing is downloaded" if offline else ""
    return [replace(item, here=name in here, why_not="" if name in here else away) for name, item in ALL.items()]


@pytest.mark.parametrize(
    ("language", "want", "gpu", "cores", "expected"),
    [
        ("ru", "read", False, 2, "gigaam-v3-e2e-rnnt"),
        ("ru", "read", True, 8, "gigaam-v3-e2e-ctc"),
        ("en", "read", False, 2, "base"),
        ("en", "read", False, 8, "small"),
        ("de", "read", True, 8, "turbo"),
        ("kk", "read", False, 8, "gigaam-multilingual-large-ctc"),
        (None, "read", False, 2, "base"),
        (None, "read", True, 8, "turbo"),
        ("ru", "translate", False, 2, "large-v3"),
        ("ru", "translate", True, 8, "large-v3"),
        (None, "translate", True, 8, "large-v3"),
        (None, "detect", False, 2, "base"),
    ],
)
def test_the_best_of_all(language: str | None, want: Want, gpu: bool, cores: int, expected: str) -> None:
    choice = choose(had(), language=language, want=want, gpu=gpu, cores=cores)
    assert (choice.name, choice.second_best) == (expected, "")


@pytest.mark.parametrize(
    ("here", "language", "want", "expected", "better"),
    [
        (["gigaam-v3-ctc", "small"], "ru", "read", "gigaam-v3-ctc", "gigaam-v3-e2e-rnnt"),
        (["small"], "ru", "read", "small", "gigaam-v3-e2e-rnnt"),
        (["small", "large-v3"], "ru", "read", "large-v3", "gigaam-v3-e2e-rnnt"),
        (["tiny"], "en", "read", "tiny", "small"),
        (["turbo", "small"], "en", "translate", "small", "large-v3"),
        (["gigaam-v3-e2e-rnnt-int8"], "ru", "read", "gigaam-v3-e2e-rnnt-int8", ""),
        (["base"], "en", "read", "base", ""),
        (["gigaam-v3-e2e-ctc", "medium"], None, "read", "medium", "small"),
        (["gigaam-v3-e2e-ctc", "tiny"], None, "detect", "tiny", ""),
    ],
)
def test_offline_the_best_of_what_is_here(
    here: list[str], language: str | None, want: Want, expected: str, better: str
) -> None:
    choice = choose(had(*here, offline=True), language=language, want=want)
    assert choice.name == expected
    if better:
        told = f"The model {better} would do better, but offline nothing is downloaded."
        assert choice.second_best == told
    else:
        assert choice.second_best == ""


def test_what_is_here_goes_before_what_is_as_good() -> None:
    assert choose(had("base"), language="en", cores=8).name == "base"
    assert choose(had("small"), language="en", cores=2).name == "small"
    assert choose(had("turbo"), language="en", cores=8).name == "small"


@pytest.mark.parametrize(
    ("here", "language", "want"),
    [([], "ru", "read"), (["gigaam-v3-e2e-ctc"], "en", "read"), (["turbo"], "ru", "translate"),
     (["gigaam-v3-e2e-ctc"], None, "read"), (["small.en"], None, "detect")],
)  # fmt: skip
def test_nothing_that_suits(here: list[str], language: str | None, want: Want) -> None:
    with pytest.raises(ModelNotInstalledError) as caught:
        choose(had(*here, offline=True), language=language, want=want)
    assert "offline nothing is downloaded" in caught.value.hint


def test_models_of_ones_own() -> None:
    own = Candidate("ours", OWN_WHISPER, None, TASKS, here=True)
    tuned = replace(ALL["gigaam-v3-ctc"], name="tuned", here=True)
    offline = [*had(offline=True), own, tuned]
    assert choose(offline, language="ru").name == "tuned"
    assert choose(offline, language="en").name == "ours"
    assert choose(offline, language=None, want="detect").name == "ours"
    assert choose(offline, language="ru", want="translate").name == "ours"
    # The catalog's own goes first where both are of a kind.
    assert choose([tuned, *had("gigaam-v3-ctc", offline=True)], language="ru").name == "gigaam-v3-ctc"


@pytest.mark.parametrize("language", [None, *LANGUAGES])
@pytest.mark.parametrize("gpu", [False, True])
def test_every_language_is_read_by_a_model_that_knows_it(language: str | None, gpu: bool) -> None:
    name = choose(had(), language=language, gpu=gpu).name
    assert language is None or language in (ALL[name].languages or ())


@pytest.mark.parametrize("want", ["read", "translate", "detect"])
@pytest.mark.parametrize("language", ["ru", "en", "kk", None])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_table_names_models_that_there_are(want: Want, language: str | None, gpu: bool) -> None:
    kinds = {kind for tier in tiers(language, want, gpu=gpu, cores=4) for kind in tier}
    assert kinds <= {*ALL, OWN_WHISPER}
