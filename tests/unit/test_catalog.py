"""The catalog: which content is where, which one counts, and whose it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from msgspec.structs import replace

from dataplane.catalog import Catalog
from dataplane.config import DataPlaneConfig
from projections.catalog import DataCatalog
from projections.fold import WANTED_VERSIONS, Checkpoint
from projections.store import Store, StoreDirectory, StoreError
from streams import events
from streams.codec import Recorded
from streams.values import S3_NODE, DataEntry, DataType, Transport, TransportResult
from tests.spec import (
    T0,
    Story,
    after,
    copied,
    entry,
    games_of,
    given,
    holds,
    model,
    npz,
    succeeded_with,
)
from tests.unit.histories import NAMES, Step, histories, lived

GAMES = games_of("gpu-1")
MODEL, OTHER = model("first"), model("second")


def catalog(*facts: object) -> DataCatalog:
    """The catalog after these facts."""
    return given(*facts).view.catalog  # type: ignore[arg-type]


def found(entries: object) -> set[tuple[str, str]]:
    """Entries by path and digest."""
    return {(one.path, one.checksum) for one in entries}  # type: ignore[attr-defined]


def removed(node: str, *paths: str) -> events.FilesRemoved:
    """Files are gone from a node."""
    return events.FilesRemoved(node=node, paths=paths)


def quarantined(node: str, what: DataEntry) -> events.FileQuarantined:
    """A file is set aside."""
    return events.FileQuarantined(
        node=node, path=what.path, checksum=what.checksum, reason="quick_check failed"
    )


# What is claimed


def test_first_claim_makes_a_version_and_its_authority() -> None:
    """The version is the sequence of the fact that made it count."""
    known = catalog(holds("gpu-2"), holds("gpu-1", GAMES)).get(GAMES.path)
    assert known is not None
    assert (known.version, known.primary_location, known.locations) == (2, "gpu-1", ("gpu-1",))
    assert (known.checksum, known.games, known.size_bytes) == (GAMES.checksum, 500, 1_000)


def test_p4_same_named_databases_of_two_producers_are_two_entries() -> None:
    """Each is its producer's, under a path that names it, and neither counts as a copy."""
    mine, theirs = games_of("gpu-1", "a"), games_of("gpu-2", "b")
    known = catalog(holds("gpu-1", mine), holds("gpu-2", theirs))
    assert mine.path != theirs.path
    assert known.get_replication_factor(mine.path) == 1
    assert known.get_replication_factor(theirs.path) == 1
    assert known.counts() == {"paths": 2, "entries": 2, "replicas": 2}


def promoted(node: str) -> events.ModelPromoted:
    """A node's model won."""
    return events.ModelPromoted(config_key="hex8_2p", node=node, model_path=MODEL.path)


def test_promotion_makes_what_the_winner_holds_the_version_that_counts() -> None:
    """The path is the winner's from then on; what counted before is an older version of it."""
    story = given(holds("gpu-1", MODEL), holds("gpu-2", OTHER), after(5), promoted("gpu-2"))
    view = story.view
    known = view.catalog
    one = known.get(MODEL.path)
    assert one is not None
    assert (one.checksum, one.version, one.primary_location) == (OTHER.checksum, 3, "gpu-2")
    [(_, row)] = view.standing()
    assert (row.nodes, row.since) == (("gpu-2",), T0 + 5)
    assert [(o.checksum, o.version) for o in known.versions(MODEL.path)] == [
        (OTHER.checksum, 3),
        (MODEL.checksum, 1),
    ]


@pytest.mark.parametrize("facts", [(), (copied(MODEL.path, "gpu-2"),)], ids=["lacks", "has"])
def test_promotion_of_what_counts_already_changes_only_whose_it_is(
    facts: tuple[object, ...],
) -> None:
    """Whether the winner holds a copy or none: no other content begins to count."""
    known = catalog(holds("gpu-1", MODEL), *facts, promoted("gpu-2"))
    one = known.get(MODEL.path)
    assert one is not None
    assert (one.checksum, one.primary_location, one.version) == (MODEL.checksum, "gpu-2", 1)


