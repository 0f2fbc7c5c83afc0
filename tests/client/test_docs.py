"""The documentation's tables are the code's tables, and its examples name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import click

import opensandboxd
from opensandboxd.errors import ERRORS
from opensandboxd.osbctl.cli import cli
from opensandboxd.osbctl.failure import Exit

DOCS = Path(__file__).parents[2] / "docs"


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table under `header`, without backquotes."""
    table = (DOCS / page).read_text().partition(header)[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_errors() -> None:
    documented = {code: name for code, name, *_ in rows("client.md", "| code | exception | when |\n")}
    assert documented == {code.name: error.__name__ for code, error in ERRORS.items()}


def test_the_table_of_methods() -> None:
    documented = {name for name, *_ in rows("client.md", "| method | does |\n")}
    public = {name for name in dir(opensandboxd.AsyncClient) if not name.startswith("_")}
    assert documented == public


def test_the_table_of_exit_codes() -> None:
    documented = {int(code) for code, *_ in rows("osbctl.md", "| exit code | when |\n")}
    assert documented == {int(exit) for exit in Exit}


def test_the_table_of_commands() -> None:
    documented = {line[0].split()[0] for line in rows("osbctl.md", "| command | does |\n")}
    assert documented == set(cli.commands)


def test_every_option_in_the_page_exists() -> None:
    known = {
        name
        for command in (cli, *cli.commands.values())
        for parameter in command.get_params(click.Context(command))
        for name in parameter.opts
    }
    used = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", (DOCS / "osbctl.md").read_text()))
    assert used - known == {"-m"}  # of python, in an example
