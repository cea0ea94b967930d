"""Values: priorities in order, configurations read whole, tokens and digests as they must be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import strategies as st

from streams.values import (
    BOARDS,
    DataEntry,
    DataType,
    NodeDescription,
    SyncPriority,
    Transport,
    config_key_in,
    is_token,
)
from tests.spec import checksum, games_of


def test_critical_goes_first_and_background_last() -> None:
    """The rank is what the queue sorts by."""
    order = ["critical", "high", "normal", "low", "background"]
    assert [priority.value for priority in sorted(SyncPriority, key=lambda p: p.rank)] == order
    assert [priority.rank for priority in SyncPriority] == [0, 1, 2, 3, 4]


def test_names_are_those_of_the_users() -> None:
    """What stands in logs, configurations and on the wire."""
    assert [kind.value for kind in DataType] == ["games", "models", "npz", "checkpoint", "metadata"]
    assert {kind.name: kind.value for kind in Transport} == {
        "P2P_GOSSIP": "p2p",
        "HTTP_FETCH": "http",
        "RSYNC": "rsync",
        "S3": "s3",
        "BASE64_SSH": "base64",
    }


@pytest.mark.parametrize(
    ("path", "config_key"),
    [
        ("games/hex8_2p.db", "hex8_2p"),
        ("games/gpu-7/hexagonal_2p.db", "hexagonal_2p"),
        ("models/canonical_square19_4p_v3.pth", "square19_4p"),
        ("npz/square8_3p/hex8_4p.npz", "hex8_4p"),
        ("hex8_2p/games.db", "hex8_2p"),
        ("games/hex8_2player.db", "all"),
        ("games/xhex8_2p.db", "all"),
        ("games/hex88_2p.db", "all"),
        ("games/hex8_5p.db", "all"),
        ("games/hex8.db", "all"),
        ("games/HEX8_2P.db", "all"),
        ("", "all"),
    ],
)
def test_configuration_is_read_whole_from_a_path(path: str, config_key: str) -> None:
    """`hex8` is not `hexagonal`; a file's own name outranks its directories."""
    assert config_key_in(path) == config_key


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("players", [2, 3, 4])
def test_each_of_the_twelve_configurations_is_found(board: str, players: int) -> None:
    """In a model's name, between other words."""
    key = f"{board}_{players}p"
    assert config_key_in(f"models/canonical_{key}_best.pth") == key


@sampled(st.text())
def test_configuration_of_any_path_can_stand_in_a_subject(path: str) -> None:
    """Whatever a file is called."""
    assert is_token(config_key_in(path))


@pytest.mark.parametrize("text", ["a", "A-_9", "x" * 64, "gpu-7", "-"])
def test_token_is_a_token(text: str) -> None:
    """Letters, digits, `_` and `-`, at most 64."""
    assert is_token(text)


@pytest.mark.parametrize("text", ["", "a.b", "a b", "*", ">", "a/b", "é", "x" * 65, "a\n", "\na"])
def test_what_would_break_a_subject_is_no_token(text: str) -> None:
    """A newline at the end is looked at, too."""
    assert not is_token(text)


def test_values_are_compared_by_content_and_never_change() -> None:
    """The same file said twice is the same value; a fact can't be altered."""
    assert games_of("gpu-7") == games_of("gpu-7") != games_of("gpu-8")
    with pytest.raises(AttributeError):
        games_of("gpu-7").path = "elsewhere"  # type: ignore[misc]


def test_value_is_short_on_the_wire() -> None:
    """What is at its default is not said."""
    assert msgspec.json.encode(NodeDescription(name="gpu-7")) == b'{"name":"gpu-7"}'


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""),
        ("path", "x" * 4_097),
        ("size_bytes", -1),
        ("size_bytes", 2**63),
        ("size_bytes", 1.5),
        ("checksum", "sha256:abc"),
        ("checksum", checksum("a").upper()),
        ("checksum", checksum("a")[7:]),
        ("config_key", "hex8.2p"),
        ("data_type", "GAMES"),
        ("games", -1),
    ],
)
def test_entry_that_is_not_well_formed_is_refused_by_field(field: str, value: object) -> None:
    """The reason carries the path of the field."""
    good = msgspec.to_builtins(games_of("gpu-7"))
    assert msgspec.convert(good, DataEntry) == games_of("gpu-7")
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        msgspec.convert({**good, field: value}, DataEntry)
