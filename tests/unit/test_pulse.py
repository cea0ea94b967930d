"""A process has a pulse as long as its event loop turns; where it does not, it ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.config import DataPlaneConfig
from dataplane.daemon import Part, Supervisor
from dataplane.pulse import PULSE_VARIABLE, SOCKET_VARIABLE

#: A process that does some work as the roles do theirs.
PROCESS = """
import asyncio, sys, threading, time
from adapters.workers import DISK, finish
from dataplane.daemon import _until_told
from dataplane.pulse import Pulse, stands_still
from streams.log import LogUnavailable, NoLongerHeld

pulse = Pulse(hung_s=float(sys.argv[2]))


async def until_told():
    await asyncio.to_thread(sys.stdin.readline)
    pulse.ready()
    await asyncio.Event().wait()


async def blocked():
    time.sleep(1000)


async def standing_still():
    began = threading.Event()

    def hang():
        began.set()
        threading.Event().wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(finish(hang))
        await asyncio.to_thread(began.wait)
        raise stands_still("the reading has done nothing for 61 s while 1 wait for it")


async def without_a_bus():
    async with asyncio.TaskGroup() as group, asyncio.TaskGroup() as parts:
        parts.create_task(failing(LogUnavailable("no answer within 30 s")))


async def with_damaged_views():
    from projections.store import StoreCorrupt

    async with asyncio.TaskGroup() as group:
        group.create_task(failing(StoreCorrupt("the views are damaged")))


async def with_a_gap_in_the_log():
    raise NoLongerHeld("it gives 136 after 83: what lies between is there no more")


async def in_error_without_a_bus():
    async with asyncio.TaskGroup() as group:
        group.create_task(failing(LogUnavailable("no answer within 30 s")))
        group.create_task(failing(ValueError("of ours")))


async def failing(error):
    raise error


async def leaving_a_thread():
    DISK.submit(threading.Event().wait)


sys.exit(asyncio.run(_until_told(globals()[sys.argv[1]](), pulse)))
"""


@contextlib.contextmanager
def process(work: str, hung_s: float, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works so."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, work, str(hung_s)],
        stdin=pipe,
        stderr=pipe,
        env={**os.environ, **environment},
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("abstract", [False, True])
def test_p18_systemd_is_told_that_it_starts_works_and_ends(abstract: bool) -> None:
    """By datagrams: more time while it starts, READY, then that it lives, then that it stops."""
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        name = uuid.uuid4().hex
        address = f"@{name}" if abstract else f"{directory}/notify"
        systemd.bind(f"\0{name}" if abstract else address)
        systemd.settimeout(60)

        def heard_until(word: str) -> list[str]:
            words: list[str] = []
            while word not in words:
                words.append(systemd.recv(1000).decode())
            return words

        with process("until_told", 20.0, **{SOCKET_VARIABLE: address}) as running:
            assert systemd.recv(1000) == b"EXTEND_TIMEOUT_USEC=75000000"
            assert running.stdin is not None
            running.stdin.write(b"\n")
            running.stdin.flush()
            assert "WATCHDOG=1" not in heard_until("READY=1")
            heard_until("WATCHDOG=1")
            running.send_signal(signal.SIGTERM)
            assert heard_until("STOPPING=1")
            assert running.wait(60) == 0


def test_p18_a_supervisor_that_can_not_be_told_ends_nothing(tmp_path: Path) -> None:
    """Its socket is gone: the process works on."""
    pulse = tmp_path / "pulse"
    nowhere = {SOCKET_VARIABLE: str(tmp_path / "gone"), PULSE_VARIABLE: str(pulse)}
    with process("until_told", 20.0, **nowhere) as running:
        assert running.stdin is not None
        running.stdin.write(b"\n")
        running.stdin.flush()
        while not pulse.exists():
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def test_p18_a_process_whose_event_loop_does_not_turn_ends_and_says_where_it_stood() -> None:
    """Nobody supervises it, and nothing of Python runs in it any more."""
    with process("blocked", 1.0) as running:
        _, said = running.communicate(timeout=60)
        assert running.returncode == 1
        assert b"in blocked" in said


def test_p18_a_process_that_stands_still_ends_also_where_a_thread_holds_it() -> None:
    """It can't end in order: a cancelled task waits for the thread, and so would Python."""
    with process("standing_still", 2.0) as running:
        _, said = running.communicate(timeout=60)
        assert running.returncode == 1
        assert b"the reading has done nothing" in said
        assert b"in held_up" in said or b"Thread" in said


@pytest.mark.parametrize(
    ("work", "status", "words"),
    [
        ("without_a_bus", 3, b"no answer within 30 s"),
        ("with_damaged_views", 3, b"the views are damaged"),
        ("with_a_gap_in_the_log", 3, b"is restored from its archive, onto an empty bus"),
        ("in_error_without_a_bus", 1, b"ValueError: of ours"),
    ],
)
def test_process_that_ends_for_want_of_a_bus_or_of_sound_views_says_so_and_no_more(
    work: str, status: int, words: bytes
) -> None:
    """A supervisor starts it again, and nobody reads a traceback; an error of ours has one."""
    with process(work, 20.0) as running:
        _, said = running.communicate(timeout=60)
        assert (running.returncode, words in said) == (status, True)
        assert (b"Traceback" in said) is (status == 1)


def test_p18_a_process_that_has_ended_is_not_kept_by_a_thread() -> None:
    """Python waits for all threads before it exits, however long."""
    with process("leaving_a_thread", 2.0) as running:
        _, said = running.communicate(timeout=60)
        assert running.returncode == 1
        assert b"Thread" in said


async def test_children_do_not_speak_to_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a pulse of their own; that all is well is said by the process that is the unit."""
    given: list[dict[str, str]] = []

    class Ended:
        pid, returncode = 1, 0

        async def wait(self) -> int:
            return 0

    async def started(*_: object, env: dict[str, str], **__: Any) -> Ended:
        given.append(env)
        return Ended()

    monkeypatch.setenv(SOCKET_VARIABLE, "/run/systemd/notify")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", started)
    supervisor = Supervisor(DataPlaneConfig(state_dir=tmp_path))
    assert await supervisor._run_child(Part.AGENT) == 0
    assert SOCKET_VARIABLE not in given[0]
    assert given[0][PULSE_VARIABLE] == str(tmp_path / "pulse.agent")
