"""Spans of ended chains: read from the facts, of one trace, and sent where they are wanted."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dataplane.config import ConfigError
from dataplane.coordinator.tracer import Exporter, FileExporter, Tracer, exporter_of
from dataplane.tracing import Span, spans_of
from projections.projector import Projector
from streams import events
from streams.codec import Fact, span_of, trace_of
from streams.memory import MemoryLog
from streams.values import Transport, TransportResult
from tests.spec import (
    T0,
    Story,
    after,
    answers,
    assigned,
    failed,
    games_of,
    given,
    opens,
    played,
    player,
    policy_of,
    said_what_is_owed,
    succeeded,
    trainer,
)

GAMES = games_of("gpu-1")
THEIRS = "4bf92f3577b34da6a3ce929d0e0e4736"


def one_chain() -> Story:
    """Two seconds until the answer; a first attempt that fails after three, a second of four."""
    retried = policy_of(retries={"max_retries": 2, "backoff_base_s": 1.0, "backoff_jitter": 0.0})
    return given(
        trainer("train-1"),
        player("gpu-1"),
        opens("c1", played("gpu-1")),
        after(2),
        answers("c1", "gpu-1", GAMES),
        said_what_is_owed,
        assigned,
        after(3),
        failed(),
        after(60),
        assigned,
        after(4),
        succeeded(),
        said_what_is_owed,
        policy=retried,
    )


def named(spans: list[Span], name: str) -> list[Span]:
    """The spans of a name, in order."""
    return [span for span in spans if span.name == name]


def test_spans_of_a_chain_have_the_times_of_the_log() -> None:
    """The whole, the answer, the plan, each attempt, and what was announced."""
    spans = spans_of("c1", one_chain().facts)
    assert [(span.name, span.start - T0, span.end - T0) for span in spans] == [
        ("SELFPLAY_COMPLETE", 0, 69),
        ("answer", 0, 2),
        ("plan", 2, 2),
        ("transfer", 2, 5),
        ("transfer", 65, 69),
        ("NEW_GAMES_AVAILABLE", 69, 69),
    ]


def test_spans_of_a_chain_are_of_one_trace_whoever_did_the_work() -> None:
    """Three processes: player, trainer and coordinator; one is the parent of all others."""
    spans = spans_of("c1", one_chain().facts)
    whole, *parts = spans
    assert {span.trace_id for span in spans} == {trace_of("c1")}
    assert (whole.span_id, whole.parent_id) == (span_of("c1"), "")
    assert {span.parent_id for span in parts} == {whole.span_id}
    assert len({span.span_id for span in spans}) == len(spans)
    assert {span.process for span in spans} == {"coordinator", "gpu-1", "train-1"}


def test_span_is_where_the_trace_context_of_its_fact_points() -> None:
    """Who reads an announcement, or an assignment, goes on from there with any OpenTelemetry."""
    facts = one_chain().facts
    known = {(span.trace_id, span.span_id) for span in spans_of("c1", facts)}
    for fact in facts:
        if isinstance(fact.event, events.NewGamesAvailable | events.TransferAssigned):
            _, trace, span, _ = fact.traceparent.split("-")
            assert (trace, span) in known


def test_attempt_says_from_where_to_where_by_what_and_why_not() -> None:
    """A failed one is an error of its class; the bytes are those that moved."""
    first, second = named(spans_of("c1", one_chain().facts), "transfer")
    assert first.attributes["error.type"] == "Stalled"
    assert first.error == "no byte came"
    assert (second.error, second.attributes["dataplane.attempt"]) == ("", 2)
    assert second.attributes["dataplane.source"] == "gpu-1"
    assert second.attributes["dataplane.target"] == "train-1"
    assert second.attributes["dataplane.bytes"] == GAMES.size_bytes


def test_attempt_names_each_transport_it_tried() -> None:
    """The last one is the one that counts."""

    def by_two(story: Story) -> Iterator[events.Event]:
        (row,) = story.under_way()
        http = TransportResult(False, Transport.HTTP_FETCH, 7, 1.0, "gone", "Unreachable")
        rsync = TransportResult(True, Transport.RSYNC, 1_000, 1.0)
        yield events.TransferSucceeded(
            transfer=row.id,
            node=row.executor,
            source=row.source,
            target=row.target,
            entry=row.entry,
            attempt=row.attempt,
            results=(http, rsync),
            bytes_transferred=1_007,
            games=row.entry.games,
        )

    story = given(trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
    story.tell(answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned, by_two)
    (span,) = named(spans_of("c1", story.tell(said_what_is_owed).facts), "transfer")
    assert span.attributes["dataplane.transport"] == "rsync"
    assert span.attributes["dataplane.transports_tried"] == ("http", "rsync")


def test_failed_chain_is_an_error_that_says_why() -> None:
    """It stands out where traces are looked at."""
    story = given(trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
    spans = spans_of("c1", story.tell(after(10_000), said_what_is_owed).facts)
    assert [span.name for span in spans] == ["SELFPLAY_COMPLETE"]
    assert "gpu-1 gave no answer" in spans[0].error


def test_chain_of_a_traced_trigger_is_in_the_trace_of_who_said_it() -> None:
    """A client that passes its own trace context sees what became of its event."""
    facts = [
        replace(fact, traceparent=f"00-{THEIRS}-00f067aa0ba902b7-01") if fact.id == "c1" else fact
        for fact in one_chain().facts
    ]
    whole, *parts = spans_of("c1", facts)
    assert (whole.trace_id, whole.parent_id) == (THEIRS, "00f067aa0ba902b7")
    assert {(span.trace_id, span.parent_id) for span in parts} == {(THEIRS, whole.span_id)}


def test_open_chain_has_no_spans_and_what_follows_the_end_changes_none() -> None:
    """So that a chain's spans are the same whenever they are read."""
    facts = one_chain().facts
    is_end = [isinstance(fact.event, events.DataSyncCompleted) for fact in facts]
    assert spans_of("c1", facts[: is_end.index(True)]) == []
    transfers = (events.TransferAssigned, events.TransferSucceeded)
    late = [fact for fact in facts if isinstance(fact.event, transfers)][-2:]
    again = [
        replace(fact, sequence=1_000 + n, event=replace(fact.event, attempt=3))
        for n, fact in enumerate(late)
    ]
    assert spans_of("c1", [*facts, *again]) == spans_of("c1", facts)


