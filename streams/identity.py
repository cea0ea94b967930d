"""Whose file a path is: logical paths, their owners, and where a node keeps them.

An owned path carries its producer (``games/gpu-7/hex8_2p.db``), so that two producers never write
one name; the producer itself keeps it without (``games/hex8_2p.db``). Pure: no file is touched.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from streams.values import DataType, Value

GAME_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_UNCLEAN = {"", ".", ".."}
_TYPE_BY_SUFFIX = {
    **dict.fromkeys(GAME_DATABASE_SUFFIXES, DataType.GAMES),
    ".jsonl": DataType.GAMES,
    ".npz": DataType.NPZ,
    ".pth": DataType.MODELS,
    ".pt": DataType.MODELS,
    ".onnx": DataType.MODELS,
}


class Ownership(enum.StrEnum):
    """Who may write a path."""

    #: One producer writes it; the logical path names the producer.
    OWNED = "owned"
    #: Many may write it; one version counts at a time.
    SHARED = "shared"
    #: Many write it and no copy may replace another.
    MERGED = "merged"


class PathRules(Value, frozen=True):
    """Which glob is which, first match wins: ``*`` within a directory, ``**`` across them."""

    globs: tuple[tuple[str, Ownership], ...] = (
        ("**/elo*.db", Ownership.MERGED),
        ("**/*_elo*.db", Ownership.MERGED),
        ("**/*registry*.db", Ownership.MERGED),
        ("**/canonical_*", Ownership.SHARED),
        ("**/*.npz", Ownership.SHARED),
        ("**/candidate_*", Ownership.OWNED),
        ("checkpoints/**", Ownership.OWNED),
        ("**/*.db", Ownership.OWNED),
        ("**/*.sqlite", Ownership.OWNED),
        ("**/*.sqlite3", Ownership.OWNED),
        ("**/*.jsonl", Ownership.OWNED),
        ("games/**", Ownership.OWNED),
        ("**", Ownership.SHARED),
    )

    def ownership(self, path: str) -> Ownership:
        """Who may write `path`, local or logical; shared if no glob matches."""
        return _ownership(self.globs, path)

    def logical(self, local: str, node: str) -> str:
        """The cluster's name of a file that `node` itself keeps at `local`."""
        if self.ownership(local) is not Ownership.OWNED:
            return local
        first, *rest = _parts(local)
        return "/".join((first, node, *rest) if rest else (node, first))

    def local(self, logical: str, node: str) -> str:
        """Where `node` keeps a logical path: its own without its name, all others as they are."""
        if self.ownership(logical) is not Ownership.OWNED:
            return logical
        parts = _parts(logical)
        if len(parts) >= 3 and parts[1] == node:
            return "/".join((parts[0], *parts[2:]))
        if len(parts) == 2 and parts[0] == node:
            return parts[1]
        return logical

    def producer(self, logical: str) -> str:
        """The node an owned path names; "" for paths that nobody owns."""
        parts = _parts(logical)
        if self.ownership(logical) is not Ownership.OWNED:
            return ""
        return parts[1] if len(parts) >= 3 else parts[0]


def data_type_of(path: str) -> DataType | None:
    """What a file holds, by its name; None if the data plane has no word for it.

    A database without a ``games`` table is METADATA: only who opens it can tell.
    """
    pure = PurePosixPath(path)
    if "checkpoints" in pure.parts[:-1] and pure.suffix.lower() in _TYPE_BY_SUFFIX:
        return DataType.CHECKPOINT
    return _TYPE_BY_SUFFIX.get(pure.suffix.lower())


def falls_under(path: str, globs: Iterable[str]) -> bool:
    """Whether a path falls under one of these globs, as `PathRules` reads them, but that case
    counts for nothing: what is kept by its name is kept however it is written.
    """
    return any(_matcher(glob.lower()).fullmatch(path.lower()) for glob in globs)


def escapes(path: str) -> bool:
    """Whether a path would leave the directory it is joined to, or isn't a clean relative path."""
    return "\x00" in path or "\\" in path or not _UNCLEAN.isdisjoint(path.split("/"))


def glob_matches(glob: str, path: str) -> bool:
    """Whether a path falls under a glob: ``*`` within a directory, ``**`` across them."""
    return _matcher(glob).fullmatch(path) is not None


def _parts(path: str) -> list[str]:
    """The names of a path, as `PurePosixPath.parts` gives them, in a tenth of the time."""
    return [name for name in path.split("/") if name not in ("", ".")]


@functools.cache
def _matcher(glob: str) -> re.Pattern[str]:
    name = glob.removeprefix("**/")
    # Where only a name follows, its directory ends at the last slash: no shorter one is tried.
    above = "(?>(?:.*/)?)" if "/" not in name and "**" not in name else "(?:.*/)?"
    text = re.escape(glob).replace(r"\*\*/", above).replace(r"\*\*", ".*")
    return re.compile(text.replace(r"\*", "[^/]*").replace(r"\?", "[^/]"), re.DOTALL)


#: On its way, one path is asked about several times.
@functools.lru_cache(maxsize=4096)
def _ownership(globs: tuple[tuple[str, Ownership], ...], path: str) -> Ownership:
    found = _first_of(globs).fullmatch(path)
    rule = found.lastindex if found and found.lastindex else len(globs) + 1
    stem, dot, suffix = path.rpartition(".")
    if dot and "/" not in suffix and suffix != suffix.lower():
        # A file's type is the same however its suffix is written, and so is whose it is.
        found = _first_of(globs).fullmatch(f"{stem}.{suffix.lower()}")
        rule = min(rule, found.lastindex) if found and found.lastindex else rule
    return globs[rule - 1][1] if rule <= len(globs) else Ownership.SHARED


@functools.cache
def _first_of(globs: tuple[tuple[str, Ownership], ...]) -> re.Pattern[str]:
    """Matches what any glob matches, in a group for each: one search takes a fifth of many."""
    return re.compile("|".join(f"({_matcher(glob).pattern})" for glob, _ in globs), re.DOTALL)
