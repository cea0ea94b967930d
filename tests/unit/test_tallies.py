"""What is counted as facts come is what a count of all entries would find."""

from __future__ import annotations

from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from projections.catalog import CatalogView, DataCatalog
from projections.tallies import Amount, Tally
from streams import events
from streams.values import MOST_COUNTED, DataEntry, DataType
from tests.spec import Story, entry, given, holds, model, player, trainer
from tests.unit.histories import Step, any_event, histories, lived, said

CLUSTER = (trainer(), player())
OF_THE_CATALOG = tuple(CatalogView().folds)


def recounted(catalog: DataCatalog) -> list[Tally]:
    """All current entries, looked at one by one."""
    found: dict[tuple[str, str], list[DataEntry]] = {}
    for one in catalog.current():
        found.setdefault((one.config_key, one.data_type), []).append(one)
    return [_tally(*key, found[key]) for key in sorted(found)]


def _tally(config_key: str, data_type: str, entries: list[DataEntry]) -> Tally:
    games = [one.games for one in entries if one.games is not None]
    copies = sorted({len(one.locations) for one in entries})
    nodes = sorted({node for one in entries for node in one.locations})
    return Tally(
        config_key,
        data_type,
        sum(games) if games else None,
        {at: _amount([e for e in entries if len(e.locations) == at]) for at in copies},
        {node: _amount([e for e in entries if node in e.locations]) for node in nodes},
    )


def _amount(entries: list[DataEntry]) -> Amount:
    return Amount(len(entries), sum(one.size_bytes for one in entries))


def tallied(story: Story) -> list[Tally]:
    """As it was counted; it holds what a recount finds."""
    catalog = story.view.catalog
    found = list(catalog.tallied())
    assert found == recounted(catalog)
    return found


@settings(max_examples=100, deadline=None)
@sampled(histories())
def test_after_any_life_what_was_counted_is_what_is_there(steps: list[Step]) -> None:
    """With conflicts, removals, promotions, rot, late results and messages that come twice."""
    tallied(lived(steps))


@settings(max_examples=100, deadline=None)
@sampled(st.lists(any_event(*OF_THE_CATALOG), max_size=12))
def test_whatever_is_said_is_counted(whatever: list[events.Event]) -> None:
    """Also what makes no sense, with numbers at the ends of their ranges."""
    tallied(given(*map(said, whatever)))


def test_one_path_counts_once_with_the_version_that_counts() -> None:
    """Another content of the same path takes the place of the one before, on each node."""
    old, new = model("old"), model("new")
    story = given(*CLUSTER, holds("gpu-1", old), holds("train-1", old))
    [row] = tallied(story)
    assert (row.by_copies, row.games) == ({2: Amount(1, old.size_bytes)}, None)
    story.tell(holds("gpu-1", new))
    [row] = tallied(story)
    assert row.by_copies == {1: Amount(1, new.size_bytes)}
    assert set(row.by_node) == {"gpu-1"}


def test_what_nobody_holds_any_more_is_counted_no_more() -> None:
    """Nothing is left of it, also no row of zeros."""
    one = model()
    story = given(*CLUSTER, holds("gpu-1", one))
    story.tell(events.FilesRemoved(node="gpu-1", paths=(one.path,)))
    assert tallied(story) == []
    with story.store.read() as reader:
        assert reader.count("tallies") == 0


def test_games_are_known_as_long_as_somebody_has_counted_some() -> None:
    """None is not zero: what is left when counted files are gone was never counted."""
    counted = [entry(f"games/gpu-1/{n}_hex8_2p.db", games=n) for n in (3, 4)]
    whole = entry("games/gpu-1/never-counted_hex8_2p.db")
    story = given(*CLUSTER, holds("gpu-1", *counted, whole))
    found = [tallied(story)[0].games]
    for one in counted:
        story.tell(events.FilesRemoved(node="gpu-1", paths=(one.path,)))
        found.append(tallied(story)[0].games)
    assert found == [7, 4, None]


def test_sums_that_no_other_number_holds_are_exact() -> None:
    """Two files as large as a file can be said to be, then one of them, leave nothing uncounted."""
    large = [
        entry(f"models/{name}.pth", data_type=DataType.MODELS, size_bytes=MOST_COUNTED)
        for name in ("one", "two", "three")
    ]
    story = given(*CLUSTER, *(holds("gpu-1", one) for one in large))
    [row] = tallied(story)
    assert row.by_node["gpu-1"] == Amount(3, 3 * MOST_COUNTED)
    story.tell(events.FilesRemoved(node="gpu-1", paths=tuple(one.path for one in large[1:])))
    [row] = tallied(story)
    assert row.by_node["gpu-1"] == Amount(1, MOST_COUNTED)