# Sent


class Told:
    """An exporter that tells when it has sent something."""

    def __init__(self, exporter: Exporter) -> None:
        self.exporter, self.done = exporter, threading.Event()

    def send(self, spans: Sequence[Span]) -> None:
        self.exporter.send(spans)
        self.done.set()


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OpenTelemetry collector: its URL, and what was posted to it."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_chain_that_ends_is_written_to_the_file(tmp_path: Path) -> None:
    """Line by line as JSON, without any extra package; by the coordinator that leads alone."""
    log = MemoryLog()
    projector = Projector(log, tmp_path / "views")
    await projector.start()
    file = tmp_path / "traces" / "spans.jsonl"
    exporter = exporter_of(f"file:{file}")
    assert isinstance(exporter, FileExporter)
    told, other = Told(exporter), tmp_path / "other.jsonl"
    tracers = [
        Tracer(log, projector, told),
        Tracer(log, projector, FileExporter(other), leads=lambda: False),
    ]
    loops = [asyncio.create_task(one.run()) for one in [projector, *tracers]]
    try:
        story = one_chain()
        for fact in story.facts:
            assert fact.event is not None
            await log.publish(
                Fact(fact.event, fact.subject, fact.id, fact.chain, fact.cause, fact.owner)
            )
        assert await asyncio.to_thread(told.done.wait, 60)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await projector.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    said = [(line["name"], line["trace_id"], line["span_id"], line["parent_id"]) for line in lines]
    assert sorted(said) == sorted(
        (span.name, span.trace_id, span.span_id, span.parent_id)
        for span in spans_of("c1", story.facts)
    )
    assert not other.exists()


def test_spans_reach_a_collector_with_their_ids_and_times() -> None:
    """By OTLP over HTTP, each under the process that did the work."""
    spans = spans_of("c1", one_chain().facts)
    with collector() as (url, got):
        exporter = exporter_of(url)
        assert exporter is not None
        exporter.send(spans)
    ((path, body),) = got
    assert path == "/v1/traces"
    request = ExportTraceServiceRequest.FromString(body)
    have = {
        (
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert have == {
        (span.trace_id, span.span_id, span.parent_id, round(span.start * 1e9)) for span in spans
    }
    assert len(request.resource_spans) == 3


def test_missing_extra_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything starts, and not as an ImportError."""
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'dataplane\[otel\]'"):
        exporter_of("http://127.0.0.1:4318")


def test_nobody_collects_by_default() -> None:
    """Tracing is off until somebody asks for it."""
    assert exporter_of("") is None
