"""Two connection games and a player that moves at random, but legally: what the demo's nodes play.

It must never touch a file or a clock: a game is a function of its board and its `random.Random`.

Player 1 joins the top edge to the bottom one, player 2 the left edge to the right one. On ``hex8``
somebody always wins; on ``square8`` stones touch along four sides only, so a full board may be
a draw.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

#: Row and column, both from 0.
Cell = tuple[int, int]

PLAYERS = 2


@dataclass(frozen=True)
class Board:
    """A rhombus of hexagons or a square grid, told apart by which cells are neighbours."""

    size: int
    #: Steps in rows and columns from a cell to its neighbours.
    steps: tuple[Cell, ...]

    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [(row, column) for row in range(self.size) for column in range(self.size)]

    def neighbours(self, cell: Cell) -> list[Cell]:
        """The cells on the board that touch `cell`."""
        row, column = cell
        around = ((row + down, column + right) for down, right in self.steps)
        return [(r, c) for r, c in around if 0 <= r < self.size and 0 <= c < self.size]


_SQUARE_STEPS = ((-1, 0), (0, -1), (0, 1), (1, 0))
_HEX_STEPS = (*_SQUARE_STEPS, (-1, 1), (1, -1))

BOARDS: dict[str, Board] = {
    "hex8": Board(size=8, steps=_HEX_STEPS),
    "square8": Board(size=8, steps=_SQUARE_STEPS),
}


class IllegalMove(ValueError):
    """A stone off the board, on another stone, or after the end."""


@dataclass(frozen=True)
class GameRecord:
    """A finished game; player 1 made ``moves[0]`` and the players took turns."""

    moves: tuple[Cell, ...]
    #: 1 or 2; None for a full board that joins nobody's edges.
    winner: int | None
    #: A key of `BOARDS`.
    board: str
    players: int = PLAYERS


@dataclass
class Position:
    """A board, the stones on it, and whose turn it is."""

    board: Board
    stones: dict[Cell, int] = field(default_factory=dict)
    turn: int = 1
    winner: int | None = None

    @property
    def over(self) -> bool:
        """Whether somebody has won or no cell is free."""
        return self.winner is not None or len(self.stones) == self.board.size**2

    def legal_moves(self) -> list[Cell]:
        """The free cells, row by row; none once the game is over."""
        if self.over:
            return []
        return [cell for cell in self.board.cells() if cell not in self.stones]

    def place(self, cell: Cell) -> None:
        """Put a stone of the player whose turn it is; raises `IllegalMove`."""
        if cell not in self.legal_moves():
            raise IllegalMove(f"player {self.turn} may not move to {cell}")
        self.stones[cell] = self.turn
        if connects(self.board, self.stones, self.turn):
            self.winner = self.turn
        self.turn = player_of(len(self.stones))


def player_of(move_index: int) -> int:
    """Who makes the move with this index, counted from 0."""
    return move_index % PLAYERS + 1


def connects(board: Board, stones: Mapping[Cell, int], player: int) -> bool:
    """Whether the stones of `player` join that player's two edges."""
    axis = player - 1
    reached = {cell for cell, owner in stones.items() if owner == player and cell[axis] == 0}
    frontier = list(reached)
    while frontier:
        cell = frontier.pop()
        if cell[axis] == board.size - 1:
            return True
        for neighbour in board.neighbours(cell):
            if neighbour not in reached and stones.get(neighbour) == player:
                reached.add(neighbour)
                frontier.append(neighbour)
    return False


def play(board: str, rng: random.Random) -> GameRecord:
    """A whole game of random legal moves; the same `rng` state gives the same game.

    `board` is a key of `BOARDS`, or a `KeyError` follows. It ends after ``size²`` moves at most.
    """
    position = Position(BOARDS[board])
    moves: list[Cell] = []
    while not position.over:
        cell = rng.choice(position.legal_moves())
        position.place(cell)
        moves.append(cell)
    return GameRecord(moves=tuple(moves), winner=position.winner, board=board)


def board_of(config_key: str) -> str:
    """The board of ``hex8_2p`` or ``square8_2p``; `ValueError` for what can't be played here."""
    for board in BOARDS:
        if config_key == f"{board}_{PLAYERS}p":
            return board
    raise ValueError(f"{config_key!r} can't be played; try hex8_2p or square8_2p")


def notation(cell: Cell) -> str:
    """A cell as players write it: the column as a letter, the row from 1, so ``c4``."""
    row, column = cell
    return f"{chr(ord('a') + column)}{row + 1}"
