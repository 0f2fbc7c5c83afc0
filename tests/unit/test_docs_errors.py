"""docs/errors.md and the code name the same reasons."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "opensandboxd_server"

RAISED = re.compile(
    r"(?:InvalidArgument|Unauthenticated|AlreadyExists|FailedPrecondition|Aborted|ResourceExhausted|Unsupported)\(\s*"
    r'"(?P<first>[A-Z_]+)"|reason(?:: str)?\s*=\s*"(?P<named>[A-Z_]+)"'
)
"""Reasons as the first argument of an error, or as its keyword or default."""


def documented() -> set[str]:
    return set(re.findall(r"^\| `([A-Z_]+)`", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))


def raised() -> set[str]:
    texts = [path.read_text() for path in SERVER.rglob("*.py")]
    return {match["first"] or match["named"] for text in texts for match in RAISED.finditer(text)}


def test_every_reason_that_is_raised_is_documented() -> None:
    assert raised() - documented() == set()


def test_every_reason_that_is_documented_is_in_the_code() -> None:
    text = "\n".join(path.read_text() for path in SERVER.rglob("*.py"))
    assert {reason for reason in documented() if f'"{reason}"' not in text} == set()
