"""What `opensandboxd` offers is what it lists, and every error is listed."""

import opensandboxd
from opensandboxd import SandboxError


def test_public_names() -> None:
    offered = {name for name, value in vars(opensandboxd).items() if not name.startswith("_") and callable(value)}
    enums = {"Isolation", "LogStream", "NetworkAction", "SandboxState"}
    assert offered | enums == set(opensandboxd.__all__)
    assert {error.__name__ for error in SandboxError.__subclasses__()} < set(opensandboxd.__all__)
