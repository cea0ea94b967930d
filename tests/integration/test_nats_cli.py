"""The ``nats`` command: all of deploy/nats-cli.md, on an open bus and with an observer's key."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dataplane.keys import KeyStore
from streams.codec import fact_id, node_fact
from streams.connection import ConnectOptions
from streams.events import SelfplayComplete
from streams.permissions import BusRole
from streams.server import default_config
from streams.values import Role
from tests.integration.certificates import Authority
from tests.integration.cluster import LocalCluster, until

GUIDE = (Path(__file__).parents[2] / "deploy" / "nats-cli.md").read_text()
#: What is said of every command before the last part, which is what nobody should run.
TOLD = GUIDE[: GUIDE.index("## Never")]
#: What each must say where everything is allowed; ID is the chain that has ended.
SAYS = {
    "nats context add dp --server nats://10.0.0.1:4222 --select": "10.0.0.1:4222",
    "nats context add dp --server nats://10.0.0.1:4222 --nkey keys/grafana.seed "
    "--tlsca tls/ca.pem --inbox-prefix _INBOX_grafana --select": "_INBOX_grafana",
    "nats stream info DATAPLANE": "Last Sequence:",
    "nats stream view DATAPLANE --subject 'dp.chain.ID.>'": "SYNC_PLANNED",
    "nats sub 'dp.chain.ID.>' --all --terminate-at-end": "DATA_SYNC_COMPLETED",
    "nats stream get DATAPLANE --last-for 'dp.chain.ID.>'": "NEW_GAMES_AVAILABLE",
    "nats sub 'dp.chain.*.NEW_GAMES_AVAILABLE.>'": "NEW_GAMES_AVAILABLE.hex8_2p",
    "nats consumer info DATAPLANE bridge": "Unprocessed Messages: 0",
    "nats consumer ls DATAPLANE": "observe_gpu-7",
    "nats kv ls DP_NODES": "coordinator.coord",
    "nats kv get DP_NODES agent.gpu-7 --raw": "disk_free_bytes",
    'nats req dp.query.missing \'{"node":"train-1"}\'': "[]",
    "nats req dp.query.nodes ''": '"node":"gpu-7"',
    "nats service info dataplane": "dp.query.missing",
    "nats service stats dataplane": "missing",
    "nats pub dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p '{\"games_count\":500}'": "Published",
    "nats errors lookup NUMBER": "wrong last sequence",
}
VIOLATION = "permissions violation"


def commands() -> list[str]:
    """What the guide tells to run, in its order, each once."""
    blocks = re.findall(r"(?m)^    (nats (?:[^\n]*\\\n)*[^\n]*)$", TOLD)
    joined = [re.sub(r"\s*\\\n\s*", " ", block).partition("  ")[0] for block in blocks]
    return list(dict.fromkeys([*joined, *re.findall(r"`(nats [^`]+)`", TOLD)]))


def refused_to_observers() -> list[str]:
    """Parts of commands that the guide says an observer's key is refused."""
    [listed] = re.findall(r"refused[^(]*\(([^)]*)\)", TOLD)
    return re.findall(r"`([^`]+)`", listed)


