"""The transports of this installation, made from the configuration, and what those by name need.

A transport that names files at the source must name one that never changes: the source's agent is
asked, over the bus, where it keeps the content.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from adapters.http.transport import HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.ssh.base64_ssh import Base64Transport
from adapters.ssh.connections import SshOptions
from adapters.ssh.rsync import RsyncTransport
from adapters.transport import Fetches
from dataplane.config import DataPlaneConfig
from streams.foreign import Unreadable, from_json
from streams.log import Bus, LogError
from streams.values import Transport

#: These say to the source which file they want; the others ask for content by its digest.
NAMING_FILES = (Transport.RSYNC, Transport.BASE64_SSH)
_ANSWER_S = 5.0
CONNECT_TIMEOUT_S = 30.0


def make_transports(config: DataPlaneConfig, around: Around) -> dict[Transport, Fetches]:
    """The configured transports that this machine can do, by name; the bucket's is made apart."""
    ssh = SshOptions(known_hosts=config.ssh_known_hosts, identity=config.ssh_identity)
    makers: dict[Transport, Callable[[], Fetches]] = {
        Transport.P2P_GOSSIP: lambda: P2PTransport(around),
        Transport.HTTP_FETCH: lambda: HttpTransport(
            around.signer, context=around.context, pack=around.compress
        ),
        Transport.BASE64_SSH: lambda: Base64Transport(ssh, rules=config.path_rules),
    }
    if all(map(shutil.which, ("rsync", "ssh"))):
        makers[Transport.RSYNC] = lambda: RsyncTransport(
            ssh, rules=config.path_rules, root=config.data_dir
        )
    return {name: makers[name]() for name in config.transports if name in makers}


def locate_subject(node: str) -> str:
    """Where a node's agent is asked which file holds a content."""
    return f"dp.rpc.{node}.locate"


async def content_path(bus: Bus, node: str, checksum: str) -> str:
    """An immutable file on `node` that holds this content, absolute; "" if nobody there knows."""
    try:
        return from_json(await bus.request(locate_subject(node), checksum.encode(), _ANSWER_S), str)
    except (LogError, Unreadable):
        return ""
