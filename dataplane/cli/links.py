"""Commands about the ways between nodes: how well each works, and what is moving now."""

from __future__ import annotations

import time

from dataplane.cli import show
from dataplane.cli.app import Json, app, open_catalog
from dataplane.rows import link_line


@app.command()
def links(node: str = "", as_json: Json = False) -> None:
    """How each node can be reached, by each transport: outcomes, speed, and what is shut for now.

    A line without a transport is the node as a whole.
    """
    now = time.time()
    with open_catalog() as catalog, catalog.view() as view:
        rows = [link_line(row, now) for row in view.links() if node in ("", row.node)]
    columns = [
        "node",
        "transport",
        "state",
        "successes",
        "failures",
        "mbit_per_s",
        "last_error",
        "opens_again_in_s",
    ]
    show.emit(rows, columns, as_json=as_json, empty="nothing has moved yet")
