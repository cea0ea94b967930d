"""Rows to HTML: the templates' environment, and what they compute with.

Every value is escaped. Nothing here has a style of its own: how it looks is ``static/page.css``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

import jinja2
import jinja2.runtime

from dataplane.metrics import stages
from dataplane.motion import Moving
from dataplane.overview import Held, MapRow, Overview
from dataplane.rows import ChainLine, TransferLine
from dataplane.words import clock, counted, rate, short, size, span, summary

#: Sections of the overview, in order; each is drawn, and sent when it changes, by itself.
SECTIONS = ("alerts", "totals", "nodes", "map", "transfers", "chains", "links", "facts")
#: Steps of the map's colours: none, some, …, all.
_HEAT_STEPS = 4


class Stage(NamedTuple):
    """A piece of a chain's time, in hundredths of the whole."""

    name: str
    seconds: float
    start: float
    width: float


class Row(NamedTuple):
    """A transfer on the page: the row, and how far it is if it moves."""

    line: TransferLine
    moving: Moving | None


def environment() -> jinja2.Environment:
    """The templates with their filters."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("dataplane.web"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters.update(
        size=size,
        rate=rate,
        span=span,
        clock=clock,
        number=lambda value: f"{value:,}".replace(",", " "),
        iso=lambda value: datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds"),
        short=short,
        counted=counted,
        summary=summary,
    )
    found.globals.update(facts=_facts_link, heat=heat, stages=chain_stages, query=_link)
    return found


@jinja2.pass_context
def _facts_link(drawn: jinja2.runtime.Context, **wanted: object) -> str:
    """The page of these facts."""
    return link("/facts", **{"at": drawn.get("at"), **wanted})


@jinja2.pass_context
def _link(drawn: jinja2.runtime.Context, page: str, **wanted: object) -> str:
    """Another page, at the moment at which this one is."""
    return link(page, **{"at": drawn.get("at"), **wanted})


def link(page: str, **wanted: object) -> str:
    """A page with what is asked of it; what is empty is not said."""
    said = {name: value for name, value in wanted.items() if value not in ("", None, 0)}
    return f"{page}?{urlencode(said)}" if said else page


def heat(row: MapRow, held: Held | None) -> int:
    """How much of a row a node holds, in steps from 0, none, to the last, all."""
    if held is None:
        return 0
    if held.entries >= row.entries:
        return _HEAT_STEPS
    return 1 + int(held.entries / row.entries * (_HEAT_STEPS - 1))


def chain_stages(chain: ChainLine, now: float) -> list[Stage]:
    """Where a chain's time went; the last piece of an open one grows."""
    found = list(stages(chain))
    if not chain.ended_at:
        found.append(("so far", max(0.0, now - chain.opened_at - sum(s for _, s in found))))
    whole = sum(seconds for _, seconds in found) or 1.0
    pieces, start = [], 0.0
    for name, seconds in found:
        width = 100 * seconds / whole
        pieces.append(Stage(name, seconds, round(start, 2), round(width, 2)))
        start += width
    return pieces


def transfers_drawn(lines: Iterable[TransferLine], moving: Mapping[str, Moving]) -> list[Row]:
    """Transfers with how far they are."""
    return [Row(line, moving.get(line.transfer)) for line in lines]


def context(glance: Overview, **more: Any) -> dict[str, Any]:
    """What every section may use."""
    return {"glance": glance, "totals": glance.totals, "now": glance.time or time.time(), **more}
