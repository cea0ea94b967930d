"""Real game databases that grow while a benchmark runs; whoever copies them meets a live writer."""

from __future__ import annotations

import random
import time
from pathlib import Path

from dataplane.demo import gamedb, hex

_BOARD = "hex8"
#: A visit count takes about this many bytes as JSON.
_BYTES_PER_VISIT = 3.57


class Database:
    """One configuration's games of one node, open for writing."""

    def __init__(self, file: Path, node: str, config_key: str, seed: int) -> None:
        self.node, self.config_key = node, config_key
        self._random = random.Random(f"{seed}{node}{config_key}")
        self._db = gamedb.open_database(file)
        self._games = 0

    @property
    def size_bytes(self) -> int:
        """What a copy of it would have."""
        (pages,), (bytes_,) = (
            self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
        )
        return int(pages * bytes_)

    def play(self, games: int, padding_kb: int = 0) -> None:
        """Commit games, each with so much search statistics."""
        for _ in range(games):
            record = hex.play(_BOARD, self._random)
            count = int(padding_kb * 1024 / len(record.moves) / _BYTES_PER_VISIT)
            visits = [tuple(self._random.randbytes(count)) for _ in record.moves]
            game = gamedb.StoredGame(
                game_id=f"{self.node}-{self.config_key}-{self._games:07d}",
                record=record,
                source_node=self.node,
                created_at=time.time(),
                visits=tuple(visits) if count else (),
            )
            self._games += gamedb.append_games(self._db, [game])

    def grow_to(self, size_bytes: int, padding_kb: int) -> None:
        """Commit games until the database has this size."""
        while self.size_bytes < size_bytes:
            self.play(1, padding_kb)

    def close(self) -> None:
        """Let go of the file; what was committed stays."""
        self._db.close()
