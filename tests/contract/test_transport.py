"""What every transport must do, whatever carries its bytes: one contract, both ways.

Each is run between this process and a far end, through a proxy that can be cut, stopped, slowed and
spoiled. What only one transport promises is tested elsewhere: HTTP in ``unit/test_server.py``, SSH
in ``integration/test_ssh_transports.py``, S3 in ``integration/test_s3.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.errors import (
    DigestMismatch,
    DiskFull,
    EntryMissing,
    Interrupted,
    NeverReplaced,
    PathEscapes,
    Refused,
    Regression,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.files.landing import Landed, Landing
from adapters.files.places import OWN_DIRECTORY
from adapters.s3 import layout
from adapters.throttle import Throttle
from adapters.transport import Progress
from streams.values import DataEntry, DataType, Endpoint
from tests.contract.rigs import FAR, Rig, files_in, left_in
from tests.memory import forget_peak, memory

#: How large the file is that passes through little memory: ``make slow`` makes it 5 GiB.
SPARSE_MIB = int(os.environ.get("DATAPLANE_SPARSE_MIB", "128"))
#: And what the memory may grow by, whatever that is.
GROWTH_BYTES = 72 << 20
#: Long enough for 5 MiB a second.
PATIENCE_S = max(90.0, SPARSE_MIB / 5)
PATH = "data/gpu-7/x.bin"
#: Every error that is the far end's names it.
FAR_END = f"^({FAR}|s3://)"
NAMES = [
    "棋譜/gpu-7/ゲーム 1.bin",
    "a?b=c&d#e%2f/ü.bin",
    "we[i]rd *?.bin",
    "'quotes' \"and\" $HOME `x`.bin",
    "-rf",
    "n" * 255,
]
#: So much that an attempt can be stopped in its middle, and S3 has whole parts of it.
LARGE = 12_000_000
HALF = 7_000_000
_NUMBERS = itertools.count()


def entry_of(data: bytes, path: str = PATH, mtime: float = 0.0) -> DataEntry:
    """An entry that means exactly `data`."""
    return DataEntry(
        path=path,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        mtime=mtime,
    )


def file_of(tmp_path: Path, data: bytes) -> Path:
    """A file that holds `data`."""
    (tmp_path / "held").mkdir(exist_ok=True)
    file = tmp_path / "held" / f"{next(_NUMBERS)}.bin"
    file.write_bytes(data)
    return file


def offered(rig: Rig, tmp_path: Path, data: bytes, path: str = PATH) -> DataEntry:
    """An entry whose content the far end offers."""
    entry = entry_of(data, path)
    rig.hold(entry, file_of(tmp_path, data))
    return entry


async def fetch(
    rig: Rig,
    landing: Landing,
    *,
    stall_s: float = 20.0,
    throttle: Throttle | None = None,
    progress: Progress = lambda *_: None,
) -> int:
    """One attempt to fetch."""
    request = rig.request(landing.entry, "t-1", PATH, stall_s, 10.0)
    async with asyncio.timeout(PATIENCE_S):
        return await rig.fetches.fetch(request, landing, throttle or Throttle(), progress)


async def bring(rig: Rig, root: Path, entry: DataEntry, local: str = PATH) -> tuple[int, Landed]:
    """Fetch and commit: bytes that moved, and what landed."""
    landing = await Landing.open(root, entry, "t-1", local)
    try:
        came = await fetch(rig, landing)
        return came, await landing.commit()
    finally:
        await landing.abort()


async def push(
    rig: Rig,
    entry: DataEntry,
    file: Path,
    *,
    local: str = "",
    stall_s: float = 20.0,
    throttle: Throttle | None = None,
    progress: Progress = lambda *_: None,
) -> int:
    """One attempt to push."""
    request = rig.request(entry, "t-1", local or entry.path, stall_s, 10.0)
    async with asyncio.timeout(PATIENCE_S):
        return await rig.pushes.push(request, file, throttle or Throttle(), progress)


def name_there(rig: Rig, entry: DataEntry) -> str:
    """What a pushed entry is called at the far end."""
    return entry.path if rig.lands else layout.object_key(entry.checksum)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# Fetching


@pytest.mark.parametrize("size", [0, 1, 70_000, LARGE])
async def test_an_entry_arrives_byte_for_byte(
    rig: Rig, tmp_path: Path, root: Path, size: int
) -> None:
    """Empty, tiny and large; as many bytes are reported as moved, and nothing else stays."""
    data = os.urandom(size)
    entry = offered(rig, tmp_path, data)
    assert await bring(rig, root, entry) == (size, Landed(bytes=size))
    assert files_in(root) == {PATH: data}
    assert left_in(root) == []


@pytest.mark.parametrize("path", NAMES)
async def test_names_in_any_script_arrive(rig: Rig, tmp_path: Path, root: Path, path: str) -> None:
    """Neither a transport nor a landing takes a name for anything but a name."""
    entry = offered(rig, tmp_path, b"content", path)
    await bring(rig, root, entry, path)
    assert files_in(root) == {path: b"content"}


async def test_many_fetches_run_at_once(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Each into its own landing, and none gets another's bytes."""
    contents = {f"data/{number}.bin": os.urandom(50_000 + number) for number in range(16)}
    entries = [offered(rig, tmp_path, data, path) for path, data in contents.items()]
    await asyncio.gather(*(bring(rig, root, entry, entry.path) for entry in entries))
    assert files_in(root) == contents


