"""What the planner says of everything that it does not move, to the letter.

These are the sentences by which an operator learns why a node lacks something: each names who,
what, and the figures. `LACKS` marks those that keep a chain from completing, because somebody
does not get what he was to get.
"""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.planner.deciding import PATHS_NAMED, REASON_CHARACTERS
from dataplane.policy import GIGABYTE
from streams import events
from streams.events import Event
from streams.values import S3_NODE, DataType, Role, Trait
from tests.spec import (
    Tellable,
    copied,
    entry,
    games_of,
    given,
    holds,
    model,
    node,
    npz,
    played,
    player,
    succeeded_with,
    trainer,
)
from tests.unit.triggers import (
    ELO,
    GAMES,
    GAMES_PATH,
    GPUS,
    TRAINERS,
    VAULT,
    expected,
    needed,
    offline,
    orphaned,
    promoted,
    requested,
    started,
    terminating,
)

LACKS = "LACKS: "
MODEL_PATH = model().path
OTHER_MODEL = model("its own")
FEW_GAMES = entry("games/gpu-1/few_hex8_2p.db", games=9)
#: A run gets a smaller training set than the one it has.
SHRUNKEN = (
    trainer(),
    player(),
    holds("gpu-1", npz(size_bytes=1_000)),
    copied(npz().path, "train-1"),
    holds("gpu-1", npz("cut", size_bytes=799)),
)
S3 = {"s3": {"enabled": True, "bucket": "b"}}
Row = tuple[str, tuple[Tellable, ...], Event, tuple[str, ...], dict[str, Any]]

