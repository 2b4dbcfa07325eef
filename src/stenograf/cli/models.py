"""`stenograf models`: what can be had, what is here."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from stenograf.cli.console import Reporter, new_table, print_table, size, table_width
from stenograf.errors import OptionInvalidError, StenografError
from stenograf.models import Installed, ModelStore, catalog
from stenograf.models.catalog import CatalogEntry
from stenograf.models.found import hashes
from stenograf.runtime import Runtime
from stenograf.setting_sources import load

COLUMNS = {"name": 0, "here": 0, "size": 0, "memory": 130, "languages": 0, "licence": 130, "what it is": 95}
"""Title -> how wide the terminal must be to show it without breaking every row."""


@click.group("models")
def command() -> None:
    """List, download and remove models."""


@command.command("list")
@click.option("--installed", is_flag=True, help="Only what is on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(installed: bool, as_json: bool) -> None:
    """List the models of the catalog, and what is on this machine."""
    store = _store()
    here = store.installed()
    if as_json:
        click.echo(json.dumps([_row(*row) for row in _rows(here, installed)], ensure_ascii=False, indent=2))
        return
    shown = [title for title, width in COLUMNS.items() if width <= table_width()]
    table = new_table(*shown, right=("size", "memory"))
    for entry, found in _rows(here, installed):
        cells = _cells(entry, found)
        table.add_row(*(cells[title] for title in shown))
    print_table(table)
    click.echo(f"\nModels folder: {store.models_dir}", err=True)
    click.echo("Download one with: stenograf models pull NAME", err=True)


@command.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-q", "--quiet", is_flag=True, help="Show errors only.")
def pull(names: tuple[str, ...], quiet: bool) -> int:
    """Download models, or verify those that are here; goes on where an earlier download broke off."""
    store = _store()
    reporter = Reporter(quiet=quiet, verbose=False)
    failed = 0
    for name in names:
        try:
            with reporter.pulling(name) as download:
                files = store.pull(name, download.update)
            doubt = "" if hashes(files.path) else " (it came another way: there are no hashes to verify it by)"
            reporter.say(f"{'·' if doubt else '✓'} {files.name}: {files.path}{doubt}")
        except StenografError as error:
            failed = max(failed, error.exit_code)
            reporter.fail(error)
    return failed


@command.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Remove models of your own too, which cannot be downloaded again.")
def remove(names: tuple[str, ...], force: bool) -> int:
    """Remove models from this machine."""
    store = _store()
    reporter = Reporter(quiet=False, verbose=False)
    failed = 0
    for name in names:
        try:
            if not force and catalog.find(name) is None:
                folder = store.path(name)  # raises where there is none
                raise OptionInvalidError(
                    f"The model {name} in {folder} is your own and cannot be downloaded again.",
                    "Remove it with --force.",
                )
            reporter.say(f"✓ removed {store.remove(name)}")
        except StenografError as error:
            failed = max(failed, error.exit_code)
            reporter.fail(error)
    return failed


@command.command("path")
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of a model on this machine."""
    click.echo(_store().path(name))


def _store() -> ModelStore:
    return Runtime(load().settings).store


def _rows(here: list[Installed], only_installed: bool) -> Iterable[tuple[CatalogEntry | None, Installed | None]]:
    by_name = {item.entry.name: item for item in here if item.entry is not None}
    for entry in catalog.ENTRIES:
        if entry.name in by_name or not only_installed:
            yield entry, by_name.get(entry.name)
    for item in here:
        if item.entry is None:
            yield None, item


def _cells(entry: CatalogEntry | None, found: Installed | None) -> dict[str, str]:
    cells = dict.fromkeys(COLUMNS, "")
    if entry is not None:
        few = len(entry.languages) <= 3
        cells |= {
            "name": entry.name,
            "size": size(entry.size),
            "memory": size(entry.memory),
            "languages": ", ".join(entry.languages) if few else f"{len(entry.languages)} languages",
            "licence": entry.licence,
            "what it is": entry.description,
        }
    if found is not None:
        cells |= {"here": "damaged" if found.problem else "yes", "size": size(found.bytes)}
        if entry is None:
            cells |= {"name": found.name, "what it is": f"your own, {found.engine}"}
        if found.problem:
            cells["what it is"] = found.problem
    return cells


def _row(entry: CatalogEntry | None, found: Installed | None) -> dict[str, object]:
    row: dict[str, object] = {"name": entry.name if entry else found.name if found else ""}
    if entry is not None:
        row |= {
            "engine": entry.engine,
            "aliases": list(entry.aliases),
            "download_bytes": entry.size,
            "memory_bytes": entry.memory,
            "languages": list(entry.languages),
            "tasks": list(entry.tasks),
            "licence": entry.licence,
            "description": entry.description,
        }
    row["installed"] = found is not None
    if found is not None:
        row |= {
            "engine": found.engine,
            "path": str(found.path),
            "bytes": found.bytes,
            "source": found.source,
            "problem": found.problem or None,
        }
    return row
