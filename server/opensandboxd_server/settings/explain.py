"""What pydantic found wrong, told as a person would: key, why, and a remedy that is a line to write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from opensandboxd_server.settings.model import VARIABLES, Settings
from opensandboxd_server.settings.opensandbox import FOREIGN_KEYS
from opensandboxd_server.settings.problems import Wrong, did_you_mean


def explain(error: ErrorDetails) -> Iterator[Wrong]:
    """Every Wrong in one error of Settings, its key dotted from the top."""
    place = _Place.of(tuple(str(part) for part in error["loc"]))
    if error["type"] == "missing":
        place = place.first_required()
    if error["type"] == "refused":
        for wrong in error["ctx"]["wrongs"]:
            yield wrong._replace(key=".".join(filter(None, (place.key, wrong.key))))
    else:
        yield Wrong(place.key, *_why_and_remedy(error, place))


def suggest(word: str, known: list[str]) -> str:
    """The remedy for a key that is none of `known`."""
    close = did_you_mean(word, known)
    return f"did you mean {close}?" if close else f"remove it, or use one of {', '.join(sorted(known))}"


def home_of(name: str) -> str:
    """The remedy for a key that stands in the wrong section: which one it belongs to, or ""."""
    homes = [section for section in Settings.SECTIONS if name in _fields_of(section)]
    return f"it belongs in {' or '.join(f'[{home}]' for home in homes)}" if homes else ""


class _Place(NamedTuple):
    """Where in the file an error is: the dotted key, its last name, the model that holds it, and its field if any."""

    key: str
    name: str
    model: type[BaseModel]
    field: FieldInfo | None

    @classmethod
    def of(cls, loc: tuple[str, ...]) -> _Place:
        model: type[BaseModel] = Settings
        field: FieldInfo | None = None
        names: list[str] = []
        for part in loc:
            if field is not None:
                below = _section_in(field)
                if below is None:  # an item of a list
                    break
                model = below
            names.append(part)
            field = model.model_fields.get(part)
        return cls(".".join(names), names[-1] if names else "", model, field)

    def first_required(self) -> _Place:
        """What must be written for a missing section to be there: the first of its keys that has no default."""
        section = _section_in(self.field) if self.field else None
        required = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
        return _Place.of((*self.key.split("."), required[0])).first_required() if required else self


def _section_in(field: FieldInfo) -> type[BaseModel] | None:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


_EXPECTED = {
    "string_type": "text in quotes",
    "is_instance_of": "text in quotes",
    "path_type": "text in quotes",
    "int_type": "a whole number without quotes",
    "float_type": "a number without quotes",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false without quotes",
    "tuple_type": "a list in brackets",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {"greater_than_equal": ("ge", "below", "at least"), "less_than_equal": ("le", "above", "at most")}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number with a fraction", str: "text", list: "a list"}


def _why_and_remedy(error: ErrorDetails, place: _Place) -> tuple[str, str]:
    match error["type"]:
        case "extra_forbidden":
            remedy = suggest(place.name, [*place.model.model_fields, *_foreign_siblings(place)])
            return "there is no such key", home_of(place.name) or remedy
        case "missing":
            return "is required", f"write {_sample(place)}"
        case "literal_error":
            choices = [choice for choice in _choices(place.field) if choice]
            close = did_you_mean(str(error["input"]), choices)
            listed = ", ".join(f'"{choice}"' for choice in choices)
            return f"{_shown(error['input'])} is none of {listed}", (
                f'did you mean "{close}"?' if close else f"write one of them, like {_sample(place)}"
            )
        case "greater_than_equal" | "less_than_equal" as bound:
            limit, side, word = _BOUNDS[bound]
            most = f"{error.get('ctx', {})[limit]:g}"
            return f"{error['input']} is {side} {most}", f"write {word} {most}{_or_else(place)}"
        case "string_too_short":
            return "is empty", f"write {_sample(place)}"
        case kind:
            expected = _EXPECTED.get(kind, "another value")
            found = _KINDS.get(type(error["input"]), "a table" if isinstance(error["input"], dict) else "this value")
            return f"must be {expected}, not {found}", f"write it like {_sample(place)}"


def _shown(value: object) -> str:
    """Short words only: what is longer may be a secret that was pasted into the wrong place."""
    return json.dumps(value) if isinstance(value, str) and re.fullmatch(r"[\w+.-]{1,24}", value) else "this value"


def _foreign_siblings(place: _Place) -> list[str]:
    section = place.key.rpartition(".")[0]
    return [key.rpartition(".")[2] for key in FOREIGN_KEYS if key.rpartition(".")[0] == section]


def _fields_of(section: str) -> Mapping[str, FieldInfo]:
    model = _section_in(Settings.model_fields[section])
    return model.model_fields if model else {}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The plain types of an annotation: Annotated[int, ...] | None is (int, NoneType)."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    return (get_args(annotation)[0] if get_origin(annotation) is Annotated else get_origin(annotation) or annotation,)


def _choices(field: FieldInfo | None) -> tuple[str, ...]:
    annotation = field.annotation if field else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()


_EXAMPLES: Mapping[Any, Any] = {int: 100, Path: "/path/to/file", SecretStr: "...", str: "...", tuple: ["..."]}


def _sample(place: _Place) -> str:
    """What would be right to write: the default, or else an example of the type."""
    value = _default(place)
    if place.key in VARIABLES and value is not None:
        return f"{VARIABLES[place.key]}={value:g}"
    if place.field and _section_in(place.field):
        return f"[{place.key}] on a line of its own, its keys below"
    if choices := _choices(place.field):
        value = value or choices[0]
    if value is None and place.field:
        value = next(_EXAMPLES[kind] for kind in _kinds(place.field.annotation) if kind in _EXAMPLES)
    return f"{place.name} = {json.dumps(value, default=str)}"


def _default(place: _Place) -> Any:
    """None when there is no default that would be worth writing."""
    if place.field is None or place.field.is_required() or place.field.default in ("", ()):
        return None
    return place.field.default


def _or_else(place: _Place) -> str:
    default = _default(place)
    unlimited = ", or 0 for no limit" if place.field and type(None) in _kinds(place.field.annotation) else ""
    return unlimited + (f", or leave it out for {default}" if default is not None else "")
