"""Where the values of settings come from: what the caller passes, the environment, `.env`, a TOML file.

`settings.py` tells the order, and what each setting is.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from stenograf.errors import SettingInvalidError
from stenograf.settings import CONFIG_VARIABLE, HOMELESS, PREFIX, Settings, user_folder, variable


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the value of a setting came from."""

    kind: str
    """`option`, `environment`, `.env`, `file` or `default`."""
    detail: str = ""
    """The variable's name or the file's path."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, with where each came from, and what was found beside them."""

    settings: Settings
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...] = ()


def load(
    environ: Mapping[str, str] | None = None,
    *,
    directory: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedSettings:
    """Read the settings. `overrides` win over all else, texts among them are parsed; None counts as not given.

    Raises `SettingInvalidError` for a value that makes no sense, naming where it stands, and for a file that cannot
    be read.
    """
    environ = os.environ if environ is None else environ
    directory = directory or Path.cwd()
    dotenv = _read_dotenv(directory / ".env")
    toml_path, toml = _read_toml(environ.get(CONFIG_VARIABLE) or dotenv.get(CONFIG_VARIABLE), directory)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    warnings = _unknown(environ, dotenv)
    if user_folder(platformdirs.user_data_dir) is None and not environ.get(variable("data_dir")):
        warnings.append(f"You have no home folder; data goes to {HOMELESS}. Set STENOGRAF_DATA_DIR to choose another.")
    for item in fields(Settings):
        origins[item.name] = Origin("default")
        for text, origin in _found(item, overrides or {}, environ, dotenv, toml, toml_path):
            try:
                values[item.name] = _parse(item, text, origin)
            except SettingInvalidError as error:
                if origin.detail not in item.metadata["old"]:
                    raise
                warnings.append(f"{error.message} It is passed over.")
                continue
            origins[item.name] = origin
            break
    return LoadedSettings(Settings(**values), origins, tuple(warnings))


def _found(
    item: Field[Any],
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    dotenv: Mapping[str, str],
    toml: Mapping[str, Any],
    toml_path: Path | None,
) -> Iterator[tuple[str, Origin]]:
    """The texts that were given for a setting, the strongest first."""
    if overrides.get(item.name) is not None:
        yield str(overrides[item.name]), Origin("option", "--" + item.name.replace("_", "-"))
    for kind, source in (("environment", environ), (".env", dotenv)):
        for name in (variable(item.name), *item.metadata["old"]):
            if source.get(name, "").strip():
                yield source[name].strip(), Origin(kind, name)
    if str(toml.get(item.name, "")).strip():
        yield str(toml[item.name]).strip(), Origin("file", str(toml_path))


def _parse(item: Field[Any], text: str, origin: Origin) -> Any:
    try:
        return item.metadata["parse"](text)
    except ValueError as error:
        shown = "a value that makes no sense" if item.metadata["secret"] else f"the value {text!r}"
        where = {
            "option": f"The option {origin.detail}",
            "environment": f"The setting {origin.detail}",
            "file": f"The setting {item.name} in {origin.detail}",
        }.get(origin.kind, f"The setting {origin.detail} in {origin.kind}")
        reason = str(error)
        unit = f", in {item.metadata['unit']}" if item.metadata["unit"] and "second" not in reason else ""
        hint = reason[0].upper() + reason[1:] + unit
        raise SettingInvalidError(f"{where} has {shown}.", f"{hint.rstrip('.')}.") from None


def _read_dotenv(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    try:
        if not path.is_file():
            return {}
        return {name: value or "" for name, value in dotenv_values(path, encoding="utf-8-sig").items()}
    except (OSError, UnicodeDecodeError) as error:
        hint = "Save it as UTF-8, or remove it." if isinstance(error, UnicodeDecodeError) else "Check its permissions."
        raise SettingInvalidError(f"{path} cannot be read ({error}).", hint) from error


def _read_toml(named: str | None, directory: Path) -> tuple[Path | None, dict[str, Any]]:
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingInvalidError(
                f"{CONFIG_VARIABLE} names {path}, which is no file.", "Create it or unset the variable."
            )
    else:
        folders = (directory / "stenograf.toml", user_folder(platformdirs.user_config_dir, "config.toml"))
        found = next((p for p in folders if p is not None and p.is_file()), None)
        if found is None:
            return None, {}
        path = found
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingInvalidError(f"{path} cannot be read ({error}).", "Write one `name = value` on a line.") from error
    known = [item.name for item in fields(Settings)]
    section = values.pop("stenograf", None)
    if isinstance(section, dict):
        values |= section  # under a heading of our own, as other programs want it
    for name, value in values.items():
        if name not in known:
            raise SettingInvalidError(
                f"{path} has {name!r}, which is no setting.",
                _nearest(name, known, "See stenograf config --help-settings."),
            )
        if isinstance(value, dict | list):
            raise SettingInvalidError(f"{path}: {name} holds a table or a list.", "Write a single value.")
    return path, values


def _unknown(environ: Mapping[str, str], dotenv: Mapping[str, str]) -> list[str]:
    known = [variable(item.name) for item in fields(Settings)] + [CONFIG_VARIABLE]
    found = sorted({n for n in (*environ, *dotenv) if n.startswith(PREFIX) and n not in known})
    return [f"{name} is no setting. {_nearest(name, known, 'See stenograf config --help-settings.')}" for name in found]


def _nearest(name: str, known: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else otherwise
