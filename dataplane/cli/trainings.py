"""The command about when nodes train, and what was brought ahead of it."""

from __future__ import annotations

from dataplane.cli import show
from dataplane.cli.app import LOOK, Json, app
from dataplane.cli.asking import answered
from dataplane.queries import AskTrainings


@app.command(rich_help_panel=LOOK)
def trainings(node: str = "", as_json: Json = False) -> None:
    """When each node trains what, by its history, and the worth of data brought ahead of that.

    Hits are bytes that a run found in place when it began, wasted those that none found in time.
    """
    rows = answered("trainings", AskTrainings(node))
    columns = [
        "node",
        "config_key",
        "starts",
        "rhythm_s",
        "confidence",
        "expected_at",
        "staged_bytes",
        "hit_bytes",
        "wasted_bytes",
    ]
    show.emit(rows, columns, as_json=as_json, empty="nobody has trained yet")
