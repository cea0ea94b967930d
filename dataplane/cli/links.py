"""Commands about the ways between nodes: how well each works, and what is moving now."""

from __future__ import annotations

import time
from typing import Any

from dataplane.cli import show
from dataplane.cli.app import Json, app, open_catalog
from projections.links import Breaker, LinkRow, breaker

#: What rates are shown for: a file of a common size.
_TYPICAL_BYTES = 16 << 20


@app.command()
def links(node: str = "", as_json: Json = False) -> None:
    """How each node can be reached, by each transport: outcomes, speed, and what is shut for now.

    A line without a transport is the node as a whole.
    """
    now = time.time()
    with open_catalog() as catalog, catalog.view() as view:
        rows = [_row(row, breaker(row, now)) for row in view.links() if node in ("", row.node)]
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


def _row(row: LinkRow, state: Breaker) -> dict[str, Any]:
    rate = row.rate(_TYPICAL_BYTES)
    left = state.until - time.time()
    return {
        "node": row.node,
        "transport": row.transport,
        "state": state.state,
        "successes": row.successes,
        "failures": row.failures,
        "bytes": row.bytes,
        "mbit_per_s": None if rate is None else round(rate * 8 / 1e6, 1),
        "last_error": row.last_error or None,
        "last_error_class": row.last_error_class or None,
        "last_error_at": row.last_error_at or None,
        "opens_until": state.until or None,
        "opens_again_in_s": round(left, 1) if left > 0 else None,
    }
