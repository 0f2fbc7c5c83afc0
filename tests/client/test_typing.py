"""mypy --strict of a user's code accepts what is right and refuses what is wrong, also through the sync adapter."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

SAMPLES = Path(__file__).with_name("typing_samples.py.txt")


def test_mypy_accepts_and_refuses_what_the_samples_say(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    shutil.copy(SAMPLES, program)
    command = [sys.executable, "-m", "mypy", "--strict", "--hide-error-context", "--no-error-summary", str(program)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.stderr == ""
    refused = set(re.findall(r"^program\.py:(\d+): error: .*\[([a-z-]+)\]$", found.stdout, re.MULTILINE))
    marked = {
        (str(number), match[1])
        for number, line in enumerate(SAMPLES.read_text().splitlines(), 1)
        if (match := re.search(r"# error: ([a-z-]+)$", line))
    }
    assert refused == marked, found.stdout
