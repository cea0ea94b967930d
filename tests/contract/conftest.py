"""The rigs of the transports' contract, each with only the servers that it needs."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from adapters.ssh.base64_ssh import Base64Transport
from adapters.ssh.rsync import RsyncTransport
from tests.contract.rigs import HttpRig, P2PRig, Rig, S3Rig, SshRig
from tests.integration.s3_server import S3Server, running_s3_server, with_credentials
from tests.integration.ssh_server import SshServer, running_ssh_server

__all__ = ["running_s3_server", "running_ssh_server"]

RIGS = ("p2p", "http", "http over a socket each", "rsync", "base64", "s3")
_NUMBERS = itertools.count()


@pytest.fixture(params=RIGS)
async def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    """Each transport in turn."""
    async with made(request.param, request, tmp_path, monkeypatch).running() as running:
        yield running


def made(
    name: str, request: pytest.FixtureRequest, base: Path, monkeypatch: pytest.MonkeyPatch
) -> HttpRig | SshRig | S3Rig:
    """A rig by its name, with its far end below `base`."""
    if name == "p2p":
        return P2PRig(base)
    if name.startswith("http"):
        return HttpRig(base, large_bytes=1 << 60 if name == "http" else 0)
    if name == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        with_credentials(monkeypatch)
        return S3Rig(base, server, f"contract-{next(_NUMBERS)}")
    sshd: SshServer = request.getfixturevalue("ssh_server")
    if name == "rsync":
        return SshRig(base, sshd, partial(RsyncTransport, root=base / "root"), 1.0)
    return SshRig(base, sshd, Base64Transport, 1.36)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data root here."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"
