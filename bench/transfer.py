"""Every transport beside the tool that people would use instead, in one run, in adjacent turns.

One large file, many small ones, and the memory of a very large one. Ours always ends with a digest
proven and a file synced under its final name; what the peers leave out is said in the notes. A peer
that is not installed is said, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bench import many, peers
from bench.ends import Ends, File, running_ends
from bench.measuring import Usage, emptied, process, settle, workplace
from bench.moving import idle_and_peak, move
from bench.report import Report, begin, paired

#: MiB of the large file, small files, those through S3 (whose server takes milliseconds for each),
#: MiB of the file whose memory is measured, and rounds.
SMALL_RUN = (128, 1000, 300, 512, 3)
FULL = (1024, 10_000, 2000, 5120, 3)
FILE_KIB = 20
#: The sides that are compared, and which way bytes go.
LARGE = ("http", "p2p", "rsync", "rsync push", "base64", "base64 push", "s3 down", "s3 up")
SMALL = ("p2p", "http", "http push", "rsync", "s3 down", "s3 up")
#: Small files all the way, from a trigger to its announcement.
CHAIN = "chain"
#: A peer that takes so many times as long as ours is run once: its ratio is no close one.
SLOW = 4.0
#: So much less of a very large file goes through base64, whose memory is as flat after less of it.
BASE64_SHARE = 5
_MEGABYTE = 1e6
Way = Callable[[Path], Usage]


def run(
    size_mib: int,
    files: int,
    s3_files: int,
    memory_mib: int,
    rounds: int,
    only: tuple[str, ...],
    seed: int,
    base: Path | None,
) -> Report:
    """Move in each way and beside each peer; ``only`` names sides or `CHAIN`, else all are run."""
    report = begin(
        "transfer",
        seed,
        size_mib=size_mib,
        files=files,
        file_kib=FILE_KIB,
        s3_files=s3_files,
        memory_mib=memory_mib,
        rounds=rounds,
    )
    report.machine["peers"] = peers.versions()
    with workplace(base) as place, running_ends(place / "ends") as ends:
        ends.fills_bucket = not only or any(side.startswith("s3") for side in only)
        large = ends.make(place / "large", [size_mib << 20], seed)
        _compare(report, ends, large, "large", _wanted(LARGE, only), rounds, place)
        some = ends.make(place / "some", [FILE_KIB << 10] * s3_files, seed)
        ends.fills_bucket = False
        small = ends.make(place / "small", [FILE_KIB << 10] * files, seed)
        for side in _wanted(SMALL, only):
            given = some if side.startswith("s3") else small
            _compare(report, ends, given, "small", (side,), rounds, place)
        if _wanted((CHAIN,), only):
            _tell_chain(report, place, s3_files, seed)
        ends.fills_bucket = "s3 down" in _wanted(LARGE, only)
        _measure_memory(report, ends, memory_mib, _wanted(LARGE, only), place)
    report.notes += [
        "Ours proves SHA-256, checks the file's type, syncs it and its directory; curl, rclone, "
        "rsync and aws do none of it, or compare sums of their own.",
        "A rented disk may take a burst and then a quarter of that: whoever syncs waits for it, "
        "whoever leaves its bytes in memory does not. What the disk alone takes stands beside.",
        "Both ends run on this machine's cores: what one side spends, the other lacks.",
        "ssh is given the cipher that ours takes, which OpenSSH would not; as typed it is not.",
        "Ours is timed in a process that runs already, as an agent does; a command from its start.",
        f"A peer that takes {SLOW:g} times as long as ours is run once.",
    ]
    absent = [name for name, said in peers.versions().items() if said == peers.ABSENT]
    report.notes += [f"{name} is not installed here, so nothing is beside it." for name in absent]
    return report


def _wanted(sides: tuple[str, ...], only: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(side for side in sides if not only or side in only)


def _compare(
    report: Report,
    ends: Ends,
    given: list[File],
    what: str,
    sides: tuple[str, ...],
    rounds: int,
    place: Path,
) -> None:
    for side in sides:
        with process() as agent:
            ways: dict[str, Way] = {
                side: lambda target, side=side, agent=agent: agent.submit(  # type: ignore[misc]
                    move, ends.setting, side, given, target
                ).result()
            }
            others = peers.ways(ends, side, given)
            assert side not in others, "a peer has the name of the side it stands beside"
            ways |= others
            found: dict[str, list[Usage]] = {name: [] for name in ways}
            # Once for nothing: connections, imports, caches.
            first = _turn(ways, 0, place, ends, given)
            for name, used in first.items():
                if used.seconds > SLOW * first[side].seconds:
                    found[name].append(used)
                    del ways[name]
            for number in range(rounds):
                for name, used in _turn(ways, number, place, ends, given).items():
                    found[name].append(used)
        _tell(report, f"{what}: {side}", side, given, found)


def _turn(
    ways: dict[str, Way], number: int, place: Path, ends: Ends, given: list[File]
) -> dict[str, Usage]:
    """Every way once, each into a new place that is emptied; every second turn backwards."""
    found = {}
    size_bytes = sum(file.entry.size_bytes for file in given)
    for name in ways if number % 2 == 0 else reversed(ways):
        target = place / "target"
        target.mkdir()
        ends.renew()
        settle(place / "warm", size_bytes)
        found[name] = ways[name](target)
        emptied(target, place / "emptied")
    return found


def _tell(
    report: Report,
    title: str,
    side: str,
    given: list[File],
    found: dict[str, list[Usage]],
) -> None:
    many = len(given) > 1
    amount = len(given) if many else given[0].entry.size_bytes / _MEGABYTE
    unit = "files/s" if many else "MB/s"
    rates = {name: [amount / used.seconds for used in turns] for name, turns in found.items()}
    ours = rates.pop(side)
    report.add(title, ours, unit)
    for peer, theirs in rates.items():
        report.add(f"  {peer}", theirs, unit)
        pairs = ours[-len(theirs) :]
        report.add(f"  {title} beside {peer}", ours, unit, paired(pairs, theirs), peer)


def _tell_chain(report: Report, place: Path, count: int, seed: int) -> None:
    found = many.run(place / "chain", count, FILE_KIB << 10, seed)
    report.add(f"small: a chain of {count}, whole", [count / found.whole_s], "files/s")
    report.add(f"small: a chain of {count}, moving", [count / found.moving_s], "files/s")


def _measure_memory(
    report: Report, ends: Ends, memory_mib: int, sides: tuple[str, ...], place: Path
) -> None:
    """The most memory that moving one sparse file takes, above an agent that has moved little."""
    if not memory_mib:
        return
    little = ends.make(place / "little", [1 << 20], 1)
    for share, some in (
        (1, tuple(side for side in sides if not side.startswith("base64"))),
        (BASE64_SHARE, tuple(side for side in sides if side.startswith("base64"))),
    ):
        if some:
            sparse = ends.make_sparse(place / f"sparse-{share}", (memory_mib // share) << 20)
            for side in some:
                _measure_memory_of(report, ends, side, little, sparse, place)


def _measure_memory_of(
    report: Report, ends: Ends, side: str, little: list[File], much: File, place: Path
) -> None:
    target = place / "target"
    target.mkdir()
    ends.renew()
    with process() as agent:
        idle, peak = agent.submit(
            idle_and_peak, ends.setting, side, little, [much], target
        ).result()
    shutil.rmtree(target)
    above, size_mib = (peak - idle) / _MEGABYTE, much.entry.size_bytes >> 20
    report.add(f"memory above idle: {side}, {size_mib} MiB", [above], "MB")
