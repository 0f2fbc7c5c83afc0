"""The syntax of names: ids, metadata, environment, images. Each pattern says where its rule comes from."""

from __future__ import annotations

import re
import secrets
import string

LABEL_PREFIX = "opensandbox.io"

_ID_ALPHABET = string.ascii_lowercase + string.digits

# Kubernetes, "Labels and Selectors: syntax and character set".
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")

# POSIX, "Environment Variable Definition".
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# github.com/distribution/reference, "Grammar".
_IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::\d+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[+._-][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)


def new_id() -> str:
    """A new sandbox id: 103 random bits; valid as Kubernetes name and label value, Docker name and DNS label."""
    return "sbx-" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(20))


def label_key_problem(key: str) -> str:
    """What is wrong with a metadata key, or ""."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _DNS_SUBDOMAIN.fullmatch(prefix)):
        return "the part before '/' must be a DNS name of at most 253 characters"
    if prefix == LABEL_PREFIX or prefix.endswith("." + LABEL_PREFIX):
        return f"the prefix {LABEL_PREFIX!r} is reserved"
    if not _LABEL_NAME.fullmatch(name):
        return "must be 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    return ""


def label_value_problem(value: str) -> str:
    """What is wrong with a metadata value, or ""."""
    if value and not _LABEL_NAME.fullmatch(value):
        return "must be at most 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    return ""


def is_env_name(text: str) -> bool:
    return _ENV_NAME.fullmatch(text) is not None


def is_image_reference(text: str) -> bool:
    return len(text) <= 512 and _IMAGE.fullmatch(text) is not None


def is_platform_part(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9]{1,16}", text) is not None


def is_request_id(text: str) -> bool:
    return len(text) <= 128 and text.isascii() and text.isprintable()
