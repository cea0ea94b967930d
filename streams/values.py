"""The nouns that events are made of. It must never hold a rule: a value is only well formed or not.

Names are the users' own: `DataType`, `SyncPriority`, `Transport`, `DataEntry`, `SyncPlan`,
`TransportResult`, `config_key`.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated

import msgspec
from msgspec import Meta

#: One token of a subject: node names, config keys, chain ids.
#: (The look-ahead: in Python ``$`` alone would let a newline stand behind it.)
TOKEN_PATTERN = r"^[A-Za-z0-9_-]{1,64}$(?!\n)"
CHECKSUM_PATTERN = r"^sha256:[0-9a-f]{64}$(?!\n)"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
Token = Annotated[str, Meta(pattern=TOKEN_PATTERN)]
Checksum = Annotated[str, Meta(pattern=CHECKSUM_PATTERN)]
#: What fits into 63 bits: no message may hold a number that no store can.
MOST_COUNTED = 2**63 - 1
Count = Annotated[int, Meta(ge=0, le=MOST_COUNTED)]

#: What a fact says when it speaks of no single configuration.
ALL_CONFIGS = "all"
#: The bucket as a place that holds and receives entries. It is no node: it never registers.
S3_NODE = "s3"
#: Files up to this size travel together, and share what there is for transfers at once.
SMALL_BYTES = 256 << 10
BOARDS = ("hex8", "square8", "square19", "hexagonal")
_CONFIG_IN_NAME = re.compile(rf"(?<![A-Za-z0-9])((?:{'|'.join(BOARDS)})_[234]p)(?![A-Za-z0-9])")


def added(*counts: int) -> int:
    """The sum of counts, which is a count again: a sum that no store can hold is the largest."""
    return min(sum(counts), MOST_COUNTED)


def is_token(text: str) -> bool:
    """Whether `text` can stand as one token of a subject: 1 to 64 of ``A-Za-z0-9_-``."""
    return _TOKEN.fullmatch(text) is not None


def config_key_in(path: str) -> str:
    """The configuration a path speaks of, such as ``hex8_2p``; `ALL_CONFIGS` if it names none.

    Boards are matched whole, so ``hexagonal_2p.db`` is never taken for ``hex8``. The last match
    counts: a file's own name outranks the directories above it.
    """
    found = _CONFIG_IN_NAME.findall(path)
    return found[-1] if found else ALL_CONFIGS


class DataType(enum.StrEnum):
    """What kind of data a file holds."""

    GAMES = "games"
    MODELS = "models"
    NPZ = "npz"
    CHECKPOINT = "checkpoint"
    METADATA = "metadata"


class SyncPriority(enum.StrEnum):
    """How urgent a transfer is; the smaller `rank` goes first."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    BACKGROUND = "background"

    @property
    def rank(self) -> int:
        """0 for CRITICAL up to 4 for BACKGROUND."""
        return _RANKS[self]


_RANKS = {priority: rank for rank, priority in enumerate(SyncPriority)}


class Transport(enum.StrEnum):
    """The mechanisms that can move bytes between two places."""

    P2P_GOSSIP = "p2p"
    HTTP_FETCH = "http"
    RSYNC = "rsync"
    S3 = "s3"
    BASE64_SSH = "base64"


class Role(enum.StrEnum):
    """What a node is there for."""

    TRAINING = "training"
    SELFPLAY = "selfplay"
    COORDINATOR = "coordinator"
    STORAGE = "storage"


class Trait(enum.StrEnum):
    """What must be known of a node before bytes are sent to it or fetched from it."""

    EPHEMERAL = "ephemeral"
    NAT_BLOCKED = "nat_blocked"
    GPU = "gpu"
    EXTERNAL_STORAGE = "external_storage"
    SKIP_SYNC_RECEIVE = "skip_sync_receive"


class SweepKind(enum.StrEnum):
    """What a sweep looks for."""

    #: Entries with fewer copies than they should have.
    REPLICATION = "replication"
    #: Entries that the bucket does not hold.
    S3 = "s3"


