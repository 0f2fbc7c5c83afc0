"""Clients for opensandboxd."""