async def test_p6_a_broken_fetch_goes_on_where_it_was(rig: Rig, tmp_path: Path, root: Path) -> None:
    """The first attempt ends as interrupted, and the second brings only what is lacking."""
    data = os.urandom(LARGE)
    entry = offered(rig, tmp_path, data)
    rig.link.down, rig.link.cuts = HALF, True
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Interrupted, match=FAR_END):
        await fetch(rig, landing)
    await landing.abort()
    assert files_in(root) == {}
    kept = landing.offset
    assert 0 < kept < LARGE
    rig.link.heal()
    came, landed = await bring(rig, root, entry)
    assert (came, landed.bytes) == (LARGE - kept, LARGE)
    assert files_in(root) == {PATH: data}
    assert left_in(root) == []


async def test_p6_a_file_arrives_though_every_connection_is_cut(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Each connection lives for 2 MB; attempt after attempt goes on, and no byte comes twice."""
    data = os.urandom(LARGE)
    entry = offered(rig, tmp_path, data)
    rig.link.cut_after_bytes = 2_000_000
    attempts = 0
    landing = await Landing.open(root, entry, "t-1", PATH)
    while landing.offset < LARGE:
        before = landing.offset
        try:
            await fetch(rig, landing)
        except Interrupted:
            attempts += 1
            assert attempts < 60
            assert landing.offset >= before
    assert await landing.commit() == Landed(bytes=LARGE)
    assert rig.link.connections > 3
    assert attempts == 0 if rig.by_blocks else attempts >= 3
    assert files_in(root) == {PATH: data}


async def test_p15_bytes_are_those_that_moved(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Nothing moves if all is there already; progress never runs ahead of what is there."""
    data = os.urandom(6_000_000)
    entry = offered(rig, tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    told: list[tuple[int, int]] = []
    came = await fetch(rig, landing, progress=lambda *said: told.append(said))
    assert came == len(data) <= rig.link.passed_down < len(data) * rig.swell + 60_000
    assert told[-1] == (len(data), len(data))
    assert told == sorted(told)
    assert all(done <= total == len(data) for done, total in told)
    asked = rig.link.connections
    assert await fetch(rig, landing) == 0
    assert rig.link.connections == asked
    await landing.commit()


async def test_p22_wrong_content_of_the_right_size_never_lands(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """A source that gives other bytes of the right number is found out, and nothing is kept."""
    entry = entry_of(b"right" * 1000)
    rig.hold(entry, file_of(tmp_path, b"wrong" * 1000))
    with pytest.raises(DigestMismatch):
        await bring(rig, root, entry)
    assert files_in(root) == {}
    again = await Landing.open(root, entry, "t-1", PATH)
    assert again.offset == 0
    await again.abort()


@pytest.mark.parametrize("size", [10, 30])
async def test_k16_content_of_another_size_is_not_even_begun(
    rig: Rig, tmp_path: Path, root: Path, size: int
) -> None:
    """Size and digest are asked before the bytes."""
    entry = entry_of(b"x" * 20)
    rig.hold(entry, file_of(tmp_path, b"x" * size))
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises((EntryMissing, DigestMismatch)):
        await fetch(rig, landing)
    assert landing.offset == 0
    await landing.abort()


async def test_p6_a_source_that_changes_between_attempts_is_found_out(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Half of one version and half of another never land, and the next attempt begins anew."""
    old, new = os.urandom(LARGE), os.urandom(LARGE)
    entry = entry_of(old)
    rig.hold(entry, file_of(tmp_path, old))
    rig.link.down, rig.link.cuts = HALF, True
    landing = await Landing.open(root, entry, "t-1", PATH)
    with pytest.raises(Interrupted):
        await fetch(rig, landing)
    await landing.abort()
    rig.hold(entry, file_of(tmp_path, new))
    rig.link.heal()
    with pytest.raises(DigestMismatch):
        await bring(rig, root, entry)
    assert files_in(root) == {}
    rig.hold(entry, file_of(tmp_path, old))
    assert await bring(rig, root, entry) == (LARGE, Landed(bytes=LARGE))


async def test_p6_a_source_that_changes_under_way_is_found_out(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Whoever writes into a file while it is sent spoils the attempt, not the target."""
    data = os.urandom(LARGE)
    entry, file = entry_of(data), file_of(tmp_path, data)
    rig.hold(entry, file)
    landing = await Landing.open(root, entry, "t-1", PATH)
    throttle = Throttle(8)
    fetching = asyncio.create_task(fetch(rig, landing, throttle=throttle))
    await until(lambda: landing.offset > 0)
    if rig.lands:
        file.write_bytes(os.urandom(LARGE))
    else:
        rig.hold(entry, file_of(tmp_path, os.urandom(LARGE)))
    throttle.set_rate(0)
    with pytest.raises((DigestMismatch, Interrupted, EntryMissing)):
        await fetching
        await landing.commit()
    await landing.abort()
    assert files_in(root) == {}


async def test_p22_a_byte_spoiled_on_the_way_never_lands(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """The digest catches it, or the connection does; then it comes whole."""
    data = os.urandom(3_000_000)
    entry = offered(rig, tmp_path, data)
    rig.link.spoil_at = [1_500_000]
    if rig.by_blocks:
        came, _ = await bring(rig, root, entry)
        assert came > len(data)
    else:
        with pytest.raises((DigestMismatch, Interrupted, Refused)):
            await bring(rig, root, entry)
        assert files_in(root) == {}
    assert rig.link.spoil_at == []
    _, landed = await bring(rig, root, entry)
    assert landed == Landed(bytes=len(data))
    assert files_in(root) == {PATH: data}


async def test_what_the_source_does_not_hold_is_missing(rig: Rig, root: Path) -> None:
    """Another source may have it; another transport to this one would not help."""
    entry = entry_of(b"nobody has this")
    with pytest.raises(EntryMissing) as caught:
        await bring(rig, root, entry)
    assert not caught.value.try_next_transport


async def test_what_has_become_a_directory_is_missing(rig: Rig, tmp_path: Path, root: Path) -> None:
    """As what is gone: nothing of what is in it comes, and nothing of it is left here."""
    data = os.urandom(70_000)
    entry, file = entry_of(data), file_of(tmp_path, data)
    if rig.lands:
        rig.hold(entry, file)
    file.unlink()
    file.mkdir()
    (file / "x.bin").write_bytes(data)
    with pytest.raises(EntryMissing, match=FAR_END):
        await bring(rig, root, entry)
    assert files_in(root) == {}
    assert [name for name in left_in(root) if not name.endswith(".partial")] == []


async def test_a_source_that_does_not_trust_us_refuses(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """That is not the same as being away, or as not having it."""
    entry = offered(rig, tmp_path, b"x")
    before = rig.fetches
    rig.distrust()
    with pytest.raises(Refused):
        await bring(rig, root, entry)
    with pytest.raises(Refused):
        await push(rig, entry, file_of(tmp_path, b"x"))
    await before.close()


async def test_a_far_end_that_is_away_is_unreachable(rig: Rig, tmp_path: Path, root: Path) -> None:
    """Nobody listens there, either way."""
    entry = offered(rig, tmp_path, b"x")
    await rig.link.close()
    with pytest.raises(Unreachable, match=FAR_END):
        await bring(rig, root, entry)
    with pytest.raises(Unreachable, match=FAR_END):
        await push(rig, entry, file_of(tmp_path, b"x"))


@pytest.mark.parametrize("passes", [0, HALF])
async def test_k13_silence_ends_a_fetch_as_stalled(
    rig: Rig, tmp_path: Path, root: Path, passes: int
) -> None:
    """Before the first byte or after many; what came is kept, and the silent way not used again."""
    data = os.urandom(LARGE)
    entry = offered(rig, tmp_path, data)
    rig.link.down = passes
    landing = await Landing.open(root, entry, "t-1", PATH)
    request = rig.request(entry, "t-1", PATH, 3.0 if passes else 0.5, 5.0 if passes else 1.0)
    with pytest.raises((Stalled, Unreachable) if not passes else Stalled, match=FAR_END):
        await rig.fetches.fetch(request, landing, Throttle(), lambda *_: None)
    await landing.abort()
    assert (landing.offset > 0) == (passes > 0)
    rig.link.heal()
    came, _ = await bring(rig, root, entry)
    assert came == LARGE - landing.offset
    assert files_in(root) == {PATH: data}


async def test_the_grant_bounds_a_fetch_and_waiting_for_it_is_no_silence(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """What the limit makes it wait for takes longer than silence may."""
    data = os.urandom(2_500_000)
    entry = offered(rig, tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    throttle, loop = Throttle(8), asyncio.get_running_loop()
    began = loop.time()
    assert await fetch(rig, landing, stall_s=1.0, throttle=throttle) == len(data)
    assert loop.time() - began > 1.5
    await landing.commit()


async def test_a_raised_grant_is_felt_by_a_fetch_under_way(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """What would take minutes ends once its limit is lifted."""
    data = os.urandom(6_000_000)
    entry = offered(rig, tmp_path, data)
    landing = await Landing.open(root, entry, "t-1", PATH)
    throttle = Throttle(2)
    fetching = asyncio.create_task(fetch(rig, landing, throttle=throttle))
    await until(lambda: landing.offset > 0)
    assert not fetching.done()
    throttle.set_rate(0)
    assert await fetching == len(data)
    await landing.commit()


async def test_a_lowered_grant_is_felt_by_a_fetch_under_way(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """What would be there within a second is not."""
    entry = offered(rig, tmp_path, os.urandom(16_000_000))
    landing = await Landing.open(root, entry, "t-1", PATH)
    throttle = Throttle(64)
    fetching = asyncio.create_task(fetch(rig, landing, throttle=throttle))
    await until(lambda: landing.offset > 0)
    throttle.set_rate(1)
    done, _ = await asyncio.wait([fetching], timeout=2.5)
    assert not done
    assert 0 < landing.offset < entry.size_bytes
    fetching.cancel()
    await asyncio.wait([fetching])
    await landing.abort()


async def test_p12_what_a_grant_holds_back_stays_at_the_source(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """It does not come all the same, to wait in this machine's memory."""
    entry = offered(rig, tmp_path, os.urandom(48_000_000))
    landing = await Landing.open(root, entry, "t-1", PATH)
    fetching = asyncio.create_task(fetch(rig, landing, throttle=Throttle(8)))
    await until(lambda: landing.offset > 2_000_000)
    assert rig.link.passed_down < entry.size_bytes / 2
    fetching.cancel()
    await asyncio.wait([fetching])
    await landing.abort()


async def test_a_cancelled_fetch_leaves_only_its_bytes(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """No file, no process; and the next attempt goes on from there."""
    data = os.urandom(LARGE)
    entry = offered(rig, tmp_path, data)
    rig.link.down = HALF
    landing = await Landing.open(root, entry, "t-1", PATH)
    fetching = asyncio.create_task(fetch(rig, landing))
    await until(lambda: landing.offset > 0 and rig.link.used_up.is_set())
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await landing.abort()
    assert files_in(root) == {}
    assert len(left_in(root)) == 1
    rig.link.heal()
    came, _ = await bring(rig, root, entry)
    assert came == LARGE - landing.offset < LARGE
    assert files_in(root) == {PATH: data}


async def test_p19_an_escaping_path_is_refused_before_a_byte_moves(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Whatever a log says."""
    entry = offered(rig, tmp_path, b"x", "../../etc/x")
    with pytest.raises(PathEscapes):
        await bring(rig, root, entry, entry.path)
    assert rig.link.connections == 0


async def test_p12_memory_does_not_grow_with_the_file(rig: Rig, tmp_path: Path, root: Path) -> None:
    """A sparse file passes through a few blocks of memory, both ways and at both ends."""
    size, digest = SPARSE_MIB << 20, hashlib.sha256()
    for _ in range(SPARSE_MIB):
        digest.update(bytes(1 << 20))
    file = tmp_path / "sparse"
    file.touch()
    os.truncate(file, size)
    entry = DataEntry(
        path=PATH,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=size,
        checksum=f"sha256:{digest.hexdigest()}",
    )
    before = memory("VmRSS")
    forget_peak()
    assert await push(rig, entry, file) == size
    rig.hold(entry, file)
    assert await bring(rig, root, entry) == (size, Landed(bytes=size))
    assert memory("VmHWM") - before < GROWTH_BYTES


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path, str], Path]]:
    """Mounts a small disk somewhere, and takes it away."""
    assert os.geteuid() == 0, "mounting a small disk needs root"
    mounts: list[Path] = []

    def mount(path: Path, size: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
        mounts.append(path)
        return path

    yield mount
    for path in mounts:
        subprocess.run(["umount", "-l", path], check=True)


async def test_a_full_disk_is_said_before_a_byte_moves(
    rig: Rig, tmp_path: Path, mounted: Callable[[Path, str], Path]
) -> None:
    """An entry that does not fit with its reserve is not begun."""
    disk = mounted(tmp_path / "disk", "2m")
    entry = offered(rig, tmp_path, os.urandom(2_000_000))
    with pytest.raises(DiskFull):
        await bring(rig, disk, entry)
    assert rig.link.connections == 0


async def test_a_disk_that_fills_up_on_the_way_is_no_fault_of_the_source(
    rig: Rig, tmp_path: Path, mounted: Callable[[Path, str], Path]
) -> None:
    """The attempt ends as DiskFull, not as interrupted."""
    disk = mounted(tmp_path / "disk", "2m")
    entry = offered(rig, tmp_path, os.urandom(1_500_000))
    landing = await Landing.open(disk, entry, "t-1", PATH)
    (disk / "other").write_bytes(bytes(1_000_000))
    with pytest.raises(DiskFull):
        await fetch(rig, landing)
        await landing.commit()
    await landing.abort()
    assert files_in(disk).keys() == {"other"}


# Pushing


@pytest.mark.parametrize("size", [0, 1, 70_000, LARGE])
async def test_a_pushed_file_arrives_byte_for_byte(rig: Rig, tmp_path: Path, size: int) -> None:
    """With its time, readable by all, written by one; and nothing else stays."""
    data = os.urandom(size)
    file = file_of(tmp_path, data)
    file.chmod(0o600)
    entry = entry_of(data, mtime=1_700_000_000)
    told: list[tuple[int, int]] = []
    assert await push(rig, entry, file, progress=lambda *both: told.append(both)) == size
    assert rig.here() == {name_there(rig, entry): data}
    assert not size or told[-1] == (size, size)
    assert told == sorted(told)
    if rig.lands:
        assert left_in(rig.root) == []
        stat = (rig.root / PATH).stat()
        assert (stat.st_mode & 0o777, stat.st_mtime) == (0o644, 1_700_000_000)


@pytest.mark.parametrize("path", NAMES)
async def test_any_name_is_pushed_as_it_is(rig: Rig, tmp_path: Path, path: str) -> None:
    """Quotes, patterns and spaces are no more than that, at the far end too."""
    entry = entry_of(b"content", path)
    assert await push(rig, entry, file_of(tmp_path, b"content")) == 7
    assert rig.here() == {name_there(rig, entry): b"content"}


async def test_p6_a_broken_push_goes_on_where_it_was(rig: Rig, tmp_path: Path) -> None:
    """What came is kept beside, bound to the digest, and not sent twice."""
    data = os.urandom(LARGE)
    entry, file = entry_of(data), file_of(tmp_path, data)
    rig.link.up, rig.link.cuts = HALF, True
    with pytest.raises(Interrupted, match=FAR_END):
        await push(rig, entry, file)
    assert rig.here() == {}
    rig.link.heal()
    assert 0 < await push(rig, entry, file) < LARGE
    assert rig.here() == {name_there(rig, entry): data}


async def test_p22_a_push_of_other_bytes_never_lands(rig: Rig, tmp_path: Path) -> None:
    """The far end proves the digest before there is a name; then the right bytes still come."""
    entry = entry_of(b"right" * 1000)
    with pytest.raises(DigestMismatch):
        await push(rig, entry, file_of(tmp_path, b"wrong" * 1000))
    assert rig.here() == {}
    assert await push(rig, entry, file_of(tmp_path, b"right" * 1000)) == 5000
    assert rig.here() == {name_there(rig, entry): b"right" * 1000}


async def test_a_file_to_be_sent_that_is_not_the_entry_is_not_sent(
    rig: Rig, tmp_path: Path
) -> None:
    """It is gone, or its size shows it."""
    entry = entry_of(b"x" * 20)
    wrong = [file_of(tmp_path, b"x" * size) for size in (10, 30)]
    for file in (*wrong, tmp_path / "gone"):
        with pytest.raises((EntryMissing, DigestMismatch)):
            await push(rig, entry, file)
    assert rig.here() == {}


async def test_p6_a_file_that_changes_while_it_is_pushed_never_lands(
    rig: Rig, tmp_path: Path
) -> None:
    """Even if whoever wrote to it had promised not to."""
    data = os.urandom(LARGE)
    entry, file = entry_of(data), file_of(tmp_path, data)
    changed: list[int] = []

    def spoil(done: int, _total: int) -> None:
        if done and not changed:
            changed.append(done)
            with file.open("r+b") as opened:
                opened.seek(LARGE - 1000)
                opened.write(b"changed")

    with pytest.raises((DigestMismatch, Interrupted)):
        await push(rig, entry, file, throttle=Throttle(40), progress=spoil)
    assert changed
    assert rig.here() == {}


async def test_k13_a_far_end_that_takes_no_more_ends_a_push_as_stalled(
    rig: Rig, tmp_path: Path
) -> None:
    """The connection stands and nothing moves; what was taken is not sent again."""
    data = os.urandom(LARGE * 2)
    entry, file = entry_of(data), file_of(tmp_path, data)
    rig.link.up = HALF
    with pytest.raises(Stalled, match=FAR_END):
        await push(rig, entry, file, stall_s=2.0)
    assert rig.here() == {}
    rig.link.heal()
    rig.link.cut()
    assert await push(rig, entry, file) < len(data)
    assert rig.here() == {name_there(rig, entry): data}


async def test_a_cancelled_push_leaves_only_its_bytes(rig: Rig, tmp_path: Path) -> None:
    """The final name never appears, not even later, and the next attempt goes on from there."""
    data = os.urandom(LARGE)
    entry, file = entry_of(data), file_of(tmp_path, data)
    rig.link.up = HALF
    pushing = asyncio.create_task(push(rig, entry, file))
    await until(rig.link.used_up.is_set)
    partials = rig.root / OWN_DIRECTORY / "partial"
    await until(lambda: not rig.lands or any(p.stat().st_size for p in partials.glob("*")))
    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    assert rig.here() == {}
    rig.link.heal()
    rig.link.cut()
    assert await push(rig, entry, file) < LARGE
    assert rig.here() == {name_there(rig, entry): data}


async def test_the_grant_bounds_a_push_and_waiting_for_it_is_no_silence(
    rig: Rig, tmp_path: Path
) -> None:
    """What the limit makes it wait for takes longer than silence may."""
    data = os.urandom(4_000_000)
    entry, file = entry_of(data), file_of(tmp_path, data)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await push(rig, entry, file, throttle=Throttle(8), stall_s=2.0) == len(data)
    assert loop.time() - began > 2.5


async def test_a_changed_grant_is_felt_by_a_push_under_way(rig: Rig, tmp_path: Path) -> None:
    """Lowered, what would be there within a second is not; lifted, it soon is."""
    data = os.urandom(6_000_000)
    entry, file = entry_of(data), file_of(tmp_path, data)
    throttle = Throttle(24)
    told: list[int] = []
    pushing = asyncio.create_task(
        push(rig, entry, file, throttle=throttle, progress=lambda done, _: told.append(done))
    )
    await until(lambda: bool(told) and told[-1] > 0)
    throttle.set_rate(0.5)
    done, _ = await asyncio.wait([pushing], timeout=2.5)
    assert not done
    throttle.set_rate(0)
    assert await pushing == len(data)
    assert rig.here() == {name_there(rig, entry): data}


async def test_a_full_target_is_said_before_a_byte_is_pushed(
    rig: Rig, tmp_path: Path, mounted: Callable[[Path, str], Path]
) -> None:
    """An entry that does not fit with its reserve is not begun. A bucket has no end."""
    if not rig.lands:
        return
    mounted(rig.root, "2m")
    data = os.urandom(2_000_000)
    with pytest.raises(DiskFull):
        await push(rig, entry_of(data), file_of(tmp_path, data))
    assert left_in(rig.root) == []


@pytest.mark.parametrize("local", ["../x", "/etc/x", "a/../../x", ".dataplane/x", "a//b"])
async def test_p19_a_push_never_leaves_the_data_root(rig: Rig, tmp_path: Path, local: str) -> None:
    """Whatever a log says; a bucket knows no paths."""
    if rig.lands:
        entry = entry_of(b"x", local)
        with pytest.raises((PathEscapes, Refused)):
            await push(rig, entry, file_of(tmp_path, b"x"))
        assert rig.here() == {}


async def test_p19_a_symlink_does_not_lead_a_push_out(rig: Rig, tmp_path: Path) -> None:
    """Within the root it may lead anywhere."""
    if not rig.lands:
        return
    (tmp_path / "outside").mkdir()
    (rig.root / "models").mkdir()
    (rig.root / "out").symlink_to(tmp_path / "outside")
    (rig.root / "in").symlink_to("models")
    file = file_of(tmp_path, b"x")
    for local in ("out/x.bin", "out/deeper/x.bin"):
        with pytest.raises(PathEscapes):
            await push(rig, entry_of(b"x", local), file)
    assert list((tmp_path / "outside").iterdir()) == []
    await push(rig, entry_of(b"x", "in/x.bin"), file)
    assert (rig.root / "models/x.bin").read_bytes() == b"x"


async def test_p5_p21_a_push_replaces_only_what_may_be_replaced(rig: Rig, tmp_path: Path) -> None:
    """No directory, no merged database, no much larger training set, whoever lands it."""
    if not rig.lands:
        return
    for local, old in (("metadata/elo.db", b"old"), ("npz/a.npz", b"o" * 100)):
        (rig.root / local).parent.mkdir(exist_ok=True)
        (rig.root / local).write_bytes(old)
    (rig.root / "directory").mkdir()
    data = b"n" * 70
    file = file_of(tmp_path, data)
    refusals: list[tuple[str, type[TransportError]]] = [
        ("directory", NeverReplaced),
        ("metadata/elo.db", NeverReplaced),
        ("npz/a.npz", Regression),
    ]
    for local, error in refusals:
        with pytest.raises(error):
            await push(rig, entry_of(data, local), file)
    assert (rig.root / "metadata/elo.db").read_bytes() == b"old"
    assert list((rig.root / "directory").iterdir()) == []


async def test_p7_no_old_journal_stays_beside_a_pushed_database(rig: Rig, tmp_path: Path) -> None:
    """SQLite would play it back into the new one."""
    if not rig.lands:
        return
    for name in ("x.db-wal", "x.db-shm", "x.db-journal", "y.db-wal"):
        (rig.root / name).write_bytes(b"old")
    database = tmp_path / "new.db"
    with contextlib.closing(sqlite3.connect(database)) as fresh:
        fresh.execute("CREATE TABLE games (game_id)")
    data = database.read_bytes()
    await push(rig, entry_of(data, "x.db"), database)
    assert rig.here() == {"x.db": data, "y.db-wal": b"old"}


async def test_an_endpoint_that_says_no_address_is_unreachable(
    rig: Rig, tmp_path: Path, root: Path
) -> None:
    """Another transport may know how to get there. A bucket is not asked where it is."""
    if not rig.lands:
        return
    entry = offered(rig, tmp_path, b"x")
    rig.far = Endpoint(node="gpu-7", data_root=str(rig.root))
    with pytest.raises(Unreachable, match=FAR_END):
        await bring(rig, root, entry)
    with pytest.raises(Unreachable, match=FAR_END):
        await push(rig, entry, file_of(tmp_path, b"x"))
