"""osbctl: opensandboxd from the command line."""

from opensandboxd.osbctl.cli import main

__all__ = ["main"]
