"""What the bus must look like, as data, and how what it looks like differs from that.

It never changes anything: a stream is made once, and a difference is said, not repaired, because
most of what protects the log (`deny_delete`, `deny_purge`) can't be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.codec import MAX_MESSAGE_BYTES, STREAM
from streams.subjects import LOG_SUBJECTS

#: A stream's configuration in the words of JetStream's own JSON; times are nanoseconds.
Config = Mapping[str, Any]

#: Who is alive: gone after 30 s without a word, and after a restart of the bus.
NODES_BUCKET = "DP_NODES"
NODES_TTL_S = 30.0
#: The key that signs HTTP URLs.
KEYS_BUCKET = "DP_KEYS"
#: Who of several coordinators leads.
LEASE_BUCKET = "DP_LEASE"
#: What the server says of consumers and streams: repeated refusals, lost quorums, new leaders.
ADVISORIES = "DP_ADV"
ADVISORY_SUBJECTS = (
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.QUORUM_LOST.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.DELETED.*.*",
    "$JS.EVENT.ADVISORY.STREAM.QUORUM_LOST.*",
    "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.*",
    "$JS.EVENT.ADVISORY.STREAM.DELETED.*",
    "$JS.EVENT.ADVISORY.STREAM.UPDATED.*",
    "$JS.EVENT.ADVISORY.STREAM.RESTORE_COMPLETE.*",
)
ADVISORY_DAYS, ADVISORY_BYTES = 30, 64 * 1024 * 1024
#: How long the log knows the id of what was published without a guard.
DUPLICATE_WINDOW_S = 72 * 3600.0
#: How many readers of the log clients of one name may have at once; each has a name of its own,
#: which permissions list.
READERS_OF_A_CLIENT = 16
_READER = "read_"
#: The server counts headers into a message's size; ours are ten short lines.
HEADER_BYTES = 8 * 1024

#: What the stream of a log says of itself whose beginning may be removed.
BOUNDED = "dataplane.bounded"
#: What a restored log's stream says of itself.
RESTORED_SEQUENCE, RESTORED_FROM = "dataplane.restored_sequence", "dataplane.restored_from"

_SECOND = 1_000_000_000
_TIMES = frozenset({"duplicate_window", "max_age", "ack_wait"})
# What the server leaves out of its answer where it is zero.
_UNSAID: dict[type, object] = {bool: False, int: 0, str: "", list: []}


def log_stream(
    *,
    name: str = STREAM,
    replicas: int = 1,
    max_bytes: int | None = None,
    duplicate_window_s: float = DUPLICATE_WINDOW_S,
    bounded: bool = False,
) -> Config:
    """The log: nothing in it can be deleted, expire or be rolled up, and full is an error.

    From one that is `bounded` coordinators may remove the beginning, once it is archived.
    """
    return {
        "name": name,
        "subjects": list(LOG_SUBJECTS),
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": replicas,
        "max_bytes": -1 if max_bytes is None else max_bytes,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_age": 0,
        "max_msg_size": MAX_MESSAGE_BYTES + HEADER_BYTES,
        "max_consumers": -1,
        "duplicate_window": round(duplicate_window_s * _SECOND),
        # With s2, nats-server 2.15 appends plain records to a block that it has compressed, once it
        # had to cut off the block's end after a crash: nobody can read that block again.
        "compression": "none",
        "deny_delete": True,
        "deny_purge": not bounded,
        "allow_direct": True,
        "allow_atomic": True,
        # Each of these three lets a publisher erase what was said.
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "allow_msg_schedules": False,
        **({"metadata": {BOUNDED: "yes"}} if bounded else {}),
    }


def restored_until(config: Config) -> tuple[int, str]:
    """Up to which sequence a log was restored, and from which log; (0, "") if it never was."""
    said = config.get("metadata") or {}
    sequence = said.get(RESTORED_SEQUENCE, "")
    return (int(sequence), said.get(RESTORED_FROM, "")) if sequence.isdigit() else (0, "")


def bucket_stream(bucket: str, *, replicas: int = 1, ttl_s: float | None = None) -> Config:
    """A key-value bucket, made as NATS clients make it, so that ``nats kv`` reads it.

    In files also where what it holds is soon forgotten: of replicas in memory that are restarted
    one soon after the other, none is complete any more, and none leads for minutes.
    """
    config: dict[str, Any] = {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "deny_delete": True,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "max_age": round((ttl_s or 0) * _SECOND),
    }
    if ttl_s is not None:
        config["duplicate_window"] = round(min(ttl_s, 120.0) * _SECOND)
    return config


def advisory_stream(*, replicas: int = 1) -> Config:
    """What the server tells whoever listens, kept for those who did not; the oldest goes first."""
    return {
        "name": ADVISORIES,
        "subjects": list(ADVISORY_SUBJECTS),
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": replicas,
        "max_bytes": ADVISORY_BYTES,
        "max_age": ADVISORY_DAYS * 86_400 * _SECOND,
        "allow_direct": True,
    }


def streams(
    *,
    replicas: int = 1,
    max_bytes: int | None = None,
    duplicate_window_s: float = DUPLICATE_WINDOW_S,
    bounded: bool = False,
) -> list[Config]:
    """Every stream of the data plane."""
    return [
        log_stream(
            replicas=replicas,
            max_bytes=max_bytes,
            duplicate_window_s=duplicate_window_s,
            bounded=bounded,
        ),
        bucket_stream(NODES_BUCKET, replicas=replicas, ttl_s=NODES_TTL_S),
        bucket_stream(KEYS_BUCKET, replicas=replicas),
        bucket_stream(LEASE_BUCKET, replicas=replicas),
        advisory_stream(replicas=replicas),
    ]


def durable_consumer(
    name: str, filters: list[str], *, ack_wait_s: float, max_pending: int, new_only: bool
) -> Config:
    """A consumer that gives every message until it is acknowledged, however often that takes."""
    return {
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "ack_wait": round(ack_wait_s * _SECOND),
        "max_deliver": -1,
        "max_ack_pending": max_pending,
        "deliver_policy": "new" if new_only else "all",
        "replay_policy": "instant",
        **({"filter_subjects": filters} if filters else {}),
    }


def drift(wanted: Config, existing: Config) -> list[str]:
    """One sentence for each field in which a stream or consumer is not what was wanted."""
    name = wanted["name"]
    sentences = []
    said = existing.get("metadata") or {}
    for field, want in wanted.items():
        if field == "metadata" or (field == "deny_purge" and want and BOUNDED in said):
            continue  # others have bounded it: who does not remove anything need not know
        have = existing.get(field, _UNSAID.get(type(want)))
        if isinstance(want, list) and isinstance(have, list):
            want, have = sorted(want), sorted(have)
        if field == "deliver_policy" and have == "by_start_sequence":
            continue  # of a restored log: it goes on where it stood
        if want != have:
            sentences.append(f"{name}: {field}: wanted {_say(field, want)}, is {_say(field, have)}")
    return sentences


def _say(field: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if field in _TIMES and isinstance(value, int):
        return f"{value / _SECOND:g} s"
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_news(subject: str) -> bool:
    """Whether an advisory says more than that a reader has ended: readers come and go."""
    kind, what, stream, *name = subject.split(".")[3:]
    ended = (kind, what) == ("CONSUMER", "DELETED")
    return not ended or (stream == STREAM and not is_reader(name[0]))


def reader_name(client: str, number: int) -> str:
    """The consumer of one of a client's readers."""
    return f"{_READER}{client}_{number}"


def is_reader(consumer: str) -> bool:
    """Whether a consumer is a reader's: made anew wherever it is lost."""
    return consumer.startswith(_READER)
