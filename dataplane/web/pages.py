"""One handler a page. Each reads once, draws once, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import jinja2
import msgspec
from aiohttp import web

from dataplane.audit.facts import FactFilter, newest
from dataplane.audit.replay import describe
from dataplane.coordinator.monitor import Monitor
from dataplane.queries import (
    QUERIES,
    AskChains,
    AskMissing,
    AskNodes,
    AskWhere,
    AskWhy,
    Reading,
    understand,
)
from dataplane.rows import EntryLine, chain_line, entry_line
from dataplane.web.chain import ChainPage, chain_page
from dataplane.web.live import Live
from dataplane.web.past import PastGlances
from streams.events import EVENT_TYPES
from streams.micro import ServiceRefusal
from streams.values import DataType

_ENDED_SHOWN = 100
_ENTRIES_KEPT = 100_000


class Pages:
    """All pages of one coordinator."""

    def __init__(self, monitor: Monitor, templates: jinja2.Environment, live: Live) -> None:
        self._monitor, self._templates, self._live = monitor, templates, live
        self._queries, self._log = monitor.queries, monitor.log
        self._past = PastGlances(monitor.log, monitor.config)

    def routes(self) -> list[web.RouteDef]:
        """Where each page is."""
        return [
            web.get("/", self.overview),
            web.get("/live", self._live.stream),
            web.get("/facts", self.facts),
            web.get(r"/fact/{sequence:\d{1,18}}", self.fact),
            web.get("/chains", self.chains),
            web.get("/chain/{id}", self.chain),
            web.get("/data", self.data),
            web.get("/path", self.path),
            web.get("/node/{name}", self.node),
            web.get("/metrics", self.metrics),
            web.get("/healthz", self.healthz),
            web.get("/api/{query}", self.api),
        ]

    def draw(self, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """A page."""
        values.setdefault("page", "")
        text = self._templates.get_template(template).render(values)
        return web.Response(text=text, content_type="text/html", status=status)

    async def overview(self, request: web.Request) -> web.Response:
        """The cluster at a glance, now or after the fact ``?at=``."""
        at = _number(request.query, "at")
        now = await self._monitor.glance()
        glance = await self._past.at(at) if at else now
        if glance is None:
            raise web.HTTPNotFound(text=f"the log holds no fact {at}")
        first = await self._log.get(1)
        return self.draw(
            "overview.html",
            page="overview",
            at=at,
            last_sequence=max(1, now.totals.sequence),
            first_time=first.time if first else now.time,
            last_time=now.time,
            **self._live.context_of(glance, live=not at),
        )

    async def facts(self, request: web.Request) -> web.Response:
        """Facts of a kind, newest first."""
        query = request.query
        wanted = FactFilter(
            *(query.get(name, "").strip() for name in ("type", "node", "chain", "config"))
        )
        found = await newest(self._log, wanted, before=_number(query, "before"))
        return self.draw(
            "facts.html",
            page="facts",
            wanted=wanted,
            found=found,
            types=sorted(EVENT_TYPES),
            nodes=await self._names(),
        )

    async def fact(self, request: web.Request) -> web.Response:
        """One fact, whole."""
        sequence = int(request.match_info["sequence"])
        fact = await self._log.get(sequence)
        if fact is None:
            raise web.HTTPNotFound(text=f"the log holds no fact {sequence}")
        payload = json.dumps(describe(fact).get("event"), indent=2, ensure_ascii=False)
        last = (await self._log.state()).last_sequence
        return self.draw("fact.html", page="facts", fact=fact, payload=payload, last=last)

    async def chains(self, request: web.Request) -> web.Response:
        """Open chains, then those that ended last."""
        ask = AskChains(last=_ENDED_SHOWN, config_key=request.query.get("config", ""))
        found = await self._queries.answer("chains", ask)
        glance = await self._monitor.glance()
        return self.draw("chains.html", page="chains", chains=found, now=glance.time)

    async def chain(self, request: web.Request) -> web.Response:
        """One chain: where its time went, and its facts."""
        id = request.match_info["id"]
        row = await self._queries.read(lambda known: known.view.whole_chain(id))
        if row is None:
            # Rejections and deletions have a history of their own, and no row among the chains.
            raise web.HTTPFound(f"/facts?chain={quote(id)}")
        glance = await self._monitor.glance()
        found: ChainPage = await chain_page(self._log, row, glance.time)
        line = chain_line(row, glance.time)
        return self.draw(
            "chain.html",
            page="chains",
            chain=line,
            now=glance.time,
            **msgspec.structs.asdict(found),
        )

    async def data(self, request: web.Request) -> web.Response:
        """Current entries of a kind."""
        query = request.query
        wanted = {name: query.get(name, "").strip() for name in ("type", "node", "config", "few")}
        if wanted["type"] and wanted["type"] not in list(DataType):
            raise web.HTTPBadRequest(text=f"type may be: {', '.join(DataType)}")
        copies = (await self._monitor.glance()).totals.copies_wanted
        entries = await self._queries.read(lambda known: _entries(known, wanted, copies))
        return self.draw(
            "data.html",
            page="data",
            wanted=wanted,
            entries=entries,
            count=len(entries),
            copies_wanted=copies,
            types=list(DataType),
            nodes=await self._names(),
        )

    async def path(self, request: web.Request) -> web.Response:
        """Every content under a path, who holds it, and why a node does or does not."""
        path, node = request.query.get("path", ""), request.query.get("node", "").strip()
        try:
            versions = await self._queries.answer("where", AskWhere(path=path))
        except ServiceRefusal:
            versions = []
        why = None
        if node:
            try:
                why = await self._queries.answer("why", AskWhy(path=path, node=node))
            except ServiceRefusal as refusal:
                raise web.HTTPNotFound(text=str(refusal)) from None
        return self.draw(
            "path.html",
            status=200 if versions else 404,
            page="data",
            path=path,
            versions=versions,
            nodes=await self._names(),
            node=node,
            why=why,
        )

    async def node(self, request: web.Request) -> web.Response:
        """One node: what it said of itself, what it lacks, its facts."""
        name = request.match_info["name"]
        nodes = await self._queries.answer("nodes", AskNodes())
        node = next((node for node in nodes if node.node == name), None)
        if node is None:
            raise web.HTTPNotFound(text=f"node {name} never joined")
        return self.draw(
            "node.html",
            page="",
            node=node,
            missing=await self._queries.answer("missing", AskMissing(node=name)),
            found=await newest(self._log, FactFilter(node=name), limit=30),
        )

    async def metrics(self, request: web.Request) -> web.Response:
        """For Prometheus."""
        text = self._monitor.metrics.render(await self._monitor.glance())
        return web.Response(
            body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def healthz(self, request: web.Request) -> web.Response:
        """200 if all is well or degraded, 503 if not; the text says what."""
        glance = await self._monitor.glance()
        status = 503 if glance.status == "unhealthy" else 200
        return web.json_response(
            {"status": glance.status, "message": glance.message}, status=status
        )

    async def api(self, request: web.Request) -> web.Response:
        """The bus's questions over HTTP: ``/api/missing?node=train-1``."""
        name = request.match_info["query"]
        if name not in QUERIES:
            raise web.HTTPNotFound(text=f"there are: {', '.join(QUERIES)}")
        try:
            ask = understand(name, dict(request.query))
            answer = await self._queries.answer(name, ask)
        except ServiceRefusal as error:
            return web.json_response({"error": str(error)}, status=int(error.code))
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _names(self) -> list[str]:
        return [node.node for node in (await self._monitor.glance()).nodes]


def _entries(known: Reading, wanted: Mapping[str, str], copies: int) -> list[EntryLine]:
    data_type = DataType(wanted["type"]) if wanted["type"] else None
    found = known.view.catalog.current(
        node=wanted["node"], config_key=wanted["config"], data_type=data_type
    )
    lines = [
        entry_line(entry) for entry in found if not wanted["few"] or len(entry.locations) < copies
    ]
    return sorted(lines[:_ENTRIES_KEPT], key=lambda line: (line.config_key, line.type, line.path))


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if text and not (text.isdecimal() and len(text) < 19):
        raise web.HTTPBadRequest(text=f"{name} must be a sequence, not {text!r}")
    return int(text or 0)
