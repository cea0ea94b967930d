"""The silent stop is seen by what is not done, and a child without a pulse is killed (P18).

Who waits for the bus says so, once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import pytest

from dataplane.config import DataPlaneConfig
from dataplane.daemon import Part, _kill_without_pulse, _patiently_connect
from dataplane.standstill import Progress, Standstill


def test_p18_loop_that_has_work_and_does_none_is_named() -> None:
    """After its limit, with how much waits."""
    watch = Standstill(60.0)
    assert watch.judge([Progress("bridge", 3, 7)], 0.0) == ""
    assert watch.judge([Progress("bridge", 3, 7)], 60.0) == ""
    said = watch.judge([Progress("bridge", 4, 7)], 61.0)
    assert said == "the bridge has done nothing for 61 s while 4 wait for it"


def test_loop_that_does_something_is_left_alone() -> None:
    """However much waits for it."""
    watch = Standstill(60.0)
    for turn in range(10):
        assert watch.judge([Progress("bridge", 1_000, turn)], turn * 59.0) == ""


def test_loop_that_was_idle_for_long_is_not_blamed_for_what_just_came() -> None:
    """Nothing waited for it until now."""
    watch = Standstill(60.0)
    assert watch.judge([Progress("projector", 0, 5)], 0.0) == ""
    assert watch.judge([Progress("projector", 0, 5)], 10_000.0) == ""
    assert watch.judge([Progress("projector", 1, 5)], 10_005.0) == ""


def test_time_without_a_bus_does_not_count() -> None:
    """Nobody could do anything."""
    watch = Standstill(60.0)
    watch.judge([Progress("bridge", 1, 0)], 0.0)
    watch.forget()
    assert watch.judge([Progress("bridge", 1, 0)], 100.0) == ""


def test_each_loop_is_judged_alone_and_one_that_is_gone_is_forgotten() -> None:
    """What another does is no progress of it; what comes under its name later is another."""
    watch = Standstill(60.0)
    watch.judge([Progress("transfer a", 1, 0), Progress("transfer b", 1, 0)], 0.0)
    said = watch.judge([Progress("transfer a", 1, 5), Progress("transfer b", 1, 0)], 61.0)
    assert said.startswith("the transfer b")
    watch.judge([], 62.0)
    assert watch.judge([Progress("transfer b", 1, 0)], 200.0) == ""


async def test_bus_that_is_waited_for_is_said_to_be_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried: a journal is no place for the same sentence twice a second."""
    tries = asyncio.Semaphore(0)

    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        tries.release()

    caplog.set_level(logging.INFO, "dataplane.daemon")
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as shut:
        port = shut.sockets[0].getsockname()[1]
        config = DataPlaneConfig(nats_url=f"nats://127.0.0.1:{port}")
        waiting = asyncio.create_task(_patiently_connect(config))
        async with asyncio.timeout(60):
            for _ in range(4):
                await tries.acquire()
        waiting.cancel()
    assert [record.message[:19] for record in caplog.records] == ["waiting for the bus"]


async def test_p18_child_that_is_stopped_is_killed(tmp_path: Path) -> None:
    """It exists and would for ever: SIGSTOP takes its pulse, and nothing else."""
    pulse = tmp_path / "pulse"
    touch = (
        f"import pathlib, time\nwhile True: pathlib.Path({str(pulse)!r}).touch(); time.sleep(.01)"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", touch)
    feeling = asyncio.create_task(_kill_without_pulse(child, Part.AGENT, pulse, limit_s=2.0))
    async with asyncio.timeout(60):
        while not pulse.exists():  # noqa: ASYNC110 - a process tells us nothing
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGSTOP)
        await feeling
        assert await child.wait() == -signal.SIGKILL
