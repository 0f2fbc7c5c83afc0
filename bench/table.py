"""The figures as a table, for a terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence

from bench.measure import Summary
from bench.results import Figure

HEADER = ("what", "without a server", "opensandboxd", "ratio", "OpenSandbox", "ratio", "target", "met")


def rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    return [
        (
            figure.name,
            f"{_cell(figure.baseline)} ({figure.baseline_name})" if figure.baseline else "-",
            _cell(figure.opensandboxd),
            _ratio(figure.ratio(figure.opensandboxd)),
            _cell(figure.opensandbox),
            _ratio(figure.ratio(figure.opensandbox)),
            _target(figure),
            {True: "yes", False: "no", None: ""}[figure.met],
        )
        for figure in figures
    ]


def percentile_rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """One for every summary: subject, count, p50, p95, p99."""
    return [
        (
            figure.name,
            subject,
            str(summary.count),
            *(f"{number(value)} {summary.unit}" for value in (summary.p50, summary.p95, summary.p99)),
        )
        for figure in figures
        for subject, summary in (
            (figure.baseline_name, figure.baseline),
            ("opensandboxd", figure.opensandboxd),
            ("OpenSandbox", figure.opensandbox),
        )
        if summary and summary.count > 1
    ]


PERCENTILE_HEADER = ("what", "of", "samples", "p50", "p95", "p99")


def text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three significant digits, or the whole number."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(summary: Summary | None) -> str:
    return f"{number(summary.p50)} {summary.unit}" if summary else "-"


def _ratio(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else ""


def _target(figure: Figure) -> str:
    target = figure.target
    if not target:
        return ""
    sign, value = ("<=", target.most) if target.most is not None else (">=", target.least)
    unit = f" {figure.opensandboxd.unit}" if figure.opensandboxd else ""
    return f"{sign} {value:,g}{unit}" if target.absolute else f"{sign} {value:.2f} x {_short(figure)}"


def _short(figure: Figure) -> str:
    return figure.baseline_name.partition(",")[0]
