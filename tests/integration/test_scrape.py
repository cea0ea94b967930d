"""Prometheus gets in: deploy/prometheus/scrape.yaml, followed at real coordinators."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dataplane.web.access import is_loopback
from tests.integration.cluster import LocalCluster, until
from tests.integration.s3_server import with_credentials

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
#: What Prometheus asks for, the best first.
ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
)


@dataclass
class Scraped:
    """What one scrape brought."""

    status: int
    content_type: str
    text: str


async def scrape(job: dict[str, Any], target: str, token: str) -> Scraped:
    """As Prometheus does it for one target; `token` is what the credentials' file holds."""
    asked = job["authorization"]
    assert asked["credentials_file"].startswith("/etc/prometheus/")
    headers = {"Accept": ACCEPT, "Authorization": f"{asked['type']} {token.strip()}"}
    url = f"{job['scheme']}://{target}{job['metrics_path']}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        kind = answer.headers.get("Content-Type", "")
        return Scraped(answer.status, kind, await answer.text())


async def test_prometheus_reads_every_coordinator_with_one_token_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first coordinator's token is brought to the second one and to Prometheus, no more."""
    config = yaml.safe_load((DEPLOY / "scrape.yaml").read_text())
    [job] = config["scrape_configs"]
    assert [(DEPLOY / name).exists() for name in config["rule_files"]] == [True]
    [static] = job["static_configs"]
    assert {urlsplit(f"//{target}").port for target in static["targets"]} == {8780}
    with_credentials(monkeypatch)
    # Nobody answers there: that there should be backups is enough for an age of them.
    bucket = {"s3_enabled": "true", "s3_bucket": "b", "s3_endpoint": "http://127.0.0.1:9"}
    async with LocalCluster(tmp_path, web_host="0.0.0.0", web_port=0, **bucket) as cluster:
        cluster.coordinator("coord")
        await cluster.joined("coord")
        made = tmp_path / "coord" / "state" / "web_token"
        await until(made.exists, "a token")
        other = tmp_path / "coord-2" / "state"
        other.mkdir(parents=True)
        (other / "web_token").write_bytes(made.read_bytes())
        cluster.coordinator("coord-2")
        await cluster.joined("coord-2")
        for name in ("coord", "coord-2"):
            where = tmp_path / name / "state" / "web_url"
            await until(where.exists, f"the page of {name}")
            page = urlsplit(where.read_text())
            assert page.scheme == job["scheme"] and not is_loopback(page.hostname or "")
            target = f"127.0.0.1:{page.port}"
            assert (await scrape(job, target, "")).status == 401
            scraped = await scrape(job, target, made.read_text())
            assert scraped.status == 200
            # Without a kind that it knows Prometheus takes nothing.
            assert scraped.content_type.startswith("text/plain; version=0.0.4")
            said = {family.name for family in text_string_to_metric_families(scraped.text)}
            assert _alerted() - said == set()


def _alerted() -> set[str]:
    """The families that the rules watch."""
    text = (DEPLOY / "alerts.yaml").read_text()
    return {name.removesuffix("_total") for name in re.findall(r"\bdataplane_[a-z_0-9]+", text)}
