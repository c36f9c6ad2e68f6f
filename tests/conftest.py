"""What all tests share."""

from __future__ import annotations

import signal

# A shell starts jobs in the background with Ctrl-C ignored; the commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
