"""`uptrail config show`: every setting, its value, and where that came from."""

from __future__ import annotations

import msgspec
from cyclopts import App

from infrastructure.settings_sources import shown
from interfaces.cli import output
from interfaces.cli.options import Common

app = App(name="config", help="Show every setting and where its value came from.")


@app.command
def show(*, common: Common | None = None) -> None:
    """Show every setting and where its value came from."""
    common = common or Common()
    sourced = common.sourced()
    values = {name: shown(getattr(sourced.settings, name)) for name in sourced.origins}
    if common.json:
        output.emit(
            {
                name: {"value": value, "source": sourced.origins[name]}
                for name, value in values.items()
            }
        )
        return
    rows = ((name, sourced.origins[name], _text(value)) for name, value in values.items())
    output.table(("setting", "source", "value"), rows)


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