def test_content_that_neither_counts_nor_is_held_is_forgotten() -> None:
    """A replaced version, or one in conflict, is of no use once its last holder is gone."""
    facts = (holds("gpu-1", MODEL), holds("gpu-2", OTHER), removed("gpu-2", MODEL.path))
    known = catalog(*facts)
    assert [one.checksum for one in known.versions(MODEL.path)] == [MODEL.checksum]
    left = catalog(*facts, removed("gpu-1", MODEL.path)).versions(MODEL.path)
    assert [(one.checksum, one.locations) for one in left] == [(MODEL.checksum, ())]


def filled(size: int) -> Callable[[], bool]:
    """Says that it is enough when it is asked for the last time that fits."""
    asked = itertools.count(1)
    return lambda: next(asked) >= size


def pages(page: Callable[[bytes], tuple[list[DataEntry], bytes | None]]) -> list[list[DataEntry]]:
    """All pages, from the first on."""
    found, after = [], b""
    while True:
        entries, last = page(after)
        found.append(entries)
        if last is None:
            return found
        after = last


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_pages_of_what_a_node_holds_leave_nothing_out_and_repeat_nothing(size: int) -> None:
    """However few fit into a page; what others hold is on none."""
    mine = [entry(f"games/gpu-1/{n}.db", games=10) for n in range(5)]
    known = catalog(holds("gpu-1", *mine), holds("gpu-10", GAMES))

    every = pages(lambda after: known.held_page("gpu-1", after, filled(size)))
    assert all(len(one) <= size for one in every)
    assert sorted(one.path for found in every for one in found) == [one.path for one in mine]


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_pages_of_what_a_node_lacks_name_all_that_counts_and_that_it_has_not(size: int) -> None:
    """Neither what it holds, nor another version, nor what is of another kind."""
    first, second, third = (entry(f"games/gpu-1/{n}.db") for n in "abc")
    known = catalog(
        holds("gpu-1", first, second, third, npz(), MODEL),
        holds("gpu-2", OTHER),
        copied(second.path, "train-1"),
    )

    def lacks(kind: DataType) -> set[tuple[str, str]]:
        every = pages(
            lambda after: known.lacking_page("train-1", "hex8_2p", kind, after, filled(size))
        )
        return found(one for some in every for one in some)

    assert lacks(DataType.GAMES) == {(one.path, one.checksum) for one in (first, third)}
    assert lacks(DataType.MODELS) == {(MODEL.path, MODEL.checksum)}


def test_promotion_of_an_unknown_path_is_no_news() -> None:
    """Nobody holds it: there is nothing to count."""
    assert catalog(promoted("gpu-2")).get(MODEL.path) is None


def test_content_that_does_not_count_is_no_younger_for_another_copy() -> None:
    """A third node that has it does not lift it over the version that counts."""
    known = catalog(holds("gpu-1", MODEL), holds("gpu-2", OTHER), holds("gpu-3", OTHER))
    assert {(one.checksum, one.version) for one in known.versions(MODEL.path)} == {
        (MODEL.checksum, 1),
        (OTHER.checksum, 2),
    }


def test_one_content_under_two_paths_is_two_entries() -> None:
    """A copy by another name has a place, and holders, of its own."""
    first = entry("a/hex8_2p.db")
    second = replace(entry("b/hex8_2p.db"), checksum=first.checksum)
    known = catalog(holds("gpu-1", first), holds("gpu-2", second))
    assert known.holders(first.path, first.checksum) == ("gpu-1",)
    assert known.holders(second.path, second.checksum) == ("gpu-2",)
    assert found(known.entries()) == {(first.path, first.checksum), (second.path, first.checksum)}


def test_p4_two_contents_under_a_shared_path_are_not_two_copies() -> None:
    """Both stay, the authority's counts, and its copies are those of exactly that content."""
    known = catalog(holds("train-1", MODEL), holds("gpu-1", OTHER))
    current = known.get(MODEL.path)
    assert current is not None
    assert (current.checksum, current.primary_location) == (MODEL.checksum, "train-1")
    assert known.get_replication_factor(MODEL.path) == 1
    assert found(known.versions(MODEL.path)) == found([MODEL, OTHER])
    assert not known.is_current(known.versions(MODEL.path)[0])


