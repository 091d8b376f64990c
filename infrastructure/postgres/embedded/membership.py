"""One user's share in a server: the last to end it shuts the server down."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

from infrastructure.postgres.embedded import lifecycle, locks
from infrastructure.postgres.embedded.home import Home
from infrastructure.postgres.embedded.log import Log

_LOG_CHECK: Final = 10.0


class Membership:
    """One user's share in a server, and the care of its log meanwhile."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._process = os.getpid()
        self._users = locks.share(home.users)
        self._ended = threading.Event()
        threading.Thread(target=self._keep_log, name="uptrail-postgres-log", daemon=True).start()

    @property
    def is_of_this_process(self) -> bool:
        return self._process == os.getpid()

    def end(self) -> None:
        """Shut the server down if nobody else uses it. The caller holds `home.decisions`."""
        self._ended.set()
        try:
            if locks.is_only_holder(self._users):
                lifecycle.shut_down(self.home)
        finally:
            locks.release(self._users)

    def _keep_log(self) -> None:
        while not self._ended.wait(_LOG_CHECK):
            with suppress(OSError):
                Log(self.home.log).trim()
