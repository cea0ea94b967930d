"""Game databases as self-play nodes keep them: SQLite in WAL mode, one transaction for each game.

It must never show half a game: a reader or a copy sees a game with all its rows, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dataplane.demo.hex import BOARDS, GameRecord, notation, player_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS games (
    game_id TEXT PRIMARY KEY,
    board_type TEXT NOT NULL,
    num_players INTEGER NOT NULL,
    -- Seconds since 1970.
    created_at REAL NOT NULL,
    game_status TEXT NOT NULL,
    -- NULL for a draw.
    winner INTEGER,
    total_moves INTEGER NOT NULL,
    quality_score REAL,
    source_node TEXT NOT NULL,
    engine TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS game_players (
    game_id TEXT NOT NULL REFERENCES games (game_id),
    player INTEGER NOT NULL,
    player_type TEXT NOT NULL,
    PRIMARY KEY (game_id, player)
);
CREATE TABLE IF NOT EXISTS game_initial_state (
    game_id TEXT PRIMARY KEY REFERENCES games (game_id),
    state_json TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS game_moves (
    game_id TEXT NOT NULL REFERENCES games (game_id),
    -- From 1.
    move_number INTEGER NOT NULL,
    player INTEGER NOT NULL,
    position TEXT NOT NULL,
    PRIMARY KEY (game_id, move_number)
);
CREATE TABLE IF NOT EXISTS game_choices (
    game_id TEXT NOT NULL REFERENCES games (game_id),
    move_number INTEGER NOT NULL,
    player INTEGER NOT NULL,
    options INTEGER NOT NULL,
    selected TEXT NOT NULL,
    PRIMARY KEY (game_id, move_number)
);
CREATE TABLE IF NOT EXISTS history (
    game_id TEXT NOT NULL REFERENCES games (game_id),
    move_number INTEGER NOT NULL,
    player INTEGER NOT NULL,
    search_json TEXT NOT NULL,
    PRIMARY KEY (game_id, move_number)
);
"""

ENGINE = "hex-random"
_BUSY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class StoredGame:
    """A game and what its database says of it beyond the moves."""

    game_id: str
    record: GameRecord
    source_node: str
    #: Seconds since 1970.
    created_at: float
    #: Visit counts of the search for each move; empty for a player that does not search.
    visits: tuple[tuple[int, ...], ...] = ()


def open_database(path: Path) -> sqlite3.Connection:
    """Open the game database at `path` for writing, in WAL mode; create it if it isn't there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    db.executescript(_SCHEMA)
    return db


def append_games(db: sqlite3.Connection, games: Iterable[StoredGame]) -> int:
    """Commit each game in a transaction of its own and say how many were committed.

    A game id that is there already raises `sqlite3.IntegrityError`; the games before it stay.
    """
    committed = 0
    for game in games:
        with db:
            _insert(db, game)
        committed += 1
    return committed


def count_games(path: Path) -> int:
    """The games committed in the database at `path`; 0 if there is no such file."""
    if not path.exists():
        return 0
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as db:
        return int(db.execute("SELECT count(*) FROM games").fetchone()[0])


def quality_of(record: GameRecord) -> float:
    """How much there is to learn from a game: most from a short win, least from a draw."""
    if record.winner is None:
        return 0.55
    cells = BOARDS[record.board].size ** 2
    return 0.9 if len(record.moves) <= 0.75 * cells else 0.75


def _insert(db: sqlite3.Connection, game: StoredGame) -> None:
    record, game_id = game.record, game.game_id
    size = BOARDS[record.board].size
    db.execute(
        "INSERT INTO games (game_id, board_type, num_players, created_at, game_status, winner,"
        " total_moves, quality_score, source_node, engine) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            game_id,
            record.board,
            record.players,
            game.created_at,
            "completed",
            record.winner,
            len(record.moves),
            quality_of(record),
            game.source_node,
            ENGINE,
        ),
    )
    db.executemany(
        "INSERT INTO game_players (game_id, player, player_type) VALUES (?, ?, ?)",
        [(game_id, player, ENGINE) for player in range(1, record.players + 1)],
    )
    db.execute(
        "INSERT INTO game_initial_state (game_id, state_json) VALUES (?, ?)",
        (game_id, json.dumps({"board": record.board, "size": size, "stones": [], "turn": 1})),
    )
    _insert_moves(db, game, size**2)


def _insert_moves(db: sqlite3.Connection, game: StoredGame, cells: int) -> None:
    moves, choices, history = [], [], []
    for index, cell in enumerate(game.record.moves):
        key = (game.game_id, index + 1, player_of(index))
        searched = game.visits[index] if game.visits else ()
        moves.append((*key, notation(cell)))
        choices.append((*key, cells - index, notation(cell)))
        history.append((*key, json.dumps({"visits": searched}, separators=(",", ":"))))
    db.executemany(
        "INSERT INTO game_moves (game_id, move_number, player, position) VALUES (?, ?, ?, ?)",
        moves,
    )
    db.executemany(
        "INSERT INTO game_choices (game_id, move_number, player, options, selected)"
        " VALUES (?, ?, ?, ?, ?)",
        choices,
    )
    db.executemany(
        "INSERT INTO history (game_id, move_number, player, search_json) VALUES (?, ?, ?, ?)",
        history,
    )
