"""Many small contents in one answer: a frame for each that was asked for, in the same order.

It must never be larger than was agreed, whatever is asked for: what is too large for a batch is not
in it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from adapters.transport import Refused

#: What is larger is worth a request of its own.
SMALL_BYTES = 256 << 10
#: Contents in one batch, and bytes: no one waits long for what another asked.
MOST_FRAMES = 1000
BATCH_BYTES = 32 << 20
DIGEST_BYTES = 32
#: Before each content: its size; `ABSENT` if it is not here.
FRAME = struct.Struct("<q")
ABSENT = -1
_SEND_BYTES = 512 << 10


class MalformedBatch(Refused):
    """What was asked for as a batch is none."""


def encode_list(checksums: Sequence[str]) -> bytes:
    """The contents that are wanted, as they are asked for."""
    return b"".join(bytes.fromhex(one.removeprefix("sha256:")) for one in checksums)


def decode_list(body: bytes) -> list[str]:
    """The contents that are asked for. Raises `MalformedBatch`."""
    if len(body) % DIGEST_BYTES or not 0 < len(body) <= MOST_FRAMES * DIGEST_BYTES:
        raise MalformedBatch(f"{len(body)} bytes are no list of digests")
    at = range(0, len(body), DIGEST_BYTES)
    return [f"sha256:{body[first : first + DIGEST_BYTES].hex()}" for first in at]


def frames(checksums: Sequence[str], locate: Callable[[str], Path | None]) -> Iterator[bytes]:
    """The answer, in parts fit for sending. Blocks; each part belongs in a thread."""
    part, total = bytearray(), 0
    for checksum in checksums:
        data = _content(checksum, locate) if total < BATCH_BYTES else None
        if data is None:
            part += FRAME.pack(ABSENT)
            continue
        part += FRAME.pack(len(data))
        part += data
        total += len(data)
        if len(part) >= _SEND_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _content(checksum: str, locate: Callable[[str], Path | None]) -> bytes | None:
    """A small content; None if it is not here, or is not small."""
    path = locate(checksum)
    if path is None:
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(handle, SMALL_BYTES + 1)
        return data if len(data) <= SMALL_BYTES else None
    except OSError:
        return None
    finally:
        os.close(handle)