def test_p22_same_size_is_not_the_same_content() -> None:
    """Only the digest makes two files one entry."""
    assert MODEL.size_bytes == OTHER.size_bytes
    assert catalog(holds("a", MODEL), holds("b", OTHER)).holders(MODEL.path, MODEL.checksum) == (
        "a",
    )


def test_new_content_of_the_authority_is_the_new_version() -> None:
    """Later versions have larger numbers, and copies of the old one are not copies of it."""
    known = catalog(holds("train-1", MODEL), copied(MODEL.path, "gpu-1"), holds("train-1", OTHER))
    current = known.get(MODEL.path)
    assert current is not None
    assert (current.checksum, current.version, current.locations) == (
        OTHER.checksum,
        3,
        ("train-1",),
    )
    assert [one.checksum for one in known.versions(MODEL.path)] == [OTHER.checksum, MODEL.checksum]
    assert known.holders(MODEL.path, MODEL.checksum) == ("gpu-1",)


def test_version_that_nobody_holds_any_more_is_forgotten() -> None:
    """What was overwritten everywhere leaves no entry behind."""
    known = catalog(holds("gpu-1", GAMES), holds("gpu-1", games_of("gpu-1", "second")))
    assert known.counts() == {"paths": 1, "entries": 1, "replicas": 1}
    assert known.holders(GAMES.path, GAMES.checksum) == ()


def test_same_content_seen_again_is_the_same_version() -> None:
    """A rescan changes nothing."""
    once, again = given(holds("gpu-1", GAMES)), given(holds("gpu-1", GAMES), holds("gpu-1", GAMES))
    assert once.view.catalog.get(GAMES.path) == again.view.catalog.get(GAMES.path)


@pytest.mark.parametrize("kept_elsewhere", [True, False])
def test_old_content_that_comes_back_outranks_what_replaced_it(kept_elsewhere: bool) -> None:
    """A trainer rolls a model back: that is a new version with an old digest."""
    story = given(holds("train-1", MODEL))
    if kept_elsewhere:
        story.tell(copied(MODEL.path, "vault"))
    story.tell(holds("train-1", OTHER), copied(MODEL.path, "gpu-1"), holds("train-1", MODEL))
    known = story.view.catalog
    current, at_gpu = known.get(MODEL.path), known.held_by("gpu-1", MODEL.path)
    assert current is not None and at_gpu is not None
    assert current.checksum == MODEL.checksum
    assert at_gpu.checksum == OTHER.checksum
    assert current.version > at_gpu.version
    assert ("vault" in current.locations) == kept_elsewhere


# Whose it is


def test_authority_passes_on_when_the_old_one_has_nothing_under_the_path() -> None:
    """The next claim counts, however different it is."""
    known = catalog(holds("train-1", MODEL), removed("train-1", MODEL.path), holds("t2", OTHER))
    current = known.get(MODEL.path)
    assert current is not None
    assert (current.primary_location, current.checksum) == ("t2", OTHER.checksum)


def test_authority_stays_while_it_holds_anything_under_the_path() -> None:
    """A second producer of a shared path can't take it over by being later."""
    known = catalog(holds("train-1", MODEL), holds("t2", OTHER), holds("t2", model("third")))
    current = known.get(MODEL.path)
    assert current is not None and current.primary_location == "train-1"


def test_same_content_claimed_by_another_node_is_a_copy() -> None:
    """Who has the same bytes holds a replica; the authority stays the first."""
    known = catalog(holds("train-1", MODEL), holds("gpu-1", MODEL))
    current = known.get(MODEL.path)
    assert current is not None
    assert (current.primary_location, current.locations) == ("train-1", ("gpu-1", "train-1"))


# What arrives and what goes


def test_arrival_makes_a_holder_and_nothing_else() -> None:
    """Version and authority stay what they were."""
    before = catalog(holds("gpu-1", GAMES)).get(GAMES.path)
    after = catalog(holds("gpu-1", GAMES), copied(GAMES.path, "train-1")).get(GAMES.path)
    assert before is not None and after is not None
    assert after.locations == ("gpu-1", "train-1")
    assert (after.version, after.primary_location) == (before.version, "gpu-1")


