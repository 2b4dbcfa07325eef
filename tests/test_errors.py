"""One tree of errors, each with a code that is documented."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from stenograf import errors
from stenograf.errors import StenografError

ROOT = Path(__file__).parent.parent


def tree(top: type[StenografError]) -> list[type[StenografError]]:
    return [top, *(kind for child in top.__subclasses__() for kind in tree(child))]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in tree(StenografError)]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", [k for k in tree(StenografError) if not k.__subclasses__()])
def test_every_code_is_documented_and_drawn(kind: type[StenografError]) -> None:
    assert f"`{kind.code}`" in (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert kind.__doc__
    assert errors.__doc__ is not None
    line = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line)
    assert kind.code in line
    assert ("(retryable)" in line) == kind.retryable


def test_exit_codes() -> None:
    assert all(kind.exit_code == 2 for kind in tree(errors.UsageError))
    assert all(kind.exit_code == 1 for kind in tree(StenografError) if not issubclass(kind, errors.UsageError))


def test_an_error_goes_over_a_process_border_whole() -> None:
    error = errors.FileMissingError("a.ogg does not exist.", "Check the path.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.FileMissingError
    assert (again.message, again.hint) == (error.message, error.hint)
    assert str(again) == "a.ogg does not exist. Check the path."
