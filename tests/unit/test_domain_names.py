"""Names: "a valid Kubernetes name", never twice the same; and what the syntax rules let through."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from opensandboxd_server.domain import names

# kubernetes/apimachinery/pkg/util/validation: DNS-1123 label and subdomain, qualified name, label value.
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
DOCKER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")

near_label = st.text(alphabet="aZ09-_./ é\n", max_size=70) | st.from_regex(r"[a-z.-]{0,9}/[A-Za-z0-9_.-]{0,70}")


def is_kubernetes_label_key(key: str) -> bool:
    """validation.IsQualifiedName, as Kubernetes writes it."""
    parts = key.split("/")
    if len(parts) > 2:
        return False
    prefix_is_fine = len(parts) == 1 or (len(parts[0]) <= 253 and DNS_SUBDOMAIN.fullmatch(parts[0]) is not None)
    name = parts[-1]
    return prefix_is_fine and 0 < len(name) <= 63 and QUALIFIED_NAME.fullmatch(name) is not None


def test_ids_never_collide_and_are_valid_everywhere() -> None:
    ids = [names.new_id() for _ in range(20_000)]

    assert len(set(ids)) == len(ids)
    for id in ids:
        assert re.fullmatch(r"sbx-[a-z0-9]{20}", id)
        assert len(id) <= 63
        assert DNS_LABEL.fullmatch(id)
        assert DOCKER_NAME.fullmatch(id)
        assert is_kubernetes_label_key(id)
        assert not names.label_value_problem(id)


def test_every_letter_of_the_alphabet_is_used_in_every_place() -> None:
    ids = [names.new_id() for _ in range(5000)]
    for place in range(4, 24):
        assert len({id[place] for id in ids}) == 36


@given(near_label)
def test_metadata_keys_that_pass_are_valid_in_kubernetes_and_not_reserved(key: str) -> None:
    if not names.label_key_problem(key):
        assert is_kubernetes_label_key(key)
        assert "opensandbox.io" not in key.partition("/")[0] or "/" not in key


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True))
def test_every_kubernetes_name_passes_as_a_metadata_key(name: str) -> None:
    assert not names.label_key_problem(name)
    assert not names.label_key_problem(f"example.com/{name}")
    assert names.label_key_problem(f"opensandbox.io/{name}")
    assert names.label_key_problem(f"a.opensandbox.io/{name}")
    assert not names.label_key_problem(f"not-opensandbox.io/{name}")


@given(near_label)
def test_metadata_values_that_pass_are_valid_in_kubernetes(value: str) -> None:
    passes = not names.label_value_problem(value)
    assert passes == (value == "" or (len(value) <= 63 and QUALIFIED_NAME.fullmatch(value) is not None))


@given(st.text(alphabet="aZ_09=- \n\0é", max_size=8))
def test_environment_names_are_those_of_posix(name: str) -> None:
    assert names.is_env_name(name) == bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name))


def test_image_references_are_those_of_docker() -> None:
    digest = "sha256:" + "a" * 64
    for good in (
        "debian", "debian:12", "library/debian", "localhost/a", "localhost:5000/a/b_c.d-e:Tag_1.0", "a.b-c.io/x__y",
        f"debian@{digest}", f"reg.io:443/a/b:1@{digest}", "[::1]:5000/a:1", "a---b",
    ):  # fmt: skip
        assert names.is_image_reference(good), good
    for bad in (
        "", "A", "a b", "a:", ":a", "a@", "/a", "a/", "a//b", "a:b:c", "-a", "a-", "a..b", "a___b", "http://a", "a\n",
        "a:.x", "a:-x", "a:" + "x" * 129, "a@sha256:short", "user@host/a", "a" * 513, "ä", "a:ä",
    ):  # fmt: skip
        assert not names.is_image_reference(bad), bad


@given(st.text())
def test_request_ids_are_printable_ascii(text: str) -> None:
    assert names.is_request_id(text) == (len(text) <= 128 and all(" " <= letter <= "~" for letter in text))
