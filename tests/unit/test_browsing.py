"""Looking through the catalog page by page: everything once, and no page dearer than a page."""

from __future__ import annotations

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane import browsing
from dataplane.browsing import EntryFilter, EntryPage, entry_page
from dataplane.config import DataPlaneConfig
from dataplane.planner import SyncPlanner
from dataplane.queries import AskMissing, Reading, missing
from streams.micro import ServiceRefusal
from streams.values import DataEntry, DataType
from tests.spec import Story, copied, entry, given, holds, model, npz, player, trainer
from tests.unit.histories import Step, histories, lived

CLUSTER = (trainer(), player(), player("gpu-2"))


def known_of(story: Story) -> Reading:
    """What is known at the end of a story."""
    view = story.view
    planner = SyncPlanner(story.policy, view, story.now)
    return Reading(view, planner, story.now, {}, len(story.facts), DataPlaneConfig(), None)


def pages(story: Story, wanted: EntryFilter, most: int = 2) -> list[EntryPage]:
    """All pages, each as small as `most`."""
    found = [entry_page(known_of(story), wanted, most=most)]
    while found[-1].after:
        found.append(entry_page(known_of(story), wanted, after=found[-1].after, most=most))
    return found


def paths(found: list[EntryPage]) -> list[str]:
    """What stands on them, in order of names."""
    return sorted(line.path for page in found for line in page.entries)


def matching(story: Story, wanted: EntryFilter) -> list[str]:
    """The same, looked for among all entries."""

    known, lacks = known_of(story), wanted.lacks

    def matches(one: DataEntry) -> bool:
        return (
            not 0 < wanted.fewer_than <= len(one.locations)
            and lacks not in one.locations
            and (not lacks or known.planner.belongs(one, lacks))
        )

    found = known.view.catalog.current(
        node=wanted.node, config_key=wanted.config, data_type=wanted.type
    )
    return sorted(one.path for one in found if matches(one))


FILTERS = st.builds(
    EntryFilter,
    type=st.sampled_from((None, *DataType)),
    config=st.sampled_from(("", "hex8_2p", "square8_4p")),
    node=st.sampled_from(("", "gpu-1", "train-1")),
    fewer_than=st.integers(0, 3),
)


@settings(max_examples=100, deadline=None)
@sampled(histories(), FILTERS, st.integers(1, 3))
def test_after_any_life_its_pages_hold_each_entry_once(
    steps: list[Step], wanted: EntryFilter, most: int
) -> None:
    """Whatever was asked for, in pages of whatever size, and counted right where it is counted."""
    story = lived(steps)
    found = pages(story, wanted, most)
    assert paths(found) == matching(story, wanted)
    assert all(len(page.entries) <= most for page in found)
    assert {page.count for page in found} <= {len(paths(found)), None}
    if wanted.lacks or not (wanted.node and wanted.fewer_than):
        assert found[0].count is not None


def test_what_a_node_lacks_comes_page_by_page_and_whole_to_who_asks() -> None:
    """By the rules that bring it something: a self-play node lacks no games of others."""
    games = [entry(f"games/gpu-1/{n}_hex8_2p.db") for n in range(5)]
    story = given(*CLUSTER, holds("gpu-1", *games, model(), npz()))
    story.tell(copied(games[0].path, "train-1"))
    for node in ("train-1", "gpu-2", "gpu-1"):
        wanted = EntryFilter(lacks=node)
        whole = [line.path for line in missing(AskMissing(node), known_of(story))]
        assert paths(pages(story, wanted)) == whole == matching(story, wanted)
    assert games[1].path in paths(pages(story, EntryFilter(lacks="train-1")))
    assert not set(paths(pages(story, EntryFilter(lacks="gpu-2")))) & {one.path for one in games}
    with pytest.raises(ServiceRefusal, match="never joined"):
        entry_page(known_of(story), EntryFilter(lacks="gpu-9"))


def test_a_page_ends_with_how_far_it_has_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little matches, it shows none and says where to go on."""
    monkeypatch.setattr(browsing, "MOST_LOOKED_AT", 2)
    games = [entry(f"games/gpu-1/{n}_hex8_2p.db") for n in range(7)]
    story = given(*CLUSTER, holds("gpu-1", *games))
    story.tell(*(copied(one.path, "train-1") for one in games[1:]))
    found = pages(story, EntryFilter(fewer_than=2), most=100)
    assert (len(found), paths(found)) == (4, [games[0].path])
    assert [page.count for page in found] == [1, 1, 1, 1]


def test_of_what_a_node_has_all_nothing_is_read_to_know_that_it_lacks_nothing() -> None:
    """However much there is: it is counted already."""
    few, many = ([entry(f"games/gpu-1/{n}_hex8_2p.db") for n in range(count)] for count in (2, 40))
    steps = []
    for games in (few, many):
        story = given(*CLUSTER, holds("gpu-1", *games))
        story.tell(*(copied(one.path, "train-1") for one in games))
        view = story.view
        before = view._reader.steps
        assert view.catalog.get_missing_on_node("train-1") == []
        steps.append(view._reader.steps - before)
    assert steps[0] == steps[1]
