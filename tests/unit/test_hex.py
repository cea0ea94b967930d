"""The demo's games: legal, decided rightly, repeatable, and always at an end."""

from __future__ import annotations

import random

import pytest

from dataplane.demo.hex import (
    BOARDS,
    Cell,
    GameRecord,
    IllegalMove,
    Position,
    board_of,
    connects,
    notation,
    play,
    player_of,
)

HEX8, SQUARE8 = BOARDS["hex8"], BOARDS["square8"]


def stones_of(player: int, *cells: Cell) -> dict[Cell, int]:
    """Stones of one player."""
    return dict.fromkeys(cells, player)


def replayed(record: GameRecord) -> Position:
    """The final position of a record, every move of it checked by the rules again."""
    position = Position(BOARDS[record.board])
    for index, cell in enumerate(record.moves):
        assert position.turn == player_of(index)
        position.place(cell)
    return position


@pytest.mark.parametrize("board", BOARDS)
def test_every_move_of_a_played_game_is_legal(board: str) -> None:
    """A game replays move by move under the rules and ends as its record says."""
    for seed in range(50):
        record = play(board, random.Random(seed))
        position = replayed(record)
        assert position.over
        assert position.winner == record.winner


@pytest.mark.parametrize("cell", [(0, 0), (-1, 0), (8, 0), (0, 8)])
def test_stone_on_a_stone_or_off_the_board_is_refused(cell: Cell) -> None:
    """A taken cell and cells outside are illegal, and the turn does not pass."""
    position = Position(HEX8)
    position.place((0, 0))
    with pytest.raises(IllegalMove):
        position.place(cell)
    assert position.turn == 2


def test_no_move_is_legal_after_the_end() -> None:
    """Once somebody has won, free cells can't be played any more."""
    position = Position(HEX8)
    for row in range(7):
        position.place((row, 0))
        position.place((row, 5))
    position.place((7, 0))
    assert position.winner == 1
    assert position.legal_moves() == []
    with pytest.raises(IllegalMove):
        position.place((7, 7))


def test_player_1_joins_top_and_bottom_and_player_2_left_and_right() -> None:
    """A full column wins for player 1 only, a full row for player 2 only."""
    column = [(row, 3) for row in range(8)]
    row = [(3, column) for column in range(8)]
    assert connects(HEX8, stones_of(1, *column), 1)
    assert not connects(HEX8, stones_of(2, *column), 2)
    assert connects(HEX8, stones_of(2, *row), 2)
    assert not connects(HEX8, stones_of(1, *row), 1)


def test_column_with_a_gap_does_not_connect() -> None:
    """One missing stone, or one of the other player, breaks a chain."""
    column = stones_of(1, *((row, 3) for row in range(8)))
    assert not connects(HEX8, {**column, (4, 3): 2}, 1)
    del column[(4, 3)]
    assert not connects(HEX8, column, 1)


def test_only_one_diagonal_connects_on_hexagons_and_none_on_squares() -> None:
    """The short diagonal is a chain of neighbours on hex8; on square8 corners do not touch."""
    short = stones_of(1, *((row, 7 - row) for row in range(8)))
    long = stones_of(1, *((row, row) for row in range(8)))
    assert connects(HEX8, short, 1)
    assert not connects(HEX8, long, 1)
    assert not connects(SQUARE8, short, 1)
    assert not connects(SQUARE8, long, 1)


def test_chain_that_winds_back_up_connects() -> None:
    """A chain need not go straight down: here it turns up before it reaches the bottom."""
    down = [(row, 0) for row in range(6)]
    up = [(5, 1), (5, 2), (4, 2), (3, 2), (3, 3), (3, 4)]
    bottom = [(row, 4) for row in range(4, 8)]
    assert connects(SQUARE8, stones_of(1, *down, *up, *bottom), 1)
    assert not connects(SQUARE8, stones_of(1, *down, *up, *bottom[:-1]), 1)


def test_full_hex_board_always_has_exactly_one_winner() -> None:
    """However 64 stones are strewn over the rhombus, exactly one player's edges are joined."""
    for seed in range(200):
        colours = random.Random(seed).choices((1, 2), k=64)
        stones = dict(zip(HEX8.cells(), colours, strict=True))
        assert connects(HEX8, stones, 1) != connects(HEX8, stones, 2)


def test_hex_game_is_never_drawn() -> None:
    """Every game of hex8 has a winner, and the winner made the last move."""
    for seed in range(100):
        record = play("hex8", random.Random(seed))
        assert record.winner == player_of(len(record.moves) - 1)


def test_square_game_ends_with_a_winner_or_a_full_board() -> None:
    """square8 can't stall: it is won, or drawn with all cells taken; both do happen."""
    records = [play("square8", random.Random(seed)) for seed in range(100)]
    drawn = [record for record in records if record.winner is None]
    assert all(len(record.moves) == 64 for record in drawn)
    assert all(len(set(record.moves)) == len(record.moves) <= 64 for record in records)
    assert 0 < len(drawn) < len(records)


@pytest.mark.parametrize("board", BOARDS)
def test_same_seed_plays_the_same_game(board: str) -> None:
    """A game depends on its generator alone, and other seeds give other games."""
    assert play(board, random.Random(7)) == play(board, random.Random(7))
    assert len({play(board, random.Random(seed)).moves for seed in range(50)}) == 50


def test_board_is_read_from_the_whole_config_key() -> None:
    """Only the two configurations that can be played are taken, and never by a part of a name."""
    assert board_of("hex8_2p") == "hex8"
    assert board_of("square8_2p") == "square8"
    for other in ("hex8", "hex8_3p", "hexagonal_2p", "square19_2p", "xhex8_2p"):
        with pytest.raises(ValueError, match="can't be played"):
            board_of(other)


def test_cells_are_written_with_column_letter_and_row_number() -> None:
    """The first cell is a1 and the last one h8."""
    assert [notation(cell) for cell in ((0, 0), (3, 2), (7, 7))] == ["a1", "c4", "h8"]
