"""The control plane of opensandboxd."""