def test_arrival_replaces_what_the_target_held_under_the_path() -> None:
    """A node holds at most one content under a path."""
    story = given(holds("train-1", MODEL), copied(MODEL.path, "gpu-1"), holds("train-1", OTHER))
    story.tell(copied(MODEL.path, "gpu-1"))
    known = story.view.catalog
    held = known.held_by("gpu-1", MODEL.path)
    assert held is not None and held.checksum == OTHER.checksum
    assert known.holders(MODEL.path, MODEL.checksum) == ()
    assert len(list(known.entries(node="gpu-1"))) == 1


def test_arrival_of_what_nobody_claimed_is_held_but_does_not_count() -> None:
    """A stray transfer makes no version."""
    known = catalog(succeeded_with(MODEL, "gpu-1"))
    assert known.holders(MODEL.path, MODEL.checksum) == ("gpu-1",)
    assert known.get(MODEL.path) is None
    assert list(known.current()) == []


def test_removed_file_is_no_copy() -> None:
    """The other copies stay, and the version still counts."""
    known = catalog(
        holds("gpu-1", GAMES), copied(GAMES.path, "train-1"), removed("gpu-1", GAMES.path)
    )
    assert known.holders(GAMES.path, GAMES.checksum) == ("train-1",)
    assert known.held_by("gpu-1", GAMES.path) is None
    current = known.get(GAMES.path)
    assert current is not None and current.locations == ("train-1",)


def test_removal_and_quarantine_of_what_is_unknown_are_ignored() -> None:
    """`evolve` is total: a path, a node or a content nobody knows changes nothing."""
    story = given(holds("gpu-1", GAMES))
    before = story.digests()["catalog"]
    story.tell(
        removed("gpu-1", "never/heard/of"),
        removed("gpu-9", GAMES.path),
        quarantined("gpu-1", games_of("gpu-1", "another")),
        quarantined("gpu-9", GAMES),
    )
    assert story.digests()["catalog"] == before


def test_quarantined_copy_is_no_copy() -> None:
    """A copy that rotted does not count as one."""
    known = catalog(
        holds("gpu-1", GAMES), copied(GAMES.path, "train-1"), quarantined("train-1", GAMES)
    )
    assert known.holders(GAMES.path, GAMES.checksum) == ("gpu-1",)


def test_version_whose_every_holder_is_gone_is_still_named() -> None:
    """That something is lost must be visible; a path that vanishes without a trace is not."""
    known = catalog(holds("gpu-1", GAMES), removed("gpu-1", GAMES.path)).get(GAMES.path)
    assert known is not None
    assert (known.checksum, known.locations) == (GAMES.checksum, ())


# Questions


STOCK = (
    holds("gpu-1", GAMES, games_of("gpu-1", config_key="hexagonal_2p"), npz(), MODEL),
    holds("gpu-2", games_of("gpu-2"), OTHER),
    copied(GAMES.path, "train-1"),
)


def test_entries_are_found_by_node_configuration_and_type() -> None:
    """Each of the three narrows the answer, and none matches half a name."""
    known = catalog(*STOCK)
    paths = {
        question: sorted(one.path for one in known.entries(**dict(question)))  # type: ignore[arg-type]
        for question in (
            (("node", "train-1"),),
            (("node", "gpu"),),
            (("config_key", "hex"),),
            (("config_key", "hexagonal_2p"),),
            (("data_type", DataType.NPZ),),
            (("config_key", "hex8_2p"), ("data_type", DataType.GAMES)),
            (("node", "gpu-1"), ("data_type", DataType.MODELS)),
            (("node", "gpu-1"), ("config_key", "hex8_2p"), ("data_type", DataType.GAMES)),
        )
    }
    assert list(paths.values()) == [
        [GAMES.path],
        [],
        [],
        ["games/gpu-1/hexagonal_2p.db"],
        ["npz/hex8_2p.npz"],
        [GAMES.path, "games/gpu-2/hex8_2p.db"],
        [MODEL.path],
        [GAMES.path],
    ]
    assert len(list(known.entries())) == 6


