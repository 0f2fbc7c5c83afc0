"""docs/secure-runtimes.md shows the table of domain/runtimes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from opensandboxd_server.domain.runtimes import MIB, RUNTIME_CAPABILITIES, RUNTIMES, SecureRuntime

DOC = (Path(__file__).parents[2] / "docs" / "secure-runtimes.md").read_text().splitlines()


def named(name: str, default: str) -> str:
    return f"`{name}`" if name else default


def cost_row(runtime: SecureRuntime) -> str:
    least, most = runtime.start_overhead_ms
    cells = (
        f"`{runtime.type}`" if runtime.type else '`""`',
        runtime.isolation.value,
        "refused" if runtime.docker_refusal else named(runtime.oci_runtime, "the engine's default"),
        named(runtime.runtime_class, "the cluster's default"),
        f"+{most} ms" if least == most else f"+{least}-{most} ms",
        f"+{runtime.memory_overhead // MIB} MiB",
        runtime.best_for,
    )
    return f"| {' | '.join(cells)} |"


def capability_row(name: str) -> str:
    cells = ("yes" if runtime.capabilities()[name].supported else "no" for runtime in RUNTIMES.values())
    return f"| `{name}` | {' | '.join(cells)} |"


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=lambda runtime: runtime.type or "runc")
def test_every_runtime_has_its_row(runtime: SecureRuntime) -> None:
    assert cost_row(runtime) in DOC


def test_every_capability_has_its_row_under_the_runtimes_in_order() -> None:
    header = f"| capability | {' | '.join(type or 'runc' for type in RUNTIMES)} |"
    assert DOC[DOC.index(header) + 2 :][: len(RUNTIME_CAPABILITIES)] == [
        capability_row(name) for name in RUNTIME_CAPABILITIES
    ]
