"""Backends that run sandboxes, one package each, behind domain.ports.SandboxDriver."""
