"""What is kept of a failure: the log, the views, the seed; and judging it again from that alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from dataplane import laws
from dataplane.policy import Policy
from dataplane.prove.verdict import run_laws
from projections.fold import TABLES, fold, view_digests
from projections.store import Store
from streams.codec import Fact, Recorded, decode, encode


class Line(msgspec.Struct, frozen=True):
    """A message of the log, as it can be decoded again."""

    sequence: int
    time: float
    subject: str
    headers: dict[str, str]
    body: str


class Seed(msgspec.Struct, frozen=True):
    """How to run the same again, and what was acknowledged."""

    command: str
    seed: int
    problems: list[str]
    acknowledged: list[str]


def write(
    directory: Path, facts: Sequence[Recorded], seed: Seed, views: Iterable[tuple[str, Path]]
) -> None:
    """Write a bundle."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "log.jsonl").open("wb") as file:
        for recorded in facts:
            file.write(msgspec.json.encode(_line(recorded)) + b"\n")
    (directory / "seed.json").write_bytes(msgspec.json.format(msgspec.json.encode(seed), indent=2))
    for name, place in views:
        if place.exists():
            shutil.copytree(place, directory / "views" / name, symlinks=True, dirs_exist_ok=True)


def read(directory: Path) -> tuple[list[Recorded], Seed]:
    """The facts of a bundle, decoded by this program, and its seed."""
    lines = (directory / "log.jsonl").read_bytes().splitlines()
    decoded = [msgspec.json.decode(line, type=Line) for line in lines]
    facts = [decode(x.sequence, x.time, x.subject, x.headers, x.body.encode()) for x in decoded]
    return facts, msgspec.json.decode((directory / "seed.json").read_bytes(), type=Seed)


def judge_again(directory: Path) -> tuple[list[str], dict[str, str]]:
    """What breaks a promise in a bundle's log, and the digests of the views folded from it."""
    facts, seed = read(directory)
    with tempfile.TemporaryDirectory(prefix="dataplane-bundle-") as place:
        store = Store.open(Path(place), TABLES, durable=False)
        try:
            store.write(lambda tx: fold(tx, facts, "bundle"))
            with store.read() as reader:
                digests = view_digests(reader)
        finally:
            store.close()
    return laws.broken(facts, run_laws(seed.acknowledged, Policy())), digests


def _line(recorded: Recorded) -> Line:
    """What was not understood keeps its subject; what was in it, the server's own store has."""
    if recorded.event is None:
        return Line(recorded.sequence, recorded.time, recorded.subject, {}, "?")
    fact = Fact(
        recorded.event, recorded.subject, recorded.id, recorded.chain, recorded.cause, "bundle"
    )
    headers, body = encode(fact, recorded.time)
    return Line(recorded.sequence, recorded.time, recorded.subject, headers, body.decode())