REFUSED: list[Row] = [
    (
        "who plays holds nothing",
        (trainer(), player()),
        played(),
        ("gpu-1 holds no hex8_2p games",),
        {},
    ),
    (
        "nobody holds what a run needs",
        (trainer(), player()),
        started(),
        ("nobody holds hex8_2p games/npz",),
        {},
    ),
    (
        "nobody holds what was named",
        (trainer(), player()),
        needed(paths=("games/a.db", "games/b.db")),
        ("nobody holds hex8_2p games at games/a.db, games/b.db",),
        {},
    ),
    (
        "a rule for the files of who speaks, where nobody speaks",
        (trainer(), player(), holds("gpu-1", GAMES)),
        requested("train-1"),
        ("no node speaks that would hold hex8_2p games",),
        {"placement": {"rules": {"requested": {"source": "speaker"}}}},
    ),
    (
        "too few games, and too poor ones",
        (trainer(), player(), holds("gpu-1", FEW_GAMES, games_of("gpu-1", quality=0.49))),
        played(),
        (
            f"{FEW_GAMES.path} has 9 games, worth moving from 10",
            f"{GAMES_PATH} has a mean quality of 0.49, worth moving from 0.50",
        ),
        {},
    ),
    (
        "no node of the kinds that the rule names",
        (player(), holds("gpu-1", GAMES)),
        orphaned(),
        ("no coordinator/storage/s3 node can receive: none has registered",),
        {},
    ),
    (
        "all nodes of that kind are kept from it",
        (*TRAINERS, player(), holds("gpu-1", GAMES), offline("train-1")),
        played(),
        (
            "train-1 is offline: ping lost",
            "train-2 is in exclude_hosts (none-*, *-2)",
            "no training node can receive: train-1 is offline: ping lost; "
            "train-2 is in exclude_hosts (none-*, *-2)",
        ),
        {"exclusion": {"exclude_hosts": ["none-*", "*-2"]}},
    ),
    (
        "who asks is offline, as it said itself",
        (trainer(), player(), holds("gpu-1", GAMES), events.HostOffline(node="train-1")),
        needed(),
        (
            LACKS + "train-1 is offline: it said so",
            "no speaker/training node can receive: train-1 is offline: it said so",
        ),
        {"placement": {"rules": {"needed": {"to": ["speaker", "training"]}}}},
    ),
    (
        "who has not asked yet is offline",
        (trainer(), player(), holds("gpu-1", GAMES), offline("train-1")),
        expected("train-1", GAMES_PATH),
        (
            "train-1 is offline: ping lost",
            "no speaker node can receive: train-1 is offline: ping lost",
        ),
        {},
    ),
    (
        "named nodes that do not exist",
        (trainer(), player(), holds("gpu-1", GAMES)),
        requested("train-1", "ghost", S3_NODE),
        (
            LACKS + "ghost never registered",
            LACKS + "there is no bucket: policy.s3.enabled is false",
        ),
        {},
    ),
    (
        "a run is expected of a node that does not exist",
        (player(), holds("gpu-1", GAMES)),
        expected("ghost", GAMES_PATH),
        ("ghost never registered", "no speaker node can receive: ghost never registered"),
        {},
    ),
    (
        "a disk that takes no background data",
        (trainer(disk_total_bytes=1_000, disk_free_bytes=300), player(), holds("gpu-1", GAMES)),
        expected("train-1", GAMES_PATH),
        (
            "train-1's disk is 70% full: nothing that may be spared from 70% on",
            "no speaker node can receive: "
            "train-1's disk is 70% full: nothing that may be spared from 70% on",
        ),
        {},
    ),
    (
        "no room for a broadcast",
        (
            trainer(),
            *GPUS,
            node("gpu-1", traits=[Trait.GPU], memory_total_bytes=100, memory_free_bytes=29),
            node(
                "gpu-3",
                traits=[Trait.GPU],
                disk_total_bytes=900 * GIGABYTE,
                disk_free_bytes=49 * GIGABYTE,
            ),
            holds("train-1", model()),
        ),
        promoted(),
        (
            "gpu-1 has 29% of its memory free, 30% are needed",
            "gpu-3 has 49.0 GB free, 50 GB are needed",
        ),
        {},
    ),
    (
        "enough copies",
        (*TRAINERS, trainer("train-3"), player(), holds("gpu-1", GAMES)),
        played(),
        (f"{GAMES_PATH} has 1 of 1 copies; none for train-2, train-3",),
        {"placement": {"rules": {"selfplay": {"copies": 1}}}},
    ),
    (
        "holders that are away",
        (
            trainer(),
            VAULT,
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "vault"),
            offline("gpu-1"),
            offline("vault"),
        ),
        started(),
        (LACKS + f"no holder of {GAMES_PATH} is online; held by gpu-1, vault",),
        {},
    ),
    (
        "a model of its own, younger than the one that counts",
        (trainer(), GPUS[0], holds("train-1", model()), holds("gpu-1", OTHER_MODEL)),
        promoted(),
        (LACKS + f"gpu-1 holds another content of its own under {MODEL_PATH}; both stay",),
        {},
    ),
    (
        "such a model in the bucket: nobody lacks it",
        (
            trainer(),
            *GPUS,
            holds("train-1", model()),
            copied(MODEL_PATH, "gpu-2"),
            holds("gpu-2", OTHER_MODEL),
            succeeded_with(OTHER_MODEL, S3_NODE),
        ),
        promoted(),
        (
            LACKS + f"gpu-2 holds another content of its own under {MODEL_PATH}; both stay",
            f"s3 holds another content of its own under {MODEL_PATH}; both stay",
        ),
        S3,
    ),
    (
        "fewer bytes than are there",
        SHRUNKEN,
        started("train-1", DataType.NPZ),
        (LACKS + f"{npz().path} has 799 bytes, train-1 holds 1000: less than 80%",),
        {},
    ),
    (
        "fewer games than are there",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "train-1"),
            holds("gpu-1", games_of("gpu-1", "reborn", games=12)),
        ),
        played(),
        (LACKS + f"{GAMES_PATH} has 12 games, train-1 holds 500: less than 80%",),
        {},
    ),
    (
        "what is merged, on request",
        (trainer(), player(), holds("gpu-1", ELO)),
        requested("train-1", data_type=DataType.METADATA),
        (f"{ELO.path} is merged, never replaced by a copy",),
        {},
    ),
    (
        "what is merged, and only a vanishing node has it",
        (VAULT, player(), holds("gpu-1", ELO)),
        terminating(),
        (
            LACKS + f"{ELO.path} is merged, never replaced by a copy",
            LACKS + "1 entry will have 0 of 3 lasting copies, "
            f"because no other node can receive: {ELO.path}",
        ),
        {},
    ),
    (
        "what is merged, where another node has it as well",
        (VAULT, player(), player("gpu-2"), holds("gpu-1", ELO), copied(ELO.path, "gpu-2")),
        terminating(),
        (
            f"{ELO.path} is merged, never replaced by a copy",
            "1 entry will have 1 of 3 lasting copies, "
            f"because no other node can receive: {ELO.path}",
        ),
        {},
    ),
    (
        "a copy on the mount of the node that vanishes is none",
        (
            node("nas", Role.STORAGE, nfs_group="rack"),
            player(nfs_group="rack"),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "nas"),
        ),
        terminating(),
        (
            LACKS + "1 entry will have 0 of 3 lasting copies, "
            f"because no other node can receive: {GAMES_PATH}",
        ),
        {},
    ),
]


