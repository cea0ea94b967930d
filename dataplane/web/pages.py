"""One handler a page. Each reads once, draws once, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import jinja2
import msgspec
from aiohttp import web

from dataplane.audit.facts import FactFilter, newest
from dataplane.audit.knowing import UpTo
from dataplane.audit.replay import describe
from dataplane.browsing import EntryFilter, entry_page
from dataplane.coordinator.monitor import Monitor
from dataplane.overview import Overview
from dataplane.queries import (
    ENDED_LOOKED_AT,
    QUERIES,
    Ask,
    AskNodes,
    AskWhere,
    AskWhy,
    Reading,
    understand,
)
from dataplane.rows import ChainLine, EntryLine, TransferLine, chain_line
from dataplane.waiting import transfer_lines
from dataplane.web.chain import ChainPage, chain_page
from dataplane.web.draw import link, transfers_drawn
from dataplane.web.live import Live
from dataplane.web.past import NotHeld, Past
from dataplane.words import clock
from streams.events import EVENT_TYPES
from streams.micro import ServiceRefusal
from streams.values import DataType

#: Rows of a page.
_OPEN_SHOWN, _ENDED_SHOWN, _TRANSFERS_SHOWN, _MISSING_SHOWN = 200, 100, 200, 50
T = TypeVar("T")


class _Moment(NamedTuple):
    """Where in time a page is: after the fact `at`; with 0 in the present."""

    at: int = 0
    at_time: float = 0.0
    #: The same page in the present.
    in_the_present: str = "/"


class _Known(Protocol):
    """What is asked for a page: this coordinator's views, or those of a moment."""

    async def answer(self, name: str, ask: Ask) -> Any: ...
    async def read(self, work: Callable[[Reading], T]) -> T: ...


