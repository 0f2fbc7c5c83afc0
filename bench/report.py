"""`python -m bench.report FILE`: writes what `python -m bench --json FILE` measured into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.results import Results
from bench.table import HEADER, PERCENTILE_HEADER, markdown, number, percentile_rows, rows

PAGE = Path("docs/benchmarks.md")
BEGIN, END = "<!-- results: written by python -m bench.report -->", "<!-- end of results -->"


def section(results: Results) -> str:
    parts = [
        f"Measured on {results.date}. The machine: {'; '.join(f'{k} {v}' for k, v in results.machine.items())}.",
        markdown(HEADER, rows(results.figures)),
        _verdict(results),
        "### Percentiles",
        markdown(PERCENTILE_HEADER, percentile_rows(results.figures)),
    ]
    if notes := [f"- {figure.name}: {figure.note}" for figure in results.figures if figure.note]:
        parts += ["### Notes", "\n".join(notes)]
    return "\n\n".join(parts)


def _verdict(results: Results) -> str:
    missed = [figure for figure in results.figures if figure.met is False]
    if not missed:
        return "Every target is met."
    lines = [
        f"- {figure.name}: {number(figure.opensandboxd.p50)} {figure.opensandboxd.unit}"
        for figure in missed
        if figure.opensandboxd
    ]
    return "Missed in this run:\n\n" + "\n".join(lines)


def write(results: Results, page: Path) -> None:
    """Puts the results between the page's marks; the rest of the page stays. ValueError when it has no marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the lines {BEGIN!r} and {END!r}; put them where the results belong")
    page.write_text(f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    results = Results.load(parser.parse_args(argv).file)
    if results.quick:
        print("bench.report: a quick run has too few samples to publish; run without --quick", file=sys.stderr)
        return 1
    write(results, PAGE)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
