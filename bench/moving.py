"""What an agent does with a transport, measured in a process that runs already as an agent does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from msgspec.structs import replace

from adapters.files.group import Group, Wanted
from adapters.files.landing import Landed, Landing
from adapters.http.signing import Signer
from adapters.http.transport import HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.s3.transport import S3Transport
from adapters.ssh.base64_ssh import Base64Transport
from adapters.ssh.connections import SshOptions
from adapters.ssh.rsync import RsyncTransport
from adapters.throttle import Throttle
from adapters.transport import FetchesMany, PushesMany, Request
from adapters.workers import each, finish
from bench.ends import KEY, File, Setting
from bench.measuring import Usage, peak_bytes, usage
from dataplane.agent import company
from streams.values import Transport

#: Entries at once, where there are many.
AT_ONCE = 48
#: What an agent keeps from one push to the next, by side: its connections, on the loop they are of.
_kept: dict[str, RsyncTransport | Base64Transport] = {}
_runner = asyncio.Runner()
_ANY = HttpTransport | P2PTransport | RsyncTransport | Base64Transport | S3Transport


def move(setting: Setting, side: str, files: list[File], root: Path) -> Usage:
    """Move all files one way: fetched ones are landed, pushed ones are proven at the far end."""
    sys.setswitchinterval(0.0005)

    async def moved() -> Usage:
        transport = _kept.get(side) or _transport(setting, side, root)
        pushes = side.endswith(("push", "up"))

        async def one(file: File) -> None:
            await (_push if pushes else _fetch)(transport, setting, side, file, root)

        with usage() as used:
            if len(files) > 1 and not pushes and isinstance(transport, FetchesMany):
                await _fetch_together(transport, setting, side, files, root)
            elif len(files) > 1 and pushes and isinstance(transport, PushesMany):
                await _push_together(transport, setting, side, files)
            else:
                await each(files, one, AT_ONCE)
        if pushes and isinstance(transport, RsyncTransport | Base64Transport):
            _kept[side] = transport
        else:
            await transport.close()
        return used

    return _runner.run(moved())


def idle_and_peak(
    setting: Setting, side: str, little: list[File], much: list[File], root: Path
) -> tuple[int, int]:
    """Memory after something little was moved, and the most while something large was."""
    move(setting, side, little, root)
    idle = peak_bytes()
    move(setting, side, much, root)
    return idle, peak_bytes()


async def _fetch(transport: _ANY, setting: Setting, side: str, file: File, root: Path) -> None:
    entry = file.entry
    landing = await Landing.open(root, entry, f"t-{entry.checksum[7:30]}", entry.path)
    try:
        request = _request(setting, side, file)
        await transport.fetch(request, landing, Throttle(), lambda done, total: None)
        await landing.commit()
    finally:
        await landing.abort()


async def _fetch_together(
    transport: FetchesMany, setting: Setting, side: str, files: list[File], root: Path
) -> None:
    """Small ones as an agent does it: in groups, a few at once."""

    async def one(some: list[File]) -> None:
        group = await finish(lambda: Group(root, [Wanted(f.entry, f.entry.path) for f in some]))
        try:
            requests = [_request(setting, side, file) for file in some]
            failed = await transport.fetch_many(requests, group.put)
            assert not any(failed), failed
            await finish(group.commit)
            assert all(isinstance(outcome, Landed) for outcome in group.outcomes)
        finally:
            await finish(group.close)

    await each(_groups(transport.name, files), one, company.AT_ONCE)


async def _push_together(
    transport: PushesMany, setting: Setting, side: str, files: list[File]
) -> None:
    """As `_fetch_together`, each turn under paths of its own."""

    async def one(some: list[File]) -> None:
        requests = [_request(setting, side, file) for file in some]
        anew = [
            replace(one, entry=replace(one.entry, path=f"{setting.bucket}/{one.entry.path}"))
            for one in requests
        ]
        moved = await transport.push_many(anew, [Path(file.path) for file in some])
        assert moved == [file.entry.size_bytes for file in some], moved

    await each(_groups(transport.name, files), one, company.AT_ONCE)


def _groups(name: Transport, files: list[File]) -> list[list[File]]:
    """Files that an agent would let go together."""
    most = company.MOST_OF.get(name, company.MOST)
    most = min(most, company.MOST_BYTES // files[0].entry.size_bytes)
    return [files[at : at + most] for at in range(0, len(files), most)]


async def _push(transport: _ANY, setting: Setting, side: str, file: File, root: Path) -> None:
    assert not isinstance(transport, P2PTransport)
    request = _request(setting, side, file)
    await transport.push(request, Path(file.path), Throttle(), lambda done, total: None)


def _request(setting: Setting, side: str, file: File) -> Request:
    far = setting.ssh if side.startswith(("rsync", "base64")) else setting.http
    return Request(
        transfer=f"t-{file.entry.checksum[7:30]}",
        entry=file.entry,
        source=far,
        target=far,
        content_path=file.path,
        local_path=file.entry.path,
    )


def _transport(setting: Setting, side: str, root: Path) -> _ANY:
    options = SshOptions(Path(setting.known_hosts), Path(setting.identity))
    match side.split()[0]:
        case "p2p":
            return P2PTransport(Around(Signer(KEY)))
        case "rsync":
            return RsyncTransport(options, root=root)
        case "base64":
            return Base64Transport(options)
        case "s3":
            bucket = setting.bucket if side == "s3 up" else setting.full_bucket
            return S3Transport(bucket, endpoint_url=setting.s3_url, storage_class="")
        case _:
            return HttpTransport(Signer(KEY))
