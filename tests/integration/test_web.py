"""The page, as browsers, scrapers and strangers get it from a real coordinator."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dataplane.web.access import is_loopback
from dataplane.web.live import FACTS_SHOWN
from streams.codec import fact_id, node_fact
from streams.events import EventRejected, HostOffline, HostOnline, SelfplayComplete
from streams.values import Role
from tests.integration.browser import Page, chromium
from tests.integration.cluster import LocalCluster, until

NASTY = "<img src=x onerror=alert(1)>"
TOKEN = "planted-token-4711"
#: Slow enough for a browser to see a transfer on its way.
SLOW = {"default_bandwidth_limit_mbps": 4, "web_port": 0, "transports": "http"}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A coordinator on loopback, one elsewhere, a player and a trainer; one chain has ended."""
    async with LocalCluster(tmp_path, **SLOW) as cluster:
        cluster.coordinator("coord")
        cluster.coordinator("open", DATAPLANE_WEB_HOST="0.0.0.0", DATAPLANE_WEB_TOKEN=TOKEN)
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "open", "gpu-7", "train-1")
        await play(cluster, 1)
        await cluster.ended(fact_id("played", 1))
        cluster.log.bus.tell("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":-1}')
        await until(lambda: cluster.facts(EventRejected), "the rejection")
        await cluster.log.publish(
            node_fact(HostOffline(node="train-1", reason=NASTY), "ops", fact_id("off"))
        )
        yield cluster


async def play(cluster: LocalCluster, number: int, padding: int = 0) -> None:
    """Games, and the word that they are there."""
    await asyncio.to_thread(cluster.play, "gpu-7", 5, padding=padding)
    played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
    await cluster.log.publish(node_fact(played, "gpu-7", fact_id("played", number)))


def address(cluster: LocalCluster, name: str = "coord") -> str:
    """Where a coordinator serves its page."""
    return (cluster.base / name / "state" / "web_url").read_text()


async def test_every_number_leads_to_its_facts_and_strangers_to_nothing(
    cluster: LocalCluster,
) -> None:
    """All links work, nothing comes from elsewhere, nothing said is markup, tokens are asked."""
    async with aiohttp.ClientSession() as session:
        await until(lambda: _says(session, address(cluster), "train-1 is out of planning"), "fold")
        await _all_links_work(session, address(cluster))
        await _api(session, address(cluster))
        await _metrics(session, address(cluster))
        await _rebinding_is_refused(session, address(cluster))
        cluster.kill("coord")
        cluster.coordinator("coord")
        await cluster.joined("coord")
        await until(lambda: _shows_facts(session, address(cluster)), "facts from before")
    await _token(address(cluster, "open"))
    said = "".join(file.read_text() for file in cluster.base.glob("*/log"))
    assert TOKEN not in said


async def _says(session: aiohttp.ClientSession, url: str, text: str) -> bool:
    async with session.get(url) as answer:
        return text in await answer.text()


async def _shows_facts(session: aiohttp.ClientSession, url: str) -> bool:
    """As many of the newest as there is room for, whoever said them to whom."""
    async with session.get(url) as answer:
        return (await answer.text()).count('<td class="num" id="s') == FACTS_SHOWN


async def _all_links_work(session: aiohttp.ClientSession, start: str) -> None:
    """Each page that can be reached in three steps is there, whole, and its own."""
    seen, front = {"/"}, ["/"]
    for _ in range(3):
        found: set[str] = set()
        for path in front:
            async with session.get(start.rstrip("/") + path) as answer:
                text = await answer.text()
                assert answer.status == 200, (path, text)
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert NASTY not in text
            links = set(re.findall(r'(?:href|src|action)="([^"]*)"', text))
            assert all(link.startswith(("/", "#")) for link in links), (path, links)
            found |= {link.replace("&amp;", "&").partition("#")[0] for link in links}
        front = sorted(found - seen - {""})
        seen |= found
    kinds = {link.split("?")[0].split("/")[1] for link in seen if link.startswith("/")}
    assert {"facts", "fact", "chain", "chains", "data", "path", "node", "static"} <= kinds


async def _api(session: aiohttp.ClientSession, url: str) -> None:
    """The bus's questions over HTTP, with its errors."""
    async with session.get(url + "api/where?path=games/gpu-7/hex8_2p.db") as answer:
        [line] = await answer.json()
    assert line["copies"] == 2
    async with session.get(url + "api/missing?node=gpu-9") as answer:
        assert answer.status == 404
        assert "never joined" in (await answer.json())["error"]
    async with session.get(url + "api/chains?last=many") as answer:
        assert answer.status == 400
    path = {"path": "games/gpu-7/hex8_2p.db", "node": "train-1"}
    async with session.get(url + "api/why", params=path) as answer:
        why = await answer.json()
    assert why["there"]
    # From who produced it to who brought it, each with the fact it rests on.
    text = " ".join(one["text"] for one in why["sentences"])
    assert "gpu-7 reported it" in text and "attempt 1 brought it from gpu-7" in text
    assert all(one["sequence"] for one in why["sentences"])
    async with session.get(url + "path", params=path) as answer:
        assert why["answer"] in html.unescape(await answer.text())
    async with session.get(url + "fact/999999") as answer:
        assert answer.status == 404
    async with session.get(url + "path", params={**path, "node": "train-9"}) as answer:
        assert answer.status == 404
        assert "never joined; known: gpu-7, train-1" in await answer.text()
    async with session.get(url + "?at=1x") as answer:
        assert answer.status == 400
    async with session.get(url + "static/../server.py") as answer:
        assert answer.status == 404


