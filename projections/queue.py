"""The order in which pending transfers wait: by priority, then deadline, then age.

They stand in queues, one for each priority, configuration and target, so that who hands out work
can take a little of each and never reads what waits for a target that is full. How much each
configuration was served lately is remembered here, too.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections import Counter
from collections.abc import Container, Iterator
from itertools import islice
from typing import NamedTuple

from projections.store import Reader, Writer
from projections.view import Row, number, text_key, unpacker
from streams.values import added

TABLES = ("queue", "queue_age", "served")
#: So many are read of a queue at a time.
_PAGE = 8
_PLACE_BYTES = 16
_HOUR_S = 3600.0


class Queue(NamedTuple):
    """The transfers of one priority and configuration to one target."""

    rank: int
    config_key: str
    target: str
    prefix: bytes


class ServedRow(Row, frozen=True):
    """Bytes that a configuration was given lately: each hour that passes halves them."""

    bytes: int
    hour: int


_SERVED = unpacker(ServedRow)


def queue_keys(
    rank: int,
    config_key: str,
    target: str,
    deadline: float | None,
    queued_sequence: int,
    id: str,
) -> dict[tuple[str, bytes], bytes]:
    """Where a transfer stands while it waits, by table and key."""
    # Big-endian bytes of a positive double sort as the number does.
    due = struct.pack(">d", math.inf if deadline is None else max(deadline, 0.0))
    prefix = bytes([rank]) + text_key(config_key, target)
    place = due + number(queued_sequence) + id.encode()
    age = number(queued_sequence) + id.encode()
    return {("queue", prefix + place): b"", ("queue_age", age): b""}


def queues(reader: Reader) -> Iterator[Queue]:
    """Every queue that is not empty, the most urgent first; its length costs nothing."""
    at = b""
    while (found := next(reader.scan("queue", start=at), None)) is not None:
        rest = found[0][1:]
        config_key, _, rest = rest.partition(b"\x00")
        target = rest.partition(b"\x00")[0]
        prefix = found[0][: 1 + len(config_key) + 1 + len(target) + 1]
        yield Queue(found[0][0], config_key.decode(), target.decode(), prefix)
        at = prefix + b"\xff" * (_PLACE_BYTES + 1)


def lengths(reader: Reader) -> Counter[int]:
    """How many wait, by rank; only keys are read."""
    return Counter(key[0] for key, _ in reader.scan("queue"))


def ids_in_order(reader: Reader, target: str = "") -> Iterator[str]:
    """All that waits, or waits for a target: by priority, then deadline, then age."""
    by_rank: dict[int, list[Queue]] = {}
    for queue in queues(reader):
        if target in ("", queue.target):
            by_rank.setdefault(queue.rank, []).append(queue)
    for rank in sorted(by_rank):
        streams = [_places(reader, queue, ()) for queue in by_rank[rank]]
        yield from (place[_PLACE_BYTES:].decode() for place in heapq.merge(*streams))


def ids_fairly(reader: Reader, passed_over: Container[str] = ()) -> Iterator[str]:
    """All that waits, by priority; within one, each configuration in turn gives its next.

    Queues of targets in `passed_over`, which may grow meanwhile, are left.
    """
    by_rank: dict[int, dict[str, list[Queue]]] = {}
    for queue in queues(reader):
        if queue.target not in passed_over:
            by_rank.setdefault(queue.rank, {}).setdefault(queue.config_key, []).append(queue)
    for rank in sorted(by_rank):
        turns = [
            heapq.merge(*(_places(reader, queue, passed_over) for queue in of_config))
            for of_config in by_rank[rank].values()
        ]
        while turns:
            left = []
            for turn in turns:
                place = next(turn, None)
                if place is not None:
                    yield place[_PLACE_BYTES:].decode()
                    left.append(turn)
            turns = left


def ids_by_age(reader: Reader) -> Iterator[str]:
    """All that waits, the oldest first, whatever its priority."""
    for key, _ in reader.scan("queue_age"):
        yield key[8:].decode()


def served(reader: Reader, config_key: str, now: float) -> int:
    """Bytes that a configuration was given lately."""
    row = reader.row("served", config_key.encode(), _SERVED)
    return 0 if row is None else row.bytes >> max(0, int(now // _HOUR_S) - row.hour)


def serve(tx: Writer, config_key: str, size_bytes: int, time: float) -> None:
    """A configuration is given so many bytes."""
    have = added(served(tx, config_key, time), size_bytes)
    tx.put("served", config_key.encode(), ServedRow(have, int(time // _HOUR_S)))


def _places(reader: Reader, queue: Queue, passed_over: Container[str]) -> Iterator[bytes]:
    """What waits in a queue, in order, a few read at a time."""
    at = queue.prefix
    while queue.target not in passed_over:
        page = [key for key, _ in islice(reader.scan("queue", queue.prefix, start=at), _PAGE)]
        for key in page:
            if queue.target in passed_over:
                return
            yield key[len(queue.prefix) :]
        if len(page) < _PAGE:
            return
        at = page[-1] + b"\x00"
