"""What changed, to those who watch: each section of the overview whole, as server-sent events.

One look at the cluster serves all who watch; a section goes out only to who has not got it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, NamedTuple

import jinja2
from aiohttp import web

from dataplane.coordinator.monitor import Monitor
from dataplane.overview import Overview
from dataplane.web.draw import SECTIONS, context, transfers_drawn
from dataplane.words import clock
from streams.log import LogError

logger = logging.getLogger(__name__)
#: How often it is looked for changes while anybody watches.
LOOK_S = 1.0
#: Transfers, chains and facts on the overview; each has a page of its own besides.
TRANSFERS_SHOWN, CHAINS_SHOWN, FACTS_SHOWN = 20, 12, 12


class Picture(NamedTuple):
    """The overview as drawn at one moment."""

    glance: Overview
    sections: dict[str, str]


class Live:
    """The overview's sections, drawn anew while somebody watches."""

    def __init__(self, monitor: Monitor, templates: jinja2.Environment) -> None:
        self._monitor = monitor
        self._templates = {
            name: templates.get_template(f"section/{name}.html") for name in SECTIONS
        }
        self._drawn: tuple[tuple[Overview, int], Picture] | None = None

    def context_of(self, glance: Overview, *, live: bool = True) -> dict[str, Any]:
        """What the overview's templates use."""
        motion = self._monitor.motion
        return context(
            glance,
            live=live,
            sections=SECTIONS if live else SECTIONS[:-1],
            traffic=motion.traffic() if live else {},
            transfers=transfers_drawn(glance.transfers, motion.now() if live else {}),
            shown=TRANSFERS_SHOWN,
            chains=glance.chains[:CHAINS_SHOWN],
            recent=list(self._monitor.recent)[:FACTS_SHOWN] if live else [],
        )

    async def picture(self) -> Picture:
        """The overview now. Raises a `LogError` while the bus is away."""
        glance = await self._monitor.glance()
        version = (glance, self._monitor.motion.heard)
        if self._drawn is None or self._drawn[0] != version:
            values = self.context_of(glance)
            sections = {name: template.render(values) for name, template in self._templates.items()}
            self._drawn = version, Picture(glance, sections)
        return self._drawn[1]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Send what changes until the browser goes away."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        sent: dict[str, str] = {}
        try:
            while True:
                await self._send(response, sent)
                await asyncio.sleep(LOOK_S)
        except ConnectionError:
            return response

    async def _send(self, response: web.StreamResponse, sent: dict[str, str]) -> None:
        try:
            picture = await self.picture()
        except LogError as error:
            logger.debug("the page has to wait: %s", error)
            return
        for name, html in picture.sections.items():
            if sent.get(name) != html:
                await response.write(_event("section", {"name": name, "html": html}))
                sent[name] = html
        glance = picture.glance
        state = {
            "status": glance.status,
            "sequence": glance.totals.sequence,
            "time": clock(glance.time)[:-4],
        }
        await response.write(_event("state", state))


def _event(kind: str, data: dict[str, object]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