class Pages:
    """All pages of one coordinator."""

    def __init__(self, monitor: Monitor, templates: jinja2.Environment, live: Live) -> None:
        self._monitor, self._templates, self._live = monitor, templates, live
        self._queries, self._log = monitor.queries, monitor.log
        self._past = Past(monitor.log, monitor.config)

    async def close(self) -> None:
        """Let go of what is kept of the past."""
        await self._past.close()

    def routes(self) -> list[web.RouteDef]:
        """Where each page is."""
        return [
            web.get("/", self.overview),
            web.get("/live", self._live.stream),
            web.get("/facts", self.facts),
            web.get(r"/fact/{sequence:\d{1,18}}", self.fact),
            web.get("/chains", self.chains),
            web.get("/chain/{id}", self.chain),
            web.get("/moment", self.moment),
            web.get("/transfers", self.transfers),
            web.get("/data", self.data),
            web.get("/path", self.path),
            web.get("/node/{name}", self.node),
            web.get("/metrics", self.metrics),
            web.get("/healthz", self.healthz),
            web.get("/api/{query}", self.api),
        ]

    def draw(self, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """A page; at a moment of the past where `at` is one."""
        defaults = {"page": "", "at": 0, "at_time": 0.0, "in_the_present": "/"}
        text = self._templates.get_template(template).render(defaults | values)
        return web.Response(text=text, content_type="text/html", status=status)

    async def overview(self, request: web.Request) -> web.Response:
        """The cluster at a glance, now or after the fact ``?at=``."""
        moment = await self._moment(request)
        now = await self._monitor.glance()
        glance = await self._glance(moment)
        return self.draw(
            "overview.html",
            page="overview",
            last_sequence=max(1, now.totals.sequence),
            **self._live.context_of(glance, live=not moment.at),
            **moment._asdict(),
        )

    async def moment(self, request: web.Request) -> web.Response:
        """When the fact ``?at=`` was said: what the slider says while it moves."""
        moment = await self._moment(request)
        return web.json_response({"at": moment.at, "time": clock(moment.at_time)})

    async def facts(self, request: web.Request) -> web.Response:
        """Facts of a kind, newest first."""
        query, moment = request.query, await self._moment(request)
        said = {name: query.get(name, "").strip() for name in FactFilter.__struct_fields__}
        wanted = FactFilter(**said)
        log = UpTo(self._log, moment.at) if moment.at else self._log
        found = await newest(log, wanted, before=_number(query, "before"))
        return self.draw(
            "facts.html",
            page="facts",
            wanted=wanted,
            said=said,
            found=found,
            types=sorted(EVENT_TYPES),
            nodes=await self._names(),
            **moment._asdict(),
        )

    async def fact(self, request: web.Request) -> web.Response:
        """One fact, whole."""
        sequence, moment = int(request.match_info["sequence"]), await self._moment(request)
        fact = await self._log.get(sequence)
        if fact is None:
            raise web.HTTPNotFound(text=f"the log holds no fact {sequence}")
        payload = json.dumps(describe(fact).get("event"), indent=2, ensure_ascii=False)
        last = moment.at or (await self._log.state()).last_sequence
        return self.draw(
            "fact.html", page="facts", fact=fact, payload=payload, last=last, **moment._asdict()
        )

    async def chains(self, request: web.Request) -> web.Response:
        """Open chains, then those that ended last."""
        moment = await self._moment(request)
        config_key = request.query.get("config", "")
        async with self._known(moment) as known:
            found, more = await known.read(lambda known: _chains(known, config_key))
        now = (await self._glance(moment)).time
        return self.draw(
            "chains.html", page="chains", chains=found, more=more, now=now, **moment._asdict()
        )

    async def chain(self, request: web.Request) -> web.Response:
        """One chain: where its time went, and its facts."""
        id, moment = request.match_info["id"], await self._moment(request)
        async with self._known(moment) as known:
            row = await known.read(lambda known: known.view.whole_chain(id))
        if row is None:
            # Rejections and deletions have a history of their own, and no row among the chains.
            raise web.HTTPFound(link("/facts", chain=id, at=moment.at))
        now = (await self._glance(moment)).time
        log = UpTo(self._log, moment.at) if moment.at else self._log
        found: ChainPage = await chain_page(log, row, now)
        return self.draw(
            "chain.html",
            page="chains",
            chain=chain_line(row, now),
            now=now,
            **msgspec.structs.asdict(found),
            **moment._asdict(),
        )

    async def transfers(self, request: web.Request) -> web.Response:
        """What runs and what waits: all, or what comes to a node, or leaves one."""
        moment = await self._moment(request)
        wanted = {name: request.query.get(name, "").strip() for name in ("to", "of")}
        async with self._known(moment) as known:
            lines = await known.read(lambda known: _transfers(known, wanted["to"], wanted["of"]))
        glance = await self._glance(moment)
        moving = {} if moment.at else self._monitor.motion.now()
        return self.draw(
            "transfers.html",
            page="",
            wanted=wanted,
            transfers=transfers_drawn(lines, moving),
            shown=_TRANSFERS_SHOWN,
            whole=True,
            cut=len(lines) == _TRANSFERS_SHOWN,
            glance=glance,
            totals=glance.totals,
            **moment._asdict(),
        )

    async def data(self, request: web.Request) -> web.Response:
        """Current entries of a kind."""
        query, moment = request.query, await self._moment(request)
        names = ("type", "node", "config", "few", "lacks")
        wanted = {name: query.get(name, "").strip() for name in names}
        if wanted["type"] and wanted["type"] not in list(DataType):
            raise web.HTTPBadRequest(text=f"type may be: {', '.join(DataType)}")
        glance = await self._glance(moment)
        copies = glance.totals.copies_wanted
        kind = EntryFilter(
            DataType(wanted["type"]) if wanted["type"] else None,
            wanted["config"],
            wanted["node"],
            wanted["lacks"],
            copies if wanted["few"] else 0,
        )
        async with self._known(moment) as known:
            try:
                page = await known.read(
                    lambda known: entry_page(known, kind, after=query.get("after", ""))
                )
            except ServiceRefusal as refusal:
                raise web.HTTPNotFound(text=str(refusal)) from None
            except ValueError:
                raise web.HTTPBadRequest(text="after must be as the page before named it") from None
        return self.draw(
            "data.html",
            page="data",
            wanted=wanted,
            found=page,
            copies_wanted=copies,
            types=list(DataType),
            nodes=[node.node for node in glance.nodes],
            **moment._asdict(),
        )

    async def path(self, request: web.Request) -> web.Response:
        """Every content under a path, who holds it, and why a node does or does not."""
        moment = await self._moment(request)
        path, node = request.query.get("path", ""), request.query.get("node", "").strip()
        versions: list[EntryLine] = []
        async with self._known(moment) as known:
            with suppress(ServiceRefusal):
                versions = await known.answer("where", AskWhere(path=path))
            try:
                why = await known.answer("why", AskWhy(path=path, node=node)) if node else None
            except ServiceRefusal as refusal:
                raise web.HTTPNotFound(text=str(refusal)) from None
        return self.draw(
            "path.html",
            status=200 if versions else 404,
            page="data",
            path=path,
            versions=versions,
            nodes=[node.node for node in (await self._glance(moment)).nodes],
            node=node,
            why=why,
            **moment._asdict(),
        )

    async def node(self, request: web.Request) -> web.Response:
        """One node: what it said of itself, what it lacks, its facts."""
        name, moment = request.match_info["name"], await self._moment(request)
        async with self._known(moment) as known:
            nodes = await known.answer("nodes", AskNodes())
            node = next((node for node in nodes if node.node == name), None)
            if node is None:
                raise web.HTTPNotFound(text=f"node {name} never joined")
            lacks = EntryFilter(lacks=name)
            missing = await known.read(lambda known: entry_page(known, lacks, most=_MISSING_SHOWN))
        log = UpTo(self._log, moment.at) if moment.at else self._log
        return self.draw(
            "node.html",
            page="",
            node=node,
            missing=missing,
            found=await newest(log, FactFilter(node=name), limit=30),
            **moment._asdict(),
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

    async def _moment(self, request: web.Request) -> _Moment:
        """The moment that a page is asked for; the present without ``?at=``."""
        at = _number(request.query, "at")
        if not at:
            return _Moment()
        rest = {name: value for name, value in request.query.items() if name != "at"}
        try:
            time = await self._past.time_of(at)
        except NotHeld as error:
            raise web.HTTPNotFound(text=str(error)) from None
        return _Moment(at, time, str(request.rel_url.with_query(rest)))

    async def _glance(self, moment: _Moment) -> Overview:
        try:
            return await (self._past.glance(moment.at) if moment.at else self._monitor.glance())
        except NotHeld as error:
            raise web.HTTPNotFound(text=str(error)) from None

    @asynccontextmanager
    async def _known(self, moment: _Moment) -> AsyncIterator[_Known]:
        """What can be asked of that moment."""
        if not moment.at:
            yield self._queries
            return
        try:
            async with self._past.known(moment.at) as then:
                yield then
        except NotHeld as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def _names(self) -> list[str]:
        return [node.node for node in (await self._monitor.glance()).nodes]


def _chains(known: Reading, config_key: str) -> tuple[list[ChainLine], bool]:
    """The oldest open ones, then those that ended last; whether more are open."""
    rows = (row for row in known.view.open_chains() if config_key in ("", row.config_key))
    found = [chain_line(row, known.now) for row in islice(rows, _OPEN_SHOWN)]
    more = next(rows, None) is not None
    newest = islice(known.view.ended_chains(), ENDED_LOOKED_AT)
    ended = (row for row in newest if config_key in ("", row.config_key))
    return found + [chain_line(row, known.now) for row in islice(ended, _ENDED_SHOWN)], more


def _transfers(known: Reading, to: str, of: str) -> list[TransferLine]:
    """The first ones to a node, or from one, or of all; those that wait say why."""
    lines = transfer_lines(known.view, known.planner.known.policy, known.now, target=to, source=of)
    return list(islice(lines, _TRANSFERS_SHOWN))


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if text and not (text.isdecimal() and len(text) < 19):
        raise web.HTTPBadRequest(text=f"{name} must be a sequence, not {text!r}")
    return int(text or 0)
