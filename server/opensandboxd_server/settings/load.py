"""From a file and an environment to Settings, or to every problem at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opensandboxd_server.settings.explain import explain, home_of, suggest
from opensandboxd_server.settings.model import VARIABLES, Settings
from opensandboxd_server.settings.opensandbox import (
    FOREIGN_KEYS,
    FOREIGN_SECTIONS,
    FOREIGN_VARIABLES,
    Ignored,
    Refused,
    take_foreign,
)
from opensandboxd_server.settings.problems import Problem, SettingsError, did_you_mean, in_file

DEFAULT_PATH = "~/.sandbox.toml"
ENVIRONMENT = "environment"

PATH_VARIABLE = "SANDBOX_CONFIG_PATH"
INSECURE_VARIABLE = "OPENSANDBOX_INSECURE_SERVER"


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the configuration. `path` is --config; then SANDBOX_CONFIG_PATH, then ~/.sandbox.toml.

    Raises SettingsError with all that is wrong.
    """
    file = _expanded(path or Path(environ.get(PATH_VARIABLE) or DEFAULT_PATH))
    table = _without_unset(_read(file))
    problems = [*_refused_variables(environ)]
    ignored: list[str] = []
    for key, value in take_foreign(table).items():
        match FOREIGN_KEYS[key]:
            case Ignored():
                ignored += _leaves(key, value)
            case Refused(why, remedy, harmless):
                if value not in harmless:
                    problems.append(Problem(str(file), in_file(key), why, remedy))
    problems += _unknown_sections(str(file), table)
    origins = _apply_environment(table, environ)
    try:
        settings = Settings(**table, ignored_keys=tuple(sorted(ignored)))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            for key, why, remedy in explain(error):
                source, place = (ENVIRONMENT, origins[key]) if key in origins else (str(file), in_file(key))
                problems.append(Problem(source, place, why, remedy))
        raise SettingsError(problems) from None  # the chain would show the input, and so secrets
    if problems:
        raise SettingsError(problems)
    return settings


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        remedy = f"name the file with --config or {PATH_VARIABLE}"
        raise SettingsError([Problem(str(path), "", "this user has no home directory", remedy)]) from None


def _read(file: Path) -> dict[str, Any]:
    def unreadable(why: str, remedy: str) -> SettingsError:
        return SettingsError([Problem(str(file), "", why, remedy)])

    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise unreadable("there is no such file", f"write one with `opensandboxd init-config {file}`") from None
    except OSError as error:
        raise unreadable(f"cannot be read: {error.strerror}", "make it a file that this user may read") from None
    except UnicodeDecodeError:
        raise unreadable("is not UTF-8", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise unreadable(f"is not TOML: {error}", "correct the syntax there") from None


def _without_unset(table: dict[str, Any]) -> dict[str, Any]:
    """Drops empty strings, and tables that hold nothing else: OpenSandbox writes both for what is not set."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            rest = _without_unset(value)
            if rest or not value:
                kept[key] = rest
        elif value != "":
            kept[key] = value
    return kept


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _leaves(f"{key}.{name}", below)
    else:
        yield key


def _refused_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    for name, refused in FOREIGN_VARIABLES.items():
        if environ.get(name):
            yield Problem(ENVIRONMENT, name, refused.why, refused.remedy)


def _unknown_sections(source: str, table: dict[str, Any]) -> Iterator[Problem]:
    """Takes what is neither section out of the table: names that the environment alone may set are not keys."""
    for name in [name for name in table if name not in Settings.SECTIONS]:
        value = table.pop(name)
        if name in FOREIGN_SECTIONS and isinstance(value, dict):
            keys = [key.rpartition(".")[2] for key in FOREIGN_KEYS if key.startswith(f"{name}.")]
            for key in value:
                yield Problem(source, in_file(f"{name}.{key}"), "there is no such key", suggest(key, keys))
        elif isinstance(value, dict):
            close = did_you_mean(name, Settings.SECTIONS)
            remedy = f"did you mean [{close}]?" if close else f"remove it, or use one of {', '.join(Settings.SECTIONS)}"
            yield Problem(source, in_file(name), "there is no such section", remedy)
        else:
            yield Problem(source, name, "stands outside of any section", home_of(name) or "put it under a section")


def _apply_environment(table: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Puts what the environment says over the file. Returns the variable behind each key so set."""
    table["insecure_acknowledged"] = environ.get(INSECURE_VARIABLE) == "YES"
    origins: dict[str, str] = {}
    for key, variable in VARIABLES.items():
        value = environ.get(variable)
        section, dot, name = key.rpartition(".")
        holder = table.setdefault(section, {}) if dot else table
        if value and isinstance(holder, dict):
            holder[name] = value
            origins[key] = variable
    return origins