@pytest.mark.parametrize(
    ("facts", "trigger", "said", "tables"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_refusal_says_why_in_figures_and_whether_somebody_lacks_something(
    facts: tuple[Tellable, ...], trigger: Event, said: tuple[str, ...], tables: dict[str, Any]
) -> None:
    """Exactly these sentences, in any order; and only those that are marked block the chain."""
    refusals = given(*facts).under(**tables).plans(trigger).refusals
    assert all(isinstance(refusal.blocking, bool) for refusal in refusals)
    found = sorted(LACKS * refusal.blocking + refusal.reason for refusal in refusals)
    assert found == sorted(said)


@pytest.mark.parametrize(
    ("facts", "trigger", "kept"),
    [
        (
            (trainer(), GPUS[0], holds("train-1", model()), holds("gpu-1", OTHER_MODEL)),
            promoted(),
            OTHER_MODEL.checksum,
        ),
        (SHRUNKEN, started("train-1", DataType.NPZ), npz().checksum),
        ((trainer(), player(), holds("gpu-1", ELO)), requested("train-1"), ""),
    ],
    ids=["a conflict", "a regression", "nothing"],
)
def test_refusal_names_the_content_that_a_target_keeps(
    facts: tuple[Tellable, ...], trigger: Event, kept: str
) -> None:
    """So that FILE_CONFLICT can say of which two contents it speaks."""
    (refusal,) = given(*facts).plans(trigger).refusals
    assert refusal.checksum == kept


@pytest.mark.parametrize(("entries", "more"), [(PATHS_NAMED, ""), (PATHS_NAMED + 1, ", …")])
def test_entries_with_too_few_copies_are_counted_and_the_first_are_named(
    entries: int, more: str
) -> None:
    """One sentence for all that share a fate: it says where it leaves off."""
    found = [games_of("gpu-1", config_key=f"hex8_{number:03}") for number in range(entries)]
    decision = given(VAULT, player(), holds("gpu-1", *found)).plans(terminating())
    (refusal,) = decision.refusals
    named = ", ".join(one.path for one in found[:PATHS_NAMED])
    assert refusal.reason == (
        f"{entries} entries will have 1 of 3 lasting copies, "
        f"because no other node can receive: {named}{more}"
    )


def test_refusal_that_repeats_what_was_named_fits_into_a_message() -> None:
    """Who names thousands of paths that nobody holds reads the first of them."""
    paths = tuple(f"games/{number:04}.db" for number in range(5_000))
    (refusal,) = given(trainer(), player()).plans(needed(paths=paths)).refusals
    assert refusal.reason.startswith("nobody holds hex8_2p games at games/0000.db, games/0001.db")
    assert len(refusal.reason) == REASON_CHARACTERS
