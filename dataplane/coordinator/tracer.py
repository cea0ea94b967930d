"""Sends the spans of each chain that ends to whoever collects them. Off where nobody is named.

It only reads, behind everything else. Of several coordinators the one that leads does it; a
collector that is away misses what ends meanwhile, and the log still has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import msgspec

from dataplane.audit.replay import history_of
from dataplane.config import ConfigError
from dataplane.logs import about
from dataplane.tracing import ENDS, Span, spans_of
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.codec import Recorded
from streams.log import ReadingLog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger(__name__)
SERVICE = "dataplane"
_FILE = "file:"
_OTLP_PATH = "/v1/traces"


class Exporter(Protocol):
    """Where spans go. Called in a thread, one call at a time."""

    def send(self, spans: Sequence[Span]) -> None:
        """Hand over the spans of a chain. Raises OSError where they did not arrive."""


class Tracer:
    """Follows the log and sends what ended. `run` in a task once the views are up."""

    def __init__(
        self,
        log: ReadingLog,
        projector: Projector,
        exporter: Exporter,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._log = log
        self._projector = projector
        self._exporter = exporter
        self._leads = leads

    async def run(self) -> None:
        """Send the spans of each chain that ends from now on, for ever."""
        after = self._projector.checkpoint.sequence
        async with aclosing(self._log.read(after=after)) as batches:
            async for batch in batches:
                for fact in batch:
                    if isinstance(fact.event, ENDS) and self._leads():
                        await self._send(fact)

    async def _send(self, end: Recorded) -> None:
        spans = await self._spans(end)
        if not spans:
            return
        try:
            await asyncio.to_thread(self._exporter.send, spans)
        except OSError as error:
            with about(end):
                logger.warning("the spans of chain %s were not sent: %s", end.chain, error)

    async def _spans(self, end: Recorded) -> list[Span]:
        with suppress(TimeoutError):
            await self._projector.wait_for(end.sequence)
        with self._projector.store.read() as reader:
            row = ClusterView(reader).whole_chain(end.chain)
        if row is None:
            return []
        facts = await history_of(self._log, row)
        # Of a chain with very many facts only the first were read.
        if all(fact.sequence != end.sequence for fact in facts):
            facts.append(end)
        return spans_of(end.chain, facts)


def exporter_of(endpoint: str) -> Exporter | None:
    """What `otel_endpoint` names; None for "". Raises ConfigError where a package is missing."""
    if not endpoint:
        return None
    if endpoint.startswith(_FILE):
        return FileExporter(Path(endpoint.removeprefix(_FILE)).expanduser())
    return OtlpExporter(endpoint)


class FileExporter:
    """A line of JSON for each span, at the end of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, spans: Sequence[Span]) -> None:
        """As `Exporter.send`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(span) + b"\n" for span in spans))


class OtlpExporter:
    """An OpenTelemetry collector, by OTLP over HTTP."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is its URL, with or without the path. Raises ConfigError without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ConfigError(
                "otel_endpoint needs OpenTelemetry: pip install 'dataplane[otel]', or file:PATH"
            ) from None
        bare = urlsplit(endpoint).path in ("", "/")
        self._to = OTLPSpanExporter(endpoint.rstrip("/") + _OTLP_PATH if bare else endpoint)

    def send(self, spans: Sequence[Span]) -> None:
        """As `Exporter.send`; what the collector says is in this process's log."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        if self._to.export([_readable(span) for span in spans]) is not SpanExportResult.SUCCESS:
            raise OSError("the collector did not take them")


def _readable(span: Span) -> ReadableSpan:
    """A span as OpenTelemetry's exporters take it, with our ids and times."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    def context(span_id: str) -> SpanContext:
        flags = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(int(span.trace_id, 16), int(span_id, 16), False, flags)

    return ReadableSpan(
        span.name,
        context(span.span_id),
        context(span.parent_id) if span.parent_id else None,
        Resource({"service.name": SERVICE, "service.instance.id": span.process}),
        dict(span.attributes),
        kind=SpanKind.PRODUCER if span.said else SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK),
        start_time=round(span.start * 1e9),
        end_time=round(span.end * 1e9),
    )
