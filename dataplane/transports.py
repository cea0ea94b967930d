"""The transports of this installation, made from the configuration, and what those by name need.

A transport that names files at the source must name one that never changes: the source's agent is
asked, over the bus, where it keeps the content.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from adapters.base64_ssh import Base64Transport
from adapters.http import HttpTransport
from adapters.rsync import RsyncTransport
from adapters.signing import Signer
from adapters.ssh import SshOptions
from adapters.transport import Fetches
from dataplane.config import ConfigError, DataPlaneConfig
from streams.log import Bus, LogError
from streams.values import Transport

#: These say to the source which file they want; the others ask for content by its digest.
NAMING_FILES = (Transport.RSYNC, Transport.BASE64_SSH)
_ANSWER_S = 5.0


def make_transports(config: DataPlaneConfig, signer: Signer) -> dict[Transport, Fetches]:
    """The configured transports by name. Raises ConfigError for one that this version lacks."""
    ssh = SshOptions(known_hosts=config.ssh_known_hosts, identity=config.ssh_identity)
    makers: dict[Transport, Callable[[], Fetches]] = {
        Transport.HTTP_FETCH: lambda: HttpTransport(signer),
        Transport.RSYNC: lambda: RsyncTransport(ssh, rules=config.path_rules),
        Transport.BASE64_SSH: lambda: Base64Transport(ssh, rules=config.path_rules),
    }
    for name in config.transports:
        if name not in makers:
            known = ", ".join(makers)
            raise ConfigError(f"transports: {name} is not available yet; there are: {known}")
    return {name: makers[name]() for name in config.transports}


def locate_subject(node: str) -> str:
    """Where a node's agent is asked which file holds a content."""
    return f"dp.rpc.{node}.locate"


async def content_path(bus: Bus, node: str, checksum: str) -> str:
    """An immutable file on `node` that holds this content, absolute; "" if nobody there knows."""
    try:
        answer = await bus.request(locate_subject(node), checksum.encode(), _ANSWER_S)
    except LogError:
        return ""
    return msgspec.json.decode(answer, type=str)
