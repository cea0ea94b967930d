"""Feeding targets: each input in bounded time, all of them in bounded memory.

`feed` lets hypothesis make every input, and shrinks what it finds. `pelt` takes some of those and
spoils them over and over, a hundred times as fast.
"""

from __future__ import annotations

import faulthandler
import random
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import Target

#: An input that takes longer has hung: the process ends and says where.
HUNG_S = 60.0
#: What the inputs of a target may add to the most memory that was used.
MEMORY_BYTES = 300 << 20
#: Inputs that `pelt` starts from.
CORPUS = 100
_CHARACTERS = "\x00\n\r.:*>/\\{}[]\"'%#= -_0159aZéß中\u2028\U0001f600"


def feed(target: Target, inputs: int, number: int = 0) -> None:
    """Feed so many inputs. Fails with the smallest that raises what is not declared."""
    with _bounded(target):
        _each(target, inputs, number, lambda data: _give(target, data))


def pelt(target: Target, inputs: int, number: int = 0) -> None:
    """Feed so many spoiled inputs. Fails with the first that raises what is not declared."""
    corpus: list[Any] = []
    with _bounded(target):
        _each(target, CORPUS, number, corpus.append)
        rng = random.Random(number)
        for _ in range(inputs):
            _watch()
            data = rng.choice(corpus)
            for _ in range(rng.randint(1, 4)):
                data = spoil(data, rng)
            try:
                _give(target, data)
            except BaseException as error:
                error.add_note(f"{target.name}: {data!r}")
                raise


def spoil(data: Any, rng: random.Random) -> Any:
    """Something like `data`, of the same type, that is wrong somewhere."""
    if isinstance(data, bytes):
        return _spoiled(data, rng, bytes([rng.randrange(256)]))
    if isinstance(data, str):
        return _spoiled(data, rng, rng.choice(_CHARACTERS))
    if isinstance(data, dict) and data:
        key = rng.choice([*data])
        changed = spoil(data[key], rng)
        name = spoil(key, rng) if rng.random() < 0.1 else key
        return {**{k: v for k, v in data.items() if k != key}, name: changed}
    if isinstance(data, tuple | list) and data:
        parts = list(data)
        at = rng.randrange(len(parts))
        parts[at] = spoil(parts[at], rng)
        make = getattr(data, "_make", type(data))
        return make(parts)
    return data


def _spoiled(data: Any, rng: random.Random, one: Any) -> Any:
    at, how = rng.randint(0, len(data)), rng.randrange(4)
    if how == 0:
        return data[:at] + one + data[at + 1 :]
    if how == 1:
        return data[:at] + data[at + rng.randint(1, 30) :]
    if how == 2:
        return data[:at] + data[at : at + rng.randint(1, 30)] + data[at:]
    return data[:at] + one * rng.randint(1, 3) + data[at:]


def _give(target: Target, data: Any) -> None:
    try:
        target.feed(data)
    except target.declared:
        pass


def _each(target: Target, inputs: int, number: int, take: Any) -> None:
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(target.inputs)
    def one(data: object) -> None:
        _watch()
        take(data)

    one()


@contextmanager
def _bounded(target: Target) -> Iterator[None]:
    before = _peak_bytes()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
    grown = _peak_bytes() - before
    assert grown < MEMORY_BYTES, f"{target.name}: memory grew by {grown >> 20} MiB"


def _watch() -> None:
    """From now on it counts how long an input takes."""
    faulthandler.dump_traceback_later(HUNG_S, exit=True, file=sys.__stderr__)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
