"""What the log says of one path: all that `explain` answers from besides the views."""

from __future__ import annotations

from contextlib import aclosing
from typing import NamedTuple

from dataplane.explain import TELLS, speaks_of_path
from projections.catalog import DataCatalog
from streams import events
from streams.codec import Recorded
from streams.log import ReadingLog
from streams.values import ALL_CONFIGS, DataType, config_key_in


class Span(NamedTuple):
    """Where the log may speak of a path: of which configuration, and behind which fact."""

    config_key: str
    after: int


def span_of(catalog: DataCatalog, path: str) -> Span:
    """What has to be read to tell of a path, by the views: no more of a long log than that.

    A version has the sequence of the fact that brought it; what was said before the oldest one
    that anybody holds tells nothing of those that are held. Of a model, which may have been there
    long before it was promoted, all is read.
    """
    versions = catalog.versions(path)
    if not versions or any(one.data_type is DataType.MODELS for one in versions):
        return Span(versions[0].config_key if versions else config_key_in(path), 0)
    return Span(versions[0].config_key, max(0, min(one.version for one in versions) - 1))


async def facts_about(log: ReadingLog, path: str, span: Span) -> list[Recorded]:
    """Facts that speak of one path, in order; no others than those of its span are read."""
    last = (await log.state()).last_sequence
    found: list[Recorded] = []
    if last <= span.after:
        return found
    keys = dict.fromkeys((span.config_key, ALL_CONFIGS))
    subjects = [f"dp.*.*.{events.type_name(kind)}.{key}" for kind in TELLS for key in keys]
    reading = log.read(after=span.after, until=last, subjects=subjects)
    async with aclosing(reading) as batches:
        async for batch in batches:
            found += [fact for fact in batch if fact.event and speaks_of_path(fact.event, path)]
    return found
