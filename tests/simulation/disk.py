"""A node's disk, which outlives the process."""

from __future__ import annotations

from streams.values import DataEntry


class Disk:
    """What a node keeps: by path, the entry it holds; and which of them are its own."""

    def __init__(self) -> None:
        self.files: dict[str, DataEntry] = {}
        self.own: dict[str, DataEntry] = {}
        #: What was said of own files, by path.
        self.said: dict[str, str] = {}
        #: Paths that the node has said it holds, and has not said are gone.
        self.reported: set[str] = set()
        #: Games that were ever written under a path: a player counts on though its file is gone.
        self.played: dict[str, int] = {}
        #: What was taken away and is not missed yet: its node takes it for there.
        self.unmissed: dict[str, DataEntry] = {}
        self.looks = 0

    @property
    def missed(self) -> list[str]:
        """Paths of which it was said that the node holds them, and that are gone."""
        return sorted(self.reported - self.files.keys())
