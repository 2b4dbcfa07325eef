"""`stenograf config`: each setting, its value, and where it came from."""

from __future__ import annotations

import json
import re

import click

from stenograf.cli.console import new_table, print_table
from stenograf.setting_sources import LoadedSettings, load
from stenograf.settings import documented, variable


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--help-settings", is_flag=True, help="Tell what each setting does.")
def command(as_json: bool, help_settings: bool) -> None:
    """Show every setting, its value and where it came from."""
    if help_settings:
        _explain()
        return
    loaded = load()
    if as_json:
        click.echo(json.dumps(_rows(loaded), ensure_ascii=False, indent=2))
        return
    table = new_table("setting", "value", "from")
    for row in _rows(loaded):
        value = "" if row["value"] is None else str(row["value"])
        table.add_row(str(row["variable"]), value, str(row["from"]))
    print_table(table)
    for warning in loaded.warnings:
        click.secho(f"! {warning}", fg="yellow", err=True)


def _explain() -> None:
    table = new_table("setting", "what it does", "earlier names")
    for item in documented():
        unit = f" ({item.metadata['unit']})" if item.metadata["unit"] else ""
        table.add_row(variable(item.name), item.metadata["help"] + unit, ", ".join(item.metadata["old"]))
    print_table(table)


def _without_secret(value: str) -> str:
    """An address without its password, up to the last @, as a password may hold others; of all else, that it is set."""
    address = re.fullmatch(r"([a-z0-9+]+://)(?:.*@)?([^@?/:]*(?::\d+)?(?:/[^@?:]*)?)", value, re.IGNORECASE)
    return f"{address[1]}{'...@' if '@' in value else ''}{address[2]}" if address else "(set)"


def _rows(loaded: LoadedSettings) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for item in documented():
        value = getattr(loaded.settings, item.name)
        if item.name == "models_dir":
            value = loaded.settings.models_path  # its default follows from data_dir
        if item.metadata["secret"] and value not in (None, ()):
            value = _without_secret(str(value))
        if isinstance(value, tuple):
            value = ", ".join(value)
        origin = loaded.origins[item.name]
        rows.append(
            {
                "setting": item.name,
                "variable": variable(item.name),
                "value": value if isinstance(value, bool | int | float | None) else str(value),
                "from": f"{origin.kind} {origin.detail}".strip(),
            }
        )
    return rows
