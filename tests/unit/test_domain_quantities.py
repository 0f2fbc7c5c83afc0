"""Quantities: what k8s.io/apimachinery's resource.Quantity reads, and the same values."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opensandboxd_server.domain import quantities

FACTORS = {
    "": Fraction(1), "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000),
    **{suffix: Fraction(1000**i) for i, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Fraction(1024**i) for i, suffix in enumerate("KMGTPE", start=1)},
    **{f"e{n}": Fraction(10) ** n for n in range(-12, 31)},
    **{f"E{n}": Fraction(10) ** n for n in range(-12, 31)},
}  # fmt: skip
suffixes = st.sampled_from(sorted(FACTORS))
wholes = st.integers(0, 10**18 - 1)
parts = st.none() | st.from_regex(r"[0-9]{1,9}", fullmatch=True)


def ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


@given(wholes, parts, suffixes)
def test_a_quantity_has_exactly_its_value_rounded_up_to_whole_units(whole: int, part: str | None, suffix: str) -> None:
    number = f"{whole}" if part is None else f"{whole}.{part}"
    value = Fraction(number) * FACTORS[suffix]

    assert Fraction(quantities.parse(number + suffix)) == value
    assert quantities.memory_bytes(number + suffix) == ceil(value)
    assert quantities.nano_cpus(number + suffix) == ceil(value * 10**9)


@given(st.integers(0, 2**63))
def test_bytes_and_nano_cpus_round_trip(n: int) -> None:
    n = min(n, 10**18 - 1)
    assert quantities.memory_bytes(str(n)) == n
    assert quantities.nano_cpus(f"{n}n") == n
    assert quantities.count(str(n)) == n


@given(st.text(alphabet="0123456789.eE+-kKMGTPimnu ٣_x", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for read in (quantities.parse, quantities.memory_bytes, quantities.nano_cpus, quantities.count):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert repr(text) in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("text", "nano_cpus"),
    [("500m", 500_000_000), ("2", 2 * 10**9), ("0.1", 10**8), ("1n", 1), ("1.5", 1_500_000_000), (".5", 5 * 10**8),
     ("5.", 5 * 10**9), ("1e-3", 10**6)],
)  # fmt: skip
def test_processor_time_as_in_kubernetes(text: str, nano_cpus: int) -> None:
    assert quantities.nano_cpus(text) == nano_cpus


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("512Mi", 512 * 2**20), ("4Gi", 4 * 2**30), ("1G", 10**9), ("1e3", 1000), ("1.5Gi", 3 * 2**29),
        ("128974848", 128974848), ("129e6", 129 * 10**6), ("129M", 129 * 10**6), ("123Mi", 123 * 2**20), ("100m", 1),
        ("1E", 10**18), ("1E2", 100),
    ],
)  # fmt: skip
def test_memory_as_in_kubernetes(text: str, bytes_: int) -> None:
    assert quantities.memory_bytes(text) == bytes_


@pytest.mark.parametrize("text", ["1.5", "500m", "1e-1"])
def test_a_count_is_whole(text: str) -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        quantities.count(text)


@pytest.mark.parametrize("text", ["2", "2.0", "2000m", "2e0", "0.002k"])
def test_a_whole_number_may_be_written_in_many_ways(text: str) -> None:
    assert quantities.count(text) == 2
