"""Every kind of page: numbers lead to their facts, the past stays the past, and all can read it."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from dataplane.words import clock
from projections.links import all_links
from tests.conftest import Server
from tests.integration.browser import Page, chromium
from tests.integration.page import showing, told
from tests.spec import Story


@pytest.fixture
def story() -> Story:
    """Ways that failed and others that worked."""
    return told()


@pytest.fixture
async def url(story: Story, nats_server: Server, tmp_path: Path) -> AsyncIterator[str]:
    """The address of its page."""
    async with showing(story, nats_server.url, tmp_path) as url:
        yield url


async def text_of(session: aiohttp.ClientSession, url: str, path: str) -> str:
    """A page that is there."""
    async with session.get(url.rstrip("/") + path) as answer:
        text = await answer.text()
        assert answer.status == 200, (path, text)
    return text


def shown(text: str) -> list[int]:
    """The sequences in a list of facts."""
    return [int(number) for number in re.findall(r'id="s(\d+)"', text)]


def cells(text: str, section: str) -> list[tuple[str, str]]:
    """Each link in a section: its address, what stands on it."""
    part = text[text.index(f'id="live-{section}"') :].partition("</section>")[0]
    found = re.findall(r'<a [^>]*?href="([^"]*)"[^>]*>(.*?)</a>', part, re.DOTALL)
    return [(html.unescape(href), re.sub("<[^>]*>", "", said).strip()) for href, said in found]


async def test_each_number_of_a_link_is_the_length_of_the_list_it_leads_to(
    url: str, story: Story
) -> None:
    """Also where one attempt tried two ways, so that a success holds a failure of the other."""
    async with aiohttp.ClientSession() as session:
        text = await text_of(session, url, "/")
        numbers = [(to, said) for to, said in cells(text, "links") if "outcome=" in to]
        counted = {to: int(said) for to, said in numbers if said.isdecimal()}
        rows = list(all_links(story.view._reader))
        assert len(counted) == 2 * len(rows) > 6
        assert sum(counted.values()) == sum(row.successes + row.failures for row in rows)
        assert any("transport=p2p" in to and "failed" in to and n for to, n in counted.items())
        for to, number in counted.items():
            assert len(shown(await text_of(session, url, to))) == number, to


async def test_totals_lead_to_what_they_count(url: str, story: Story) -> None:
    """Entries, copies that are too few, what runs and waits, what moved and what failed."""
    totals = {"transfers": len(list(story.view.in_flight())) + len(list(story.view.pending()))}
    async with aiohttp.ClientSession() as session:
        text = await text_of(session, url, "/")
        links = dict(cells(text, "totals"))
        assert all(links), "a number without a way to its facts"
        for to, said in links.items():
            number = int(re.findall(r"\d+", said)[0])
            there = await text_of(session, url, to.partition("#")[0])
            if to == "/data":
                assert f"{number} current entr" in there
            elif to == "/transfers":
                assert there.count('<td class="progress">') == totals["transfers"] > 0
            elif to == "/facts?type=TRANSFER_SUCCEEDED":
                assert len(shown(there)) == int(re.findall(r"in (\d+)", said)[0])
            elif to == "/facts?type=TRANSFER_FAILED":
                assert len(shown(there)) == number > 0
            elif to == "/facts":
                assert shown(there)[0] == number


async def test_what_caused_a_fact_is_one_step_away(url: str, story: Story) -> None:
    """By its id, from the fact on."""
    fact = next(fact for fact in reversed(story.facts) if fact.cause)
    cause = next(other for other in story.facts if other.id == fact.cause)
    async with aiohttp.ClientSession() as session:
        text = await text_of(session, url, f"/fact/{fact.sequence}")
        [to] = re.findall(r'Caused by</dt><dd><a href="([^"]*)"', text)
        assert shown(await text_of(session, url, html.unescape(to))) == [cause.sequence]


async def test_who_looks_at_the_past_stays_there(url: str, story: Story) -> None:
    """Every link keeps the moment, but the one back; no page shows what came later."""
    at = max(fact.sequence for fact in story.facts if fact.chain == "c1")
    seen, front = set[str](), [f"/?at={at}"]
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            found: set[str] = set()
            for path in front:
                text = await text_of(session, url, path)
                assert f"known after fact {at}," in text, path
                assert "square8_4p" not in text and "/chain/c2" not in text, path
                ways = [html.unescape(to) for to in re.findall(r'href="(/[^"]*)"', text)]
                ways = [to for to in ways if not to.startswith("/static")]
                back = [to for to in ways if "at=" not in to]
                assert len(back) == 1, (path, back)
                found |= {to.partition("#")[0] for to in ways if f"at={at}" in to}
                assert max(shown(text), default=0) <= at, path
            front = sorted(found - seen)
            seen |= found
        kinds = {path.split("?")[0].split("/")[1] for path in seen}
        assert {"", "facts", "fact", "chain", "chains", "data", "path", "node"} <= kinds
        # What was asked for then is answered from then.
        path = "games/gpu-1/hex8_2p.db"
        text = await text_of(session, url, f"/path?path={path}&node=train-1&at={at}")
        assert "(30 games" in text
        text = await text_of(session, url, f"/path?path={path}&node=train-1")
        assert "(60 games" in text
        async with session.get(f"{url}data?at=999999") as answer:
            assert answer.status == 404


#: One page of each kind, and a word that stands on it.
KINDS = {
    "": "Alerts",
    "?at=20": "This is the past",
    "data": "square8_4p",
    "data?lacks=train-2": "is not there",
    "chains": "completed",
    "chain/c2": "Where the time went",
    "facts": "NODE_REGISTERED",
    "facts?link=gpu-1&outcome=failed": "by whatever way",
    "fact/23": "no way there",
    "node/train-1": "Its facts",
    "path?path=games/gpu-1/hex8_2p.db&node=train-1": "the version that counts",
    "transfers": "games/gpu-2/square8_4p.db",
    "fact/99999": "the log holds no fact",
}
WIDE = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
GROUND = "getComputedStyle(document.body).backgroundColor"
ROLES = ("link", "button", "textbox", "combobox", "checkbox", "slider", "table", "region")


async def test_each_kind_of_page_fits_a_phone_and_is_read_aloud(url: str, tmp_path: Path) -> None:
    """No page is wider than a screen, all follow light and dark, and nothing is without a name."""
    async with chromium(tmp_path) as page:
        for path, words in KINDS.items():
            await page.window(1440)
            await page.go(url + path)
            await page.waits_for(f"document.body.innerText.includes({words!r})")
            light = await page.says(GROUND)
            for width in (1440, 390):
                await page.window(width, dark=True)
                await page.waits_for(f"innerWidth == {width}")
                assert await page.says("document.documentElement.scrollWidth") <= width, path
                assert await page.says(WIDE) == 0, f"{path}: a table that is wider than its card"
            assert await page.says(GROUND) != light, path
            await _read_aloud(page, path)
        refused = "Failed to load resource: the server responded with a status of 404 (Not Found)"
        assert [said for said in page.complaints if said != refused] == []


async def _read_aloud(page: Page, path: str) -> None:
    """Landmarks, one heading above all others, and a name for whatever can be used."""
    tree = await page.tree()
    roles = {node["role"] for node in tree}
    assert {"banner", "main", "navigation", "heading"} <= roles, path
    assert await page.says("document.querySelectorAll('h1').length") == 1, path
    assert await page.says("document.title.includes('dataplane')"), path
    nameless = [node for node in tree if node["role"] in ROLES and not node["name"]]
    assert nameless == [], path


async def test_the_slider_says_when_it_is(url: str, story: Story, tmp_path: Path) -> None:
    """While it moves, to eyes and ears; then the page is of that moment, and so is what follows."""
    slider = "document.getElementById('at')"
    async with chromium(tmp_path) as page:
        await page.window(1440)
        await page.go(url)
        assert "now, fact" in await page.says(f"{slider}.getAttribute('aria-valuetext')")
        await page.says(f"{slider}.value = 14; {slider}.dispatchEvent(new Event('input'))")
        when = clock(story.facts[13].time)
        said = f"fact 14 of {len(story.facts)}, {when}"
        await page.waits_for(f"document.getElementById('at-says').innerText == '{said}'")
        assert await page.says(f"{slider}.getAttribute('aria-valuetext')") == said
        await page.says(f"{slider}.dispatchEvent(new Event('change'))")
        await page.waits_for("location.search == '?at=14' && document.readyState == 'complete'")
        await page.says("document.querySelector('#map tbody th a').click()")
        await page.waits_for("location.pathname == '/data' && document.readyState == 'complete'")
        assert when in await page.text(".past")
        await page.says("document.querySelector('.past a').click()")
        await page.waits_for("!location.search.includes('at=') && location.pathname == '/data'")
        assert page.complaints == []
