"""What is kept of a failure: the log, the views, the seed; and judging it again from that alone."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from dataplane import laws
from dataplane.audit.exporting import export_log
from dataplane.policy import Policy
from dataplane.prove.verdict import Seen, Verdict, run_laws, view_problems, why_problems
from dataplane.prove.whys import ask_why
from projections.fold import TABLES, fold, view_digests
from projections.store import Store
from streams.codec import Recorded
from streams.kept import FileLog
from streams.log import StoredLog

_LOG, _SEED, _VIEWS = "log.jsonl", "seed.json", "views"


class Seed(msgspec.Struct, frozen=True):
    """How to run the same again, and what of the run neither its log nor its views can tell."""

    command: str
    seed: int
    problems: list[str]
    #: Those of the problems that only the run could see: on disks and of processes.
    seen_only: list[str]
    acknowledged: list[str]
    #: Nodes that were wiped once they were drained.
    wiped: list[str]
    #: What the processes decided by.
    policy: Policy


class Again(msgspec.Struct, frozen=True):
    """A bundle judged again."""

    #: What its log and its views still show.
    problems: list[str]
    #: What only the run could see, as it was seen then: it stands.
    seen_then: list[str]
    #: Of the views, folded anew from the log.
    digests: dict[str, str]

    @property
    def acquits(self) -> bool:
        """Whether nothing stands against the run."""
        return not self.problems and not self.seen_then


def seed_of(
    command: str, verdict: Verdict, seen: Seen, wiped: Sequence[str], policy: Policy
) -> Seed:
    """What a failed run leaves to be judged by."""
    return Seed(
        command,
        seen.seed,
        verdict.problems,
        verdict.seen_only,
        [*seen.acknowledged],
        [*wiped],
        policy,
    )


async def write(
    directory: Path, log: StoredLog, seed: Seed, views: Iterable[tuple[str, Path]]
) -> None:
    """Write a bundle: every message of the log as it is kept, the seed, and these views."""
    await asyncio.to_thread(_write_rest, directory, seed, views)
    await export_log(log, directory / _LOG)


def _write_rest(directory: Path, seed: Seed, views: Iterable[tuple[str, Path]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _SEED).write_bytes(msgspec.json.format(msgspec.json.encode(seed), indent=2))
    for name, place in views:
        if place.exists():
            shutil.copytree(place, directory / _VIEWS / name, symlinks=True, dirs_exist_ok=True)


def seed_in(directory: Path) -> Seed:
    """The seed of a bundle. Raises ValueError where it is none of this program."""
    return msgspec.json.decode((directory / _SEED).read_bytes(), type=Seed)


async def judge_again(directory: Path) -> Again:
    """Ask a bundle all that its run was asked of log and views; what only the run saw, it keeps.

    Raises ValueError, OSError and LogError where it is no bundle of this program.
    """
    seed, log = seed_in(directory), FileLog(directory / _LOG)
    facts = await _all(log)
    whys = await asyncio.to_thread(ask_why, facts, seed.policy, seed.seed)
    problems = [
        *laws.broken(facts, run_laws(seed.acknowledged, seed.wiped, seed.policy)),
        *await view_problems(log, sorted((directory / _VIEWS).glob("*"))),
        *why_problems(whys),
    ]
    return Again(problems, seed.seen_only, await asyncio.to_thread(_digests, facts))


async def _all(log: FileLog) -> list[Recorded]:
    facts: list[Recorded] = []
    async with aclosing(log.read()) as batches:
        async for batch in batches:
            facts += batch
    return facts


def _digests(facts: Sequence[Recorded]) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="dataplane-bundle-") as place:
        store = Store.open(Path(place), TABLES, durable=False)
        try:
            store.write(lambda tx: fold(tx, facts, "bundle"))
            with store.read() as reader:
                return view_digests(reader)
        finally:
            store.close()
