"""Kubernetes resource quantities: "500m", "2", "512Mi", "1e3", "1.5Gi".

The grammar is that of k8s.io/apimachinery's resource.Quantity.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext

_GRAMMAR = re.compile(
    r"(?P<number>\d{1,18}(?:\.\d{0,9})?|\.\d{1,9})(?P<suffix>[eE][+-]?\d{1,2}|[KMGTPE]i|[numkMGTPE])?", re.ASCII
)
_DIGITS = 200  # of the largest quantity there is, in its smallest unit: nothing is rounded but by _ceil
_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    **{suffix: Decimal(1000) ** i for i, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** i for i, suffix in enumerate("KMGTPE", start=1)},
}  # fmt: skip


def parse(text: str) -> Decimal:
    """The quantity's value. ValueError when it is not one, or is negative."""
    match = _GRAMMAR.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as '500m', '2', '512Mi' or '4Gi'")
    suffix = match["suffix"] or ""
    factor = _SUFFIXES.get(suffix)
    with localcontext(prec=_DIGITS):
        return Decimal(match["number"]) * (factor if factor is not None else Decimal(f"1{suffix}"))


def nano_cpus(text: str) -> int:
    """Billionths of a core, rounded up."""
    return _ceil(parse(text), 10**9)


def memory_bytes(text: str) -> int:
    """Bytes, rounded up."""
    return _ceil(parse(text))


def count(text: str) -> int:
    """A whole number, as GPUs are counted."""
    value = parse(text)
    if value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def _ceil(value: Decimal, factor: int = 1) -> int:
    with localcontext(prec=_DIGITS):
        return int((value * factor).to_integral_value(ROUND_CEILING))
