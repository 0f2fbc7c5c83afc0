"""What is wrong with a configuration, and how it is told: one line each with source, key, why and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple, NoReturn

from pydantic_core import PydanticCustomError


class Wrong(NamedTuple):
    """One thing that a validator refuses. `key` is below what is validated: "" for a field, "tls_key" for a section,
    "ingress.mode" for the whole. `why` and `remedy` never quote a secret."""

    key: str
    why: str
    remedy: str


def refuse(*wrongs: Wrong) -> NoReturn:
    """Raises what pydantic carries up to `load`, all of `wrongs` at once."""
    summary = "; ".join(f"{wrong.why}; {wrong.remedy}" for wrong in wrongs)
    raise PydanticCustomError("refused", "{summary}", {"summary": summary, "wrongs": wrongs})


@dataclass(frozen=True, slots=True)
class Problem:
    """`source` is a file or "environment"; `place` is what is wrong there, as one would write it: "[server] port",
    "[server]", a variable's name, or "" for all of it."""

    source: str
    place: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.source, self.place, f"{self.why}; {self.remedy}")))


class SettingsError(Exception):
    """The configuration is refused. `str()` tells every problem, a line each, complete for the terminal."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def in_file(key: str) -> str:
    """The place of a dotted key: "ingress.gateway.address" is "[ingress.gateway] address", "docker" is "[docker]"."""
    section, dot, name = key.rpartition(".")
    return f"[{section}] {name}" if dot else f"[{key}]"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest of `known`, or ""; upper and lower case are the same."""
    by_lower_case = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower(), by_lower_case, n=1)
    return by_lower_case[matches[0]] if matches else ""
