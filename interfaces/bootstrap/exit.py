"""The way out for somebody who does not want to wait."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

INTERRUPTED = 130


def leave_at_once() -> NoReturn:
    """Ends the process as a kill would: whatever was acknowledged is durable already."""
    print("left at once; nothing acknowledged is lost", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
