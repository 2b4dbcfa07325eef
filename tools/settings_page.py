"""Writes docs/settings.md from `stenograf.settings`, where each setting is told once."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path

from stenograf.settings import documented, variable

HEAD = """# Settings

This page is made from `src/stenograf/settings.py` by `make settings`.

A value is looked for, from the strongest to the weakest, in

1. an option of the command (`--device cpu`),
2. the environment,
3. a `.env` file in the working directory (spaces around `=` are welcome),
4. a TOML file: the one that `STENOGRAF_CONFIG` names, else `stenograf.toml` in the working directory, else
   `config.toml` in your configuration folder (`~/.config/stenograf` on Linux),
5. the default.

An empty value counts as none. A value under an earlier name that makes no sense is passed over with a warning, since
other programs use some of these names too.

In the TOML file the names are those of the variables in small letters, without the prefix: `default_model = "turbo"`.
`stenograf config` shows each value and where it came from. The hub's proxy is the one that `HTTPS_PROXY` names.

| variable | default | what it does | earlier names |
|---|---|---|---|
"""


def default(value: object) -> str:
    """How the table shows a default."""
    if value is MISSING:
        return "your data folder (`~/.local/share/stenograf` on Linux)"
    if value is None or value == ():
        return ""
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """The page."""
    rows = []
    for item in documented():
        unit = f" Unit: {item.metadata['unit']}." if item.metadata["unit"] else ""
        old = ", ".join(f"`{name}`" for name in item.metadata["old"])
        rows.append(f"| `{variable(item.name)}` | {default(item.default)} | {item.metadata['help']}{unit} | {old} |\n")
    return HEAD + "".join(rows)


def main() -> None:
    """Write the page."""
    (Path(__file__).parent.parent / "docs" / "settings.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
