"""`stenograf` whose hints all go out twice, as a broker may deliver them: `python -m fleet.doubled serve`."""

from __future__ import annotations

from typing import Any

from stenograf.cli import main
from stenograf.jobs.hints import Hints

_once = Hints._send


def _twice(self: Hints, *arguments: Any) -> None:
    _once(self, *arguments)
    _once(self, *arguments)


if __name__ == "__main__":
    Hints._send = _twice  # type: ignore[method-assign,assignment]
    main()