async def _metrics(session: aiohttp.ClientSession, url: str) -> None:
    """What Prometheus reads: state, counters and where the time of chains went."""
    async with session.get(url + "metrics") as answer:
        families = {f.name: f for f in text_string_to_metric_families(await answer.text())}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["dataplane_node_up", ("node", "train-1")] == 0
    assert samples["dataplane_node_up", ("node", "gpu-7")] == 1
    assert samples["dataplane_projection_lag_facts",] == 0
    assert samples["dataplane_chains_ended_total", ("outcome", "completed")] == 1
    assert samples[
        "dataplane_transport_attempts_total", ("outcome", "ok"), ("transport", "http")
    ] == len(["train-1"])
    assert samples["dataplane_transport_bytes_total", ("transport", "http")] > 0
    stage = ("stage", "whole"), ("trigger", "SELFPLAY_COMPLETE")
    assert samples["dataplane_chain_stage_seconds_count", *stage] == 1
    assert samples["dataplane_queue", ("priority", "critical")] == 0


async def _rebinding_is_refused(session: aiohttp.ClientSession, url: str) -> None:
    """A name of somebody else's that points here gets nothing."""
    port = urlsplit(url).port
    async with session.get(url, headers={"Host": f"evil.example:{port}"}) as answer:
        assert answer.status == 403


async def _token(url: str) -> None:
    """Elsewhere than on loopback: no token, no answer; with it, once in the address is enough."""
    assert not is_loopback(urlsplit(url).hostname or "")
    here = url.replace("0.0.0.0", "127.0.0.1")
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        for page in ("", "metrics", "api/nodes", "live", "static/page.js"):
            async with session.get(here + page) as answer:
                assert answer.status == 401, page
                assert TOKEN not in await answer.text()
        async with session.get(here, params={"token": "guess"}) as answer:
            assert answer.status == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get(here + "metrics", headers=bearer) as answer:
            assert answer.status == 200
        async with session.get(here + "facts", params={"token": TOKEN}) as answer:
            assert answer.status == 200
            assert "token" not in str(answer.url)
            assert TOKEN not in await answer.text()
        async with session.get(here) as answer:
            assert answer.status == 200
            assert TOKEN not in await answer.text()


async def test_a_browser_follows_what_happens(cluster: LocalCluster, tmp_path: Path) -> None:
    """Live without a reload, on a phone, in the dark, for a screen reader, and in the past."""
    url = address(cluster)
    async with chromium(tmp_path) as page:
        await page.window(1440)
        await page.go(url)
        await page.says("window.unchanged = true")
        await _alert_goes_and_transfer_is_seen(cluster, page)
        assert await page.says("window.unchanged"), "the page was loaded again"
        await _fits(page, tmp_path)
        await _screen_reader(page)
        await _past(page, url)
        assert page.complaints == []
        asked = [one for one in page.asked if not one.startswith((url, "data:"))]
        assert asked == [], "asked elsewhere"


async def _alert_goes_and_transfer_is_seen(cluster: LocalCluster, page: Page) -> None:
    await page.waits_for("document.querySelector('#alerts').innerText.includes('<img src=x')")
    await cluster.log.publish(node_fact(HostOnline(node="train-1"), "ops", fact_id("on")))
    await page.waits_for("!document.querySelector('#alerts').innerText.includes('<img src=x')")
    await play(cluster, 2, padding=3_000_000)
    await page.waits_for("document.querySelectorAll('#transfers progress').length == 1")
    await page.waits_for("document.querySelector('#transfers').innerText.includes('/s')")
    await page.waits_for("document.querySelector('#transfers').innerText.includes('Nothing is on')")
    rows = "document.querySelectorAll('#chains tbody .badge.completed').length"
    await page.waits_for(f"{rows} == 2")


async def _fits(page: Page, tmp_path: Path) -> None:
    """No page is wider than the screen, and the dark one is dark."""
    light = await page.says("getComputedStyle(document.body).backgroundColor")
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    for width in (1440, 390):
        await page.window(width, dark=True)
        await page.waits_for(f"innerWidth == {width}")
        assert await page.says("document.documentElement.scrollWidth") <= width
        assert await page.says(f"{wide}.length") == 0, "a table that is wider than its card"
        await page.picture(tmp_path / f"overview-{width}.png")
    dark = await page.says("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    await page.window(1440)


async def _screen_reader(page: Page) -> None:
    """Landmarks, headings, and tables that say what they are."""
    tree = await page.tree()
    names = {(node["role"], node["name"]) for node in tree}
    roles = {role for role, _ in names}
    assert {"banner", "main", "navigation", "heading", "table", "slider"} <= roles
    for heading in ("Alerts", "Nodes", "Data", "Transfers", "Chains", "Links", "Facts"):
        assert ("heading", heading) in names
    tables = [name for role, name in names if role == "table"]
    assert len(tables) >= 4
    assert all(tables), "a table without a caption"
    assert any("gpu-7 holds 1 of 1" in name for role, name in names if role == "link")
    nameless = [node for node in tree if node["role"] in ("link", "button") and not node["name"]]
    assert nameless == []


async def _past(page: Page, url: str) -> None:
    """The slider shows what was known then: before the first transfer nobody else held it."""
    await page.says("document.getElementById('at').value = 3")
    await page.says("document.getElementById('at').dispatchEvent(new Event('change'))")
    await page.waits_for("location.search == '?at=3' && document.readyState == 'complete'")
    assert "This is the past" in await page.text(".past")
    assert "nothing is known yet" in await page.text("#map")
    await page.says("document.querySelector('.past a').click()")
    await page.waits_for("location.search == '' && document.readyState == 'complete'")
    assert "hex8_2p games" in await page.text("#map")