def test_current_entries_leave_out_what_does_not_count() -> None:
    """A conflicting content is an entry, but not a current one."""
    known = catalog(*STOCK)
    assert found(known.entries()) - found(known.current()) == found([OTHER])


def test_p17_what_is_missing_on_a_node_is_found_without_a_trigger() -> None:
    """All current entries that belong there and that it does not hold, by path."""
    known = catalog(*STOCK)
    missing = known.get_missing_on_node("train-1", DataType.GAMES)
    assert [one.path for one in missing] == [
        "games/gpu-1/hexagonal_2p.db",
        "games/gpu-2/hex8_2p.db",
    ]
    only = known.get_missing_on_node("train-1", wanted=lambda one: one.path.endswith(".npz"))
    assert [one.path for one in only] == ["npz/hex8_2p.npz"]


def test_unknown_path_has_no_version_no_copies_and_no_holders() -> None:
    """A question about nothing is answered, not raised at."""
    known = catalog()
    assert known.get("a") is None
    assert known.versions("a") == []
    assert known.get_replication_factor("a") == 0
    assert known.held_by("gpu-1", "a") is None


def test_long_paths_are_paths_like_any_other() -> None:
    """Paths never become keys, so that no path is too long for the store."""
    long = entry("games/gpu-1/" + "d" * 3_900 + "/hex8_2p.db", games=1)
    assert catalog(holds("gpu-1", long)).holders(long.path, long.checksum) == ("gpu-1",)


# Tables that agree


def held_by_model(facts: list[Recorded]) -> dict[tuple[str, str], str]:
    """What each node holds under each path, by the plainest reading of the facts."""
    held: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str]] = set()
    for fact in facts:
        event = fact.event
        if (fact.subject, fact.id) in seen:
            continue
        seen.add((fact.subject, fact.id))
        if isinstance(event, events.FilesObserved):
            held |= {(event.node, one.path): one.checksum for one in event.entries}
        elif isinstance(event, events.TransferSucceeded):
            held[(event.target, event.entry.path)] = event.entry.checksum
        elif isinstance(event, events.FilesRemoved):
            for path in event.paths:
                held.pop((event.node, path), None)
        elif (
            isinstance(event, events.FileQuarantined)
            and held.get((event.node, event.path)) == event.checksum
        ):
            del held[(event.node, event.path)]
    return held


def agrees(story: Story) -> None:
    """Every question to the catalog gives what the plain reading gives."""
    known, model_ = story.view.catalog, held_by_model(story.facts)
    by_node = {name: found(known.entries(node=name)) for name in (*NAMES, "somebody")}
    assert {(n, p, c) for n, entries in by_node.items() for p, c in entries} == {
        (node, path, digest) for (node, path), digest in model_.items()
    }
    for one in known.entries():
        holders = tuple(
            sorted(n for (n, p), c in model_.items() if (p, c) == (one.path, one.checksum))
        )
        assert known.holders(one.path, one.checksum) == one.locations == holders != ()
        assert (one.path, one.checksum) in found(known.versions(one.path))
        assert one.checksum in {
            same.checksum
            for same in known.entries(config_key=one.config_key, data_type=one.data_type)
        }
    assert known.counts()["replicas"] == len(model_)
    assert known.counts()["entries"] == len({(p, c) for (_, p), c in model_.items()})


def test_content_that_two_nodes_call_by_different_types_is_one_entry() -> None:
    """The first word counts: what one node loses does not stay in its list under another type."""
    database = entry("games/gpu-1/hex8_2p.db")
    other_word = entry(database.path, data_type=DataType.METADATA, config_key="all")
    story = given(holds("n0", database), holds("n1", other_word))
    agrees(story)
    story.tell(removed("n1", database.path))
    agrees(story)
    story.tell(holds("n0", npz()), holds("n0", other_word))
    agrees(story)


