"""`uptrail config show`: every setting, its value, and where that came from."""

from __future__ import annotations

import msgspec
from cyclopts import App

from infrastructure.settings_loader import redacted
from interfaces.cli import console
from interfaces.cli.console import ClientOptions

app = App(name="config", help="Show every setting and where its value came from.")


@app.command
def show(*, common: ClientOptions | None = None) -> None:
    """Show every setting and where its value came from."""
    common = common or ClientOptions()
    sourced = common.sourced()
    values = {name: redacted(getattr(sourced.settings, name)) for name in sourced.origins}
    if common.json:
        console.emit(
            {
                name: {"value": value, "source": sourced.origins[name]}
                for name, value in values.items()
            }
        )
        return
    rows = ((name, sourced.origins[name], _text(value)) for name, value in values.items())
    console.table(("setting", "source", "value"), rows)


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
