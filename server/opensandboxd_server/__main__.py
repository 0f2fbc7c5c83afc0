"""`python -m opensandboxd_server` is the command `opensandboxd`."""

import sys

from opensandboxd_server.cli import main

sys.exit(main())
