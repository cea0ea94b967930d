"""What happens in a run: triggers and faults with their times, drawn from a seed."""

from __future__ import annotations

import random
from typing import NamedTuple

import msgspec

CONFIG_KEYS = ("hex8_2p", "square8_2p")
PLAYERS = ("gpu-1", "gpu-2")
TRAINERS = ("train-1", "train-2")
NODES = (*PLAYERS, *TRAINERS, "vault")
COORDINATORS = ("boss-1", "boss-2")
#: For how many virtual seconds triggers are said and things go wrong.
TROUBLE_S = 40.0


class Step(NamedTuple):
    """Something that happens at a time."""

    at: float
    what: str
    #: The node or coordinator it happens to.
    name: str
    config_key: str = ""
    #: How long what it takes away stays away.
    length_s: float = 0.0


class Schedule(msgspec.Struct, frozen=True):
    """A run, whole: run again it does the same."""

    #: Of the order in which ready steps run, and of each fault that needs no time.
    seed: int
    #: The share of words with the bus that go wrong.
    share: float
    steps: tuple[Step, ...]
    #: Whether copies are asked to be deleted, missed and made again: sweeper and deleter take part.
    custody: bool = False
    #: Whether data is brought ahead of trainings: there are slots to be spared for it.
    ahead: bool = False
    #: Whether nodes are emptied, and wiped once that is said of them: only with `custody`.
    drains: bool = False

    def __str__(self) -> str:
        lines = [f"  {s.at:5.1f} s  {s.what} {s.name} {s.config_key}".rstrip() for s in self.steps]
        besides = ", with custody" if self.custody else ""
        besides += ", ahead" if self.ahead else ""
        besides += ", with drains" if self.drains else ""
        return "\n".join([f"seed {self.seed}, faults {self.share:.2f}{besides}", *lines])


#: Triggers, and how often each is drawn.
_SAYS = {"plays": 6, "promotes": 2, "finds-orphans": 1, "terminates": 1, "trains": 1, "needs": 1}
_BREAKS = {
    "coordinator-dies": 4,
    "coordinator-pauses": 3,
    "views-are-lost": 1,
    "agent-dies": 4,
    "bus-is-away": 2,
}
#: What besides is drawn where copies come and go.
_KEEPS = {"deletes": 6, "fills": 2, "loses": 3}
#: The same while nodes are emptied: what is taken away then is lost, and nobody's fault.
_KEEPS_ALL = {"deletes": 6, "fills": 2}
#: Until when files are taken away, and from when on nodes are emptied.
_EMPTIED_FROM_S = 12.0


def drawn(seed: int) -> Schedule:
    """A schedule from a seed: a few triggers, a few faults, and a share of lost words."""
    rng = random.Random(f"schedule {seed}")
    says = [_said(rng) for _ in range(rng.randint(1, 6))]
    breaks = [_broken(rng) for _ in range(rng.randint(0, 6))]
    share = rng.choice((0.0, 0.02, 0.1, 0.25))
    return Schedule(seed, share, tuple(sorted((*says, *breaks))))


def drawn_with_custody(seed: int) -> Schedule:
    """A schedule in which files are played first, then copies come and go."""
    rng = random.Random(f"custody {seed}")
    plain = drawn(seed)
    early = [_said(rng)._replace(at=round(rng.uniform(0.5, 10.0), 2)) for _ in range(3)]
    keeps = [_kept(rng) for _ in range(rng.randint(2, 8))]
    return Schedule(seed, plain.share, tuple(sorted((*plain.steps, *early, *keeps))), custody=True)


def drawn_with_drains(seed: int) -> Schedule:
    """A schedule in which nodes are emptied and wiped, and some of them stay after all."""
    rng = random.Random(f"drains {seed}")
    plain = drawn(seed)
    early = [_said(rng)._replace(at=round(rng.uniform(0.5, 10.0), 2)) for _ in range(3)]
    keeps = [_kept(rng, _KEEPS_ALL) for _ in range(rng.randint(0, 5))]
    steps = [*plain.steps, *early, *keeps]
    for name in rng.sample((*PLAYERS, *TRAINERS), rng.randint(1, 2)):
        if rng.random() < 0.5:
            at = round(rng.uniform(6.0, _EMPTIED_FROM_S), 2)
            steps.append(Step(at, "alone-keeps", name, rng.choice(CONFIG_KEYS)))
        at = round(rng.uniform(_EMPTIED_FROM_S, TROUBLE_S), 2)
        steps += [Step(at, "terminates", name), Step(at, "is-wiped-once-drained", name)]
        if rng.random() < 0.4:
            stays_at = round(at + rng.choice((0.5, 5.0, 20.0)) * rng.uniform(0.2, 1.8), 2)
            steps.append(Step(stays_at, "stays", name))
            if rng.random() < 0.5:
                again_at = round(stays_at + rng.uniform(0.5, 10.0), 2)
                steps.append(Step(again_at, "terminates", name))
    return Schedule(seed, plain.share, tuple(sorted(steps)), custody=True, drains=True)


def drawn_in_rhythm(seed: int) -> Schedule:
    """A schedule in which a node trains again and again, each time with data of its own."""
    rng = random.Random(f"rhythm {seed}")
    plain = drawn(seed)
    name, config_key, gap = rng.choice(TRAINERS), rng.choice(CONFIG_KEYS), rng.uniform(9.0, 14.0)
    rhythm = []
    for number in range(rng.randint(4, 6)):
        at = 1.0 + gap * (number + rng.uniform(-0.05, 0.05))
        rhythm.append(Step(round(at, 2), "trains", name, config_key))
        written = at + rng.uniform(0.1, 0.5) * gap
        rhythm.append(Step(round(written, 2), "prepares", rng.choice(PLAYERS), config_key))
    return Schedule(seed, plain.share, tuple(sorted((*plain.steps, *rhythm))), ahead=True)


def _kept(rng: random.Random, among: dict[str, int] = _KEEPS) -> Step:
    what = rng.choices(list(among), list(among.values()))[0]
    at = round(rng.uniform(8.0, 1.5 * TROUBLE_S), 2)
    length_s = round(rng.uniform(5.0, 40.0), 2)
    return Step(at, what, rng.choice(NODES), rng.choice(CONFIG_KEYS), length_s)


def _said(rng: random.Random) -> Step:
    what = rng.choices(list(_SAYS), list(_SAYS.values()))[0]
    trainer = what in ("promotes", "trains", "needs")
    name = rng.choice(TRAINERS if trainer else PLAYERS)
    return Step(_time(rng), what, name, rng.choice(CONFIG_KEYS))


def _broken(rng: random.Random) -> Step:
    what = rng.choices(list(_BREAKS), list(_BREAKS.values()))[0]
    length_s = round(rng.choice((0.1, 1.0, 8.0, 30.0)) * rng.uniform(0.5, 1.5), 2)
    if what == "agent-dies":
        return Step(_time(rng), what, rng.choice(NODES), length_s=length_s)
    if what == "bus-is-away":
        return Step(_time(rng), what, "bus", length_s=length_s)
    return Step(_time(rng), what, rng.choice(COORDINATORS), length_s=length_s)


def _time(rng: random.Random) -> float:
    return round(rng.uniform(0.5, TROUBLE_S), 2)