class DiskTier(enum.StrEnum):
    """How full a node's disk is, and what it stops doing because of it."""

    NORMAL = "normal"
    #: No background data comes in any more.
    NO_BACKGROUND = "no_background"
    #: What is safe elsewhere is deleted.
    CLEANUP = "cleanup"
    #: Self-play is to stop producing.
    STOP_PRODUCTION = "stop_production"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for NORMAL up to 4 for CRITICAL."""
        return _TIERS[self]


_TIERS = {tier: rank for rank, tier in enumerate(DiskTier)}


class Value(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """Base of all values and events: immutable, compared by content, short on the wire.

    What is immutable can't come to hold itself: the garbage collector, which stops every thread
    while it looks, need not look at the many that a large decision is made of.
    """


class DataEntry(Value, frozen=True):
    """A file by identity, a path *and* a digest, with what is known of it."""

    #: Logical path, relative, with ``/``; an owned path carries its producer: ``games/gpu-7/x.db``.
    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    data_type: DataType
    config_key: Token
    size_bytes: Count
    checksum: Checksum
    #: Seconds since 1970 of the last change, by the clock of the node that saw it.
    mtime: float = 0.0
    #: Games counted in the file itself; None where a file holds no games.
    games: Count | None = None
    #: Training samples counted in the file itself.
    samples: Count | None = None
    #: Mean quality of its newest games, 0 to 1; None where none is recorded.
    quality: Annotated[float, Meta(ge=0, le=1)] | None = None
    #: The node whose version counts, "" until the catalog knows it.
    primary_location: str = ""
    #: Sequence of the fact that made this version current; a later version has a larger one.
    version: Count = 0
    #: Nodes that hold a verified copy; filled by catalog queries, empty on the wire.
    locations: tuple[str, ...] = ()
    #: Id of the key without which the bucket's copy can't be opened, as said by who stored it and
    #: filled by catalog queries; "" where that is plain, or none is there.
    sealed_with: str = ""


class Endpoint(Value, frozen=True):
    """How to reach a node, as it says itself; "" where there is no such way."""

    node: str
    #: Where its files are served, such as ``http://10.0.0.7:8770``.
    http_url: str = ""
    #: Where its SSH server is; host keys are always checked against the caller's known hosts.
    ssh_host: str = ""
    ssh_port: Annotated[int, Meta(ge=1, le=65535)] = 22
    ssh_user: str = ""
    #: Its data directory, absolute, for transports that name files.
    data_root: str = ""
    #: Whether others can connect to its `http_url`, as found out by letting some try; None if
    #: nobody was there to try.
    reachable: bool | None = None
    #: Nodes that tried and could not, though others could.
    not_from: tuple[str, ...] = ()
    #: The same of its SSH server.
    ssh_reachable: bool | None = None
    ssh_not_from: tuple[str, ...] = ()


class NodeDescription(Value, frozen=True):
    """What a node says of itself when it joins."""

    name: Token
    roles: tuple[Role, ...] = ()
    traits: tuple[Trait, ...] = ()
    #: How it can be reached.
    endpoint: Endpoint = Endpoint(node="")
    provider: str = ""
    region: str = ""
    nfs_group: str = ""
    disk_total_bytes: Count = 0
    disk_free_bytes: Count = 0
    memory_total_bytes: Count = 0
    #: What programs could still get; None where the node can't tell.
    memory_free_bytes: Count | None = None
    #: The most this node wants to receive or send, in Mbit/s; 0 means no limit of its own.
    bandwidth_limit_mbps: Count = 0
    version: str = ""
    #: Id of the key with which it seals what it stores in the bucket, and opens that again; "" if
    #: it has none.
    seal_key: str = ""


class Refusal(Value, frozen=True):
    """Something that was not planned, and the rule that said so."""

    rule: str
    reason: str
    target: str = ""
    path: str = ""
    #: Whether somebody lacks what he was to get because of it: then the chain can't complete.
    blocking: bool = False
    #: What the target keeps instead; "" where it keeps nothing.
    checksum: str = ""


class SyncPlan(Value, frozen=True):
    """An intended movement: these entries, from here to there."""

    source_node: str
    target_nodes: tuple[Token, ...]
    entries: tuple[DataEntry, ...]
    priority: SyncPriority = SyncPriority.NORMAL
    #: Why this sync was triggered, for people.
    reason: str = ""
    #: Transports in the order in which they are to be tried.
    transport_preference: tuple[Transport, ...] = ()
    #: Seconds since 1970 by which the data must be there; None if any time will do.
    deadline: float | None = None
    #: Only with slots and bandwidth that nothing else asks for.
    spare_only: bool = False


class Held(Value, frozen=True):
    """A target that already held an entry when the plan was made."""

    target: str
    path: str
    checksum: Checksum
    games: Count | None = None


class TransportResult(Value, frozen=True):
    """One attempt over one transport."""

    success: bool
    transport_used: Transport
    #: Bytes that really moved, not bytes that were planned.
    bytes_transferred: Count
    duration_seconds: float
    error: str | None = None
    #: Which family of error: ``Unreachable``, ``Refused``, ``DigestMismatch`` …
    error_class: str = ""
    retries: Count = 0
    #: The place at the other end: whom the executor fetched from or pushed to. "" where it was the
    #: transfer's source, or its target if the source pushed.
    remote: str = ""


class TargetOutcome(Value, frozen=True):
    """What became of one entry on one target."""

    target: str
    path: str
    checksum: Checksum
    size_bytes: Count = 0
    #: Read from the copy at the target, not from what was announced.
    games: Count | None = None
    bytes_transferred: Count = 0
    #: Why the entry is not there, in words; "" if it is.
    error: str = ""


class Proof(Value, frozen=True):
    """What came of reading a replica again, from the disk, just now.

    A bucket's bytes are not fetched: it says of an object what it keeps of its size and digest.
    """

    #: The place that was asked: a node, or the bucket.
    node: str
    proven: bool
    #: What the content really is; "" where it could not be read.
    checksum: str = ""
    size_bytes: Count = 0
    #: Why it is not proven, in words; "" if it is.
    reason: str = ""
    #: Id of the key without which the bucket's copy is of no use; "" for any other.
    sealed_with: str = ""