@settings(max_examples=80, deadline=None)
@sampled(steps=histories())
def test_all_tables_tell_the_same_of_every_history(steps: list[Step]) -> None:
    """Holders, holdings, versions and counts agree with the plainest reading of the log."""
    agrees(lived(steps))


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_versions_of_a_path_are_different_and_the_current_one_is_among_them(
    steps: list[Step],
) -> None:
    """Of two contents of one path exactly one is newer."""
    known = lived(steps).view.catalog
    for path in {one.path for one in known.entries()}:
        versions = [one.version for one in known.versions(path) if one.version]
        assert len(versions) == len(set(versions))
        current = known.get(path)
        assert current is None or current in known.versions(path)


def test_the_bucket_stands_in_for_a_producer_until_it_speaks() -> None:
    """What was restored from it counts while nobody claims the path; then the claim counts."""
    stored, newer = games_of("gpu-1"), games_of("gpu-1", "second")
    story = given(holds(S3_NODE, stored))
    assert [e.primary_location for e in story.view.catalog.current()] == [S3_NODE]
    story.tell(holds("gpu-1", stored))
    [same] = story.view.catalog.current()
    assert (same.primary_location, same.locations) == ("gpu-1", ("gpu-1", S3_NODE))
    story = given(holds(S3_NODE, stored), holds("gpu-1", newer))
    [current] = story.view.catalog.current()
    assert (current.checksum, current.primary_location) == (newer.checksum, "gpu-1")
    story.tell(holds(S3_NODE, stored))
    assert [e.primary_location for e in story.view.catalog.current()] == ["gpu-1"]


def through_the_bucket(*, sent: bool, came: bool) -> tuple[TransportResult, ...]:
    """What a holder that sent by way of the bucket tells of itself and of the target."""
    return tuple(
        TransportResult(
            success=success,
            transport_used=Transport.S3,
            bytes_transferred=1,
            duration_seconds=1.0,
            remote=S3_NODE,
        )
        for success in ([sent, came] if sent else [sent])
    )


@pytest.mark.parametrize("came", [True, False])
def test_what_was_sent_by_way_of_the_bucket_is_held_there_too(came: bool) -> None:
    """Object and manifest are there, whether the target has fetched it yet or not."""
    arrived = succeeded_with(GAMES, "train-1", source="gpu-1")
    results = through_the_bucket(sent=True, came=came)
    if came:
        event: events.Event = replace(arrived, node="gpu-1", results=results)
    else:
        event = fell_short(GAMES, results)
    [current] = catalog(holds("gpu-1", GAMES), event).current()
    assert set(current.locations) == {"gpu-1", S3_NODE} | ({"train-1"} if came else set())


def test_the_bucket_holds_nothing_of_a_push_that_failed_or_went_elsewhere() -> None:
    """A try proves nothing, nor does another node that only speaks of the bucket."""
    failed = fell_short(GAMES, through_the_bucket(sent=False, came=False))
    elsewhere = replace(fell_short(GAMES, through_the_bucket(sent=True, came=True)), node="train-1")
    [current] = catalog(holds("gpu-1", GAMES), failed, elsewhere).current()
    assert current.locations == ("gpu-1",)


def fell_short(what: DataEntry, results: tuple[TransportResult, ...]) -> events.TransferFailed:
    """A holder could not get an entry to its target."""
    return events.TransferFailed(
        transfer="t",
        node="gpu-1",
        source="gpu-1",
        target="train-1",
        entry=replace(what, locations=()),
        attempt=1,
        error="no byte came",
        error_class="Stalled",
        results=results,
    )


def test_views_of_another_version_are_said_to_be_so(tmp_path: Path) -> None:
    """After an upgrade, until a coordinator of the new version has folded them anew."""
    config = DataPlaneConfig.from_values({"node": "boss", "state_dir": tmp_path})
    directory = StoreDirectory(config.views_dir)
    store = Store.open(directory.next(), ("meta",), durable=False)
    older = Checkpoint(sequence=7, versions={**WANTED_VERSIONS, "catalog": 1})
    store.write(lambda tx: tx.put("meta", b"checkpoint", msgspec.json.encode(older)))
    store.close()
    directory.switch(store.path)
    with (
        closing(Catalog(config)) as catalog,
        pytest.raises(StoreError, match="written by another version"),
    ):
        catalog.where("models/canonical_hex8_2p.pth")