class Shell:
    """Runs commands as the guide has them, with what is a placeholder there filled in."""

    def __init__(self, home: Path, filled: Mapping[str, str]) -> None:
        folder = Path(sys.executable).parent
        self.path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
        self._home = home
        self._filled = dict(filled)

    def fill(self, placeholder: str, with_: str) -> None:
        """From now on `placeholder` is that."""
        self._filled[placeholder] = with_

    async def start(self, command: str) -> asyncio.subprocess.Process:
        """A command on a terminal of its own, which is at its end: some only speak to one."""
        for placeholder, with_ in self._filled.items():
            command = command.replace(placeholder, with_)
        environment = {"HOME": str(self._home), "XDG_CONFIG_HOME": str(self._home / "config")}
        return await asyncio.create_subprocess_exec(
            *("script", "-qec", command, "/dev/null"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._home,
            env={**os.environ, **environment, "PATH": self.path, "TERM": "dumb", "COLUMNS": "200"},
        )

    async def until(self, command: str, words: str) -> str:
        """Run it until it has said these words, or has ended; some go on for ever."""
        process = await self.start(command)
        try:
            return await self.heard(process, words)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    @staticmethod
    async def heard(process: asyncio.subprocess.Process, words: str) -> str:
        """What is said up to these words, or to the end."""
        assert process.stdout is not None
        said = ""
        async with asyncio.timeout(60):
            while words.lower() not in said.lower():
                more = await process.stdout.read(4096)
                if not more:
                    break
                said += more.decode(errors="replace")
        return said


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Where the ``nats`` command is."""
    shell = Shell(tmp_path, {"NUMBER": "10071"})
    if shutil.which("nats", path=shell.path) is None:
        reason = "there is no nats command; make system installs it where there is Go"
        # Where the whole suite is the gate nothing may be left out unseen.
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return shell


CONTEXT, LOCKED_CONTEXT, *_ = SAYS
LIVE = "nats sub 'dp.chain.*.NEW_GAMES_AVAILABLE.>'"
TRIGGER = "nats pub dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p '{\"games_count\":500}'"


def test_every_command_of_the_guide_has_its_words_here() -> None:
    """Whoever adds one says what it must say; then it is run below."""
    assert set(commands()) == set(SAYS)


async def _joined(cluster: LocalCluster) -> None:
    """A coordinator, a player with games, a trainer."""
    cluster.coordinator("coord")
    cluster.agent("gpu-7", Role.SELFPLAY)
    cluster.agent("train-1", Role.TRAINING)
    await cluster.joined("coord", "gpu-7", "train-1")
    cluster.play("gpu-7", 5)


async def _ended(cluster: LocalCluster) -> str:
    """The chain of the one trigger there is, once it has ended as it should."""
    await until(lambda: cluster.facts(SelfplayComplete), "the trigger")
    [fact] = await cluster.facts(SelfplayComplete)
    await cluster.assert_exactly_once(fact.chain)
    return fact.chain


async def test_each_command_says_on_an_open_bus_what_the_guide_says(
    tmp_path: Path, shell: Shell
) -> None:
    """From the context and the trigger on; and what it calls refused changes nothing."""
    async with LocalCluster(tmp_path) as cluster:
        await _joined(cluster)
        shell.fill("10.0.0.1:4222", cluster.server.url.removeprefix("nats://"))
        assert "dp" in await shell.until(CONTEXT, "Path:")
        live = await shell.start(LIVE)
        await shell.heard(live, "Subscribing on")
        assert SAYS[TRIGGER] in await shell.until(TRIGGER, SAYS[TRIGGER])
        assert SAYS[LIVE] in await shell.heard(live, SAYS[LIVE])
        live.kill()
        await live.wait()
        shell.fill(".ID.", f".{await _ended(cluster)}.")
        for command in set(SAYS) - {CONTEXT, LOCKED_CONTEXT, LIVE, TRIGGER}:
            said = await shell.until(command, SAYS[command])
            assert SAYS[command] in said, f"{command}: {said}"
        info = await shell.until("nats stream info DATAPLANE", "Last Sequence")
        for words in ("Allows Msg Delete: false", "Allows Purge: false"):
            assert words in info and f"`{words}`" in GUIDE
        for words in ("service ls", "service ping dataplane"):
            assert "dataplane" in await shell.until(f"nats {words}", "dataplane")
        for words in ("purge DATAPLANE -f", "rmm DATAPLANE 1 -f"):
            assert "nats: error" in await shell.until(f"nats stream {words}", "nats: error")
        assert (await cluster.log.state()).first_sequence == 1


@asynccontextmanager
async def locked(base: Path) -> AsyncIterator[LocalCluster]:
    """A bus with keys, and TLS by the authority in tls/ca.pem."""
    keys, authority = KeyStore(base / "keys"), Authority(base / "tls")
    keys.init()
    keys.add("coord", BusRole.COORDINATOR)
    for name in ("gpu-7", "train-1"):
        keys.add(name, BusRole.NODE)
    keys.add("grafana", BusRole.OBSERVER)
    certificate, key = authority.issue("bus")
    bus = base / "nats.conf"
    bus.write_text(
        f'{default_config().read_text()}\ninclude "keys/users.conf"\n'
        f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.file}" }}\n'
    )
    watcher: ConnectOptions = {"tls": authority.trusting()}
    settings = {"nats_tls_ca": authority.file}
    async with LocalCluster(
        base, bus=bus, seeds=keys.directory, watcher=watcher, **settings
    ) as cluster:
        yield cluster


async def test_an_observers_key_sees_what_the_guide_says_and_is_refused_the_rest(
    tmp_path: Path, shell: Shell
) -> None:
    """With the context for a locked bus; a coordinator's key is refused none of it."""
    refused = refused_to_observers()
    assert refused
    async with locked(tmp_path) as cluster:
        await _joined(cluster)
        played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
        await cluster.log.publish(node_fact(played, "gpu-7", fact_id("played")))
        shell.fill("10.0.0.1:4222", cluster.server.url.removeprefix("nats://"))
        shell.fill(".ID.", f".{await _ended(cluster)}.")
        assert "_INBOX_grafana" in await shell.until(LOCKED_CONTEXT, "_INBOX_grafana")
        asked = [command for command in SAYS if command not in (CONTEXT, LOCKED_CONTEXT)]
        denied = [command for command in asked if any(f" {word} " in command for word in refused)]
        for command in asked:
            words = VIOLATION if command in denied else SAYS[command]
            said = await shell.until(command, words)
            assert words.lower() in said.lower(), f"{command}: {said}"
            assert (VIOLATION in said.lower()) == (command in denied), f"{command}: {said}"
        boss = "nats context add boss --server nats://10.0.0.1:4222 --nkey keys/coordinator.seed"
        await shell.until(f"{boss} --tlsca tls/ca.pem --select", "Path:")
        for command in denied:
            if command not in (LIVE, TRIGGER):
                said = await shell.until(command, SAYS[command])
                assert SAYS[command] in said, f"{command}: {said}"
