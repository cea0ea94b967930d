"""What a source says before the bytes, and whether it is an answer to what was asked."""

from __future__ import annotations

import msgspec

from adapters.errors import EntryMissing, Refused
from adapters.transport import Request


class Answer(msgspec.Struct, frozen=True):
    """What a source says before the bytes."""

    status: int
    reason: str
    etag: str | None
    content_range: str | None
    length: int | None


def refusal(answer: Answer, request: Request, said: str) -> EntryMissing | Refused:
    """The error that an answer without the bytes means; `said` is its text."""
    who, entry = request.source.node, request.entry
    if answer.status in (404, 410):
        return EntryMissing(f"{who} does not hold {entry.path} with this content any more")
    return Refused(f"{who} answered {answer.status} {answer.reason} about {entry.path}: {said}")


def check(answer: Answer, request: Request, offset: int) -> None:
    """Raise unless this answer brings exactly the bytes that are lacking."""
    who, entry = request.source.node, request.entry
    if answer.etag != f'"{entry.checksum}"':
        raise EntryMissing(f"{who} offers other content of {entry.path} than {entry.checksum}")
    expected = f"bytes {offset}-{entry.size_bytes - 1}/{entry.size_bytes}"
    if answer.status == 206 and answer.content_range != expected:
        raise EntryMissing(f"{who} offers {answer.content_range!r} of {entry.path}")
    if answer.length != (lacking := entry.size_bytes - offset):
        raise EntryMissing(f"{who} has {answer.length} bytes more of {entry.path}, not {lacking}")
