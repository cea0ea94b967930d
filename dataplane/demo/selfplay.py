"""A self-play node as a process: it plays, commits, says SELFPLAY_COMPLETE, and goes on playing.

It must never wait for a copy of its database: whoever copies has to cope with a writer that lives.
It never stops within a transaction; SIGTERM and SIGINT end it after the game at hand, with code 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType

from dataplane.demo.gamedb import ENGINE, StoredGame, append_games, count_games, open_database
from dataplane.demo.hex import board_of, play
from streams.events import SelfplayComplete

#: Tells the cluster; returns the event's id, or "" if it has none.
Publish = Callable[[SelfplayComplete], str]

#: Set by who starts this process and does not want it to stay behind.
_PARENT_VARIABLE = "DATAPLANE_PARENT_PID"
#: A pause is waited out in pieces of this length, so that a signal is soon noticed.
_SLICE_S = 0.05
#: A visit count takes about this many bytes as JSON.
_BYTES_PER_VISIT = 3.57


@dataclass(frozen=True)
class Options:
    """What one self-play process is to do."""

    data_dir: Path
    node: str
    config_keys: tuple[str, ...]
    rounds: int
    games_per_round: int
    seed: int
    #: Seconds between two rounds, in which the live games are spread.
    pause_s: float = 1.0
    #: Games for each configuration that are committed between two rounds.
    live_games: int = 3
    #: Search statistics stored with each game, about.
    padding_kb: int = 0
    #: Where the bus is; "" plays without saying so.
    nats_url: str = ""


class GameWriter:
    """One configuration's database of one node, and the games not yet announced."""

    def __init__(self, options: Options, config_key: str) -> None:
        self.config_key = config_key
        self.path = PurePosixPath("games", f"{config_key}.db")
        self._options = options
        self._board = board_of(config_key)
        self._file = options.data_dir / self.path
        self._db = open_database(self._file)
        self.games = count_games(self._file)
        self._announced = self.games
        self._played_s = 0.0

    def commit_game(self) -> None:
        """Play the next game and commit it; its number, the node and the seed make it unique."""
        began = time.monotonic()
        options, number = self._options, self.games + 1
        game_id = f"{options.node}-{self.config_key}-s{options.seed}-{number:07d}"
        rng = random.Random(game_id)
        record = play(self._board, rng)
        visits = _visits(rng, len(record.moves), options.padding_kb * 1024)
        game = StoredGame(game_id, record, options.node, time.time(), visits)
        self.games += append_games(self._db, [game])
        self._played_s += time.monotonic() - began

    def announce(self, publish: Publish) -> dict[str, object]:
        """Publish what was played since the last announcement, and return it in words."""
        event = SelfplayComplete(
            config_key=self.config_key,
            source_node=self._options.node,
            games_count=self.games - self._announced,
            path=str(self.path),
            duration_seconds=round(self._played_s, 3),
            engine=ENGINE,
        )
        event_id = publish(event)
        self._announced, self._played_s = self.games, 0.0
        return {
            "config_key": self.config_key,
            "node": self._options.node,
            "path": event.path,
            "games_count": event.games_count,
            "games_in_db": self.games,
            "event_id": event_id,
        }

    def close(self) -> None:
        """Close the database; what was committed stays."""
        self._db.close()


class StopSignal:
    """Remembers that the process was asked to stop; calling it tells whether.

    With `parent`, a process id, the end of that parent asks too, even by ``kill -9``.
    """

    def __init__(self, parent: int = 0) -> None:
        self._asked = False
        self._parent = parent

    def __call__(self) -> bool:
        return self._asked or self._parent not in (0, os.getppid())

    def install(self) -> None:
        """Take SIGTERM and SIGINT of this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def run(options: Options, publish: Publish, stopping: Callable[[], bool]) -> None:
    """Play all rounds, one JSON line on stdout for each round of each configuration."""
    writers = [GameWriter(options, config_key) for config_key in options.config_keys]
    try:
        for number in range(1, options.rounds + 1):
            for writer in writers:
                _play(writer, options.games_per_round, stopping)
                if stopping():
                    return
                print(json.dumps({"round": number, **writer.announce(publish)}), flush=True)
            if number < options.rounds:
                _play_on(writers, options, stopping)
    finally:
        for writer in writers:
            writer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one self-play node until its rounds are played or it is asked to stop."""
    stopping = StopSignal(int(os.environ.get(_PARENT_VARIABLE) or 0))
    stopping.install()
    options = _parse(arguments)
    if not options.nats_url:
        run(options, lambda event: "", stopping)
        return 0

    # Imported late: whoever only plays needs no bus.
    from dataplane.blocking import DataPlane

    with DataPlane.connect(options.nats_url, node=options.node) as dp:
        run(options, lambda event: _event_id(dp.publish(event)), stopping)
    return 0


def _play(writer: GameWriter, games: int, stopping: Callable[[], bool]) -> None:
    for _ in range(games):
        if stopping():
            return
        writer.commit_game()


def _play_on(writers: Sequence[GameWriter], options: Options, stopping: Callable[[], bool]) -> None:
    """Commit the live games, spread over the pause, while others copy what was announced."""
    for _ in range(options.live_games):
        for writer in writers:
            _play(writer, 1, stopping)
        _wait(options.pause_s / (options.live_games + 1), stopping)
    _wait(options.pause_s / (options.live_games + 1), stopping)


def _wait(duration_s: float, stopping: Callable[[], bool]) -> None:
    until = time.monotonic() + duration_s
    while not stopping() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_S))


def _visits(rng: random.Random, moves: int, padding_bytes: int) -> tuple[tuple[int, ...], ...]:
    per_move = int(padding_bytes / moves / _BYTES_PER_VISIT)
    return tuple(tuple(rng.randbytes(per_move)) for _ in range(moves)) if per_move else ()


def _event_id(receipt: object) -> str:
    """The id in what a bus answered: a text, or something with an ``event_id`` or ``id``."""
    if isinstance(receipt, str):
        return receipt
    return str(getattr(receipt, "event_id", None) or getattr(receipt, "id", ""))


def _config_key(text: str) -> str:
    try:
        board_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m dataplane.demo.selfplay", description=__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="the node's data directory")
    add("--node", required=True, help="the node's name")
    add("--nats", default="", metavar="URL", help="where the bus is; without it nothing is said")
    add("--config-key", type=_config_key, action="append", required=True, help="can be repeated")
    add("--rounds", type=int, default=1, help="rounds to play")
    add("--games-per-round", type=int, default=20, help="games for each configuration and round")
    add("--seed", type=int, default=0, help="same seed, node and configuration: same games")
    add("--pause", type=float, default=1.0, metavar="S", help="seconds between two rounds")
    add("--live-games", type=int, default=3, help="games committed within each pause")
    add("--padding-kb", type=int, default=0, help="search statistics stored with each game")
    given = parser.parse_args(arguments)
    return Options(
        data_dir=given.data_dir,
        node=given.node,
        config_keys=tuple(dict.fromkeys(given.config_key)),
        rounds=given.rounds,
        games_per_round=given.games_per_round,
        seed=given.seed,
        pause_s=given.pause,
        live_games=given.live_games,
        padding_kb=given.padding_kb,
        nats_url=given.nats,
    )


if __name__ == "__main__":
    sys.exit(main())
