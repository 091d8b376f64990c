"""The one thing that can go wrong with the embedded server, said in full."""

from __future__ import annotations

from typing import Final

USE_ANOTHER: Final = "or set UPTRAIL_DATABASE_URL to a PostgreSQL of your own"


class EmbeddedPostgresError(Exception):
    """What failed, what the server's log says last, and what to do about it."""

    def __init__(self, problem: str, remedy: str, log: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        self.log = log
        said = f"\nThe server's log ends with:\n{log}" if log else ""
        super().__init__(f"{problem}{said}\nWhat to do: {remedy}, {USE_ANOTHER}.")
