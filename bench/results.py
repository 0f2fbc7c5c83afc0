"""What was measured, what it was measured against, and whether that is what was promised."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from bench.measure import Summary


@dataclass(frozen=True, slots=True)
class Target:
    """`most` or `least`, of the baseline or, with `absolute`, in the figure's own unit; at the median."""

    most: float | None = None
    least: float | None = None
    absolute: bool = False

    def met(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `baseline` is what the thing costs without any sandbox server."""

    name: str
    baseline_name: str = ""
    baseline: Summary | None = None
    opensandboxd: Summary | None = None
    opensandbox: Summary | None = None
    target: Target | None = None
    note: str = ""

    def ratio(self, summary: Summary | None) -> float | None:
        """To the baseline, at the median."""
        return summary.p50 / self.baseline.p50 if summary and self.baseline else None

    @property
    def met(self) -> bool | None:
        """None when nothing was promised."""
        value = self.opensandboxd.p50 if self.target and self.target.absolute and self.opensandboxd else None
        value = value if value is not None else self.ratio(self.opensandboxd)
        return self.target.met(value) if self.target and value is not None else None

    @classmethod
    def load(cls, plain: Mapping[str, Any]) -> Self:
        summaries = {
            key: Summary(**plain[key]) if plain[key] else None for key in ("baseline", "opensandboxd", "opensandbox")
        }
        target = Target(**plain["target"]) if plain["target"] else None
        return cls(**{**plain, **summaries, "target": target})


@dataclass(frozen=True, slots=True)
class Results:
    """`machine` is what was measured on: a name and a value for each fact."""

    date: str
    quick: bool
    machine: Mapping[str, str]
    figures: tuple[Figure, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        plain = json.loads(path.read_text())
        return cls(**{**plain, "figures": tuple(Figure.load(figure) for figure in plain["figures"])})


def machine() -> dict[str, str]:
    """Take it before the load: it tells how busy the machine was by itself."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 1e9:.0f} GB",
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "grpcio": version("grpcio"),
    }
