"""What every test needs of the process it runs in."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so it is in a shell's background, and would be in the programs that tests press Ctrl-C on
    signal.signal(signal.SIGINT, signal.default_int_handler)
