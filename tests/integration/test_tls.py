"""Files over TLS, with certificates of an authority made for the test; as agents are told to."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adapters.errors import Refused, TransportError
from adapters.files.inventory import Inventory
from adapters.files.landing import Landed, Landing
from adapters.files.maps import MapStore
from adapters.http import tls
from adapters.http.receiving import Receiver
from adapters.http.signing import Signer
from adapters.http.transport import FileServer, HttpTransport
from adapters.p2p.asking import Around
from adapters.p2p.transport import P2PTransport
from adapters.throttle import Throttle
from adapters.transport import Fetches, Request
from dataplane.presence import present
from streams.codec import fact_id, node_fact
from streams.events import SelfplayComplete, TransferFailed, TransferSucceeded
from streams.values import DataEntry, DataType, Endpoint, Role, TransportResult
from tests.integration import certificates
from tests.integration.cluster import LocalCluster, until

SIGNER_KEY = b"the cluster's own key"
SIGNER = Signer(SIGNER_KEY)
DATA = os.urandom(12_000_000)
ENTRY = DataEntry(
    path="data/x.bin",
    data_type=DataType.METADATA,
    config_key="all",
    size_bytes=len(DATA),
    checksum=f"sha256:{hashlib.sha256(DATA).hexdigest()}",
)


class Authority:
    """Makes certificates for servers on the loopback."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.pem"
        made = self._begun(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file.write_bytes(self._signed(made))

    def issued(self, address: str) -> tuple[Path, Path]:
        """Certificate and key of a server at `address`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        made = self._begun(name, key).add_extension(names, critical=False)
        certificate, file = self._directory / f"{address}.pem", self._directory / f"{address}.key"
        certificate.write_bytes(self._signed(made))
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, file

    def _begun(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def _signed(self, made: x509.CertificateBuilder) -> bytes:
        certificate = made.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """Data roots of targets, one for each attempt."""
    made = [tmp_path / f"root-{number}" for number in range(6)]
    for root in made:
        root.mkdir()
    return made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The cluster's own authority."""
    return Authority(tmp_path, "cluster")


@pytest.fixture
async def source(tmp_path: Path, authority: Authority) -> AsyncIterator[Endpoint]:
    """A node that serves and takes files over TLS alone."""
    held, root = tmp_path / "held", tmp_path / "far"
    held.write_bytes(DATA)
    root.mkdir()
    inventory = Inventory(root, "gpu-7")
    server = FileServer(
        {ENTRY.checksum: held}.get,
        SIGNER,
        receiver=Receiver("gpu-7", root, inventory),
        context=tls.serving(*authority.issued("127.0.0.1")),
        maps=MapStore(root),
    )
    await server.start()
    yield Endpoint(node="gpu-7", http_url=server.url, data_root=str(root))
    await server.stop()
    await inventory.close()


def transports(context: ssl.SSLContext, signer: Signer = SIGNER) -> list[Fetches]:
    """All that fetch over HTTP, small and large entries."""
    return [
        HttpTransport(signer, context=context),
        HttpTransport(signer, context=context, large_bytes=1 << 60),
        P2PTransport(Around(signer, context=context)),
    ]


async def fetched(transport: Fetches, source: Endpoint, root: Path) -> Landed:
    """Fetch and commit."""
    landing = await Landing.open(root, ENTRY, "t-1", ENTRY.path)
    try:
        request = Request("t-1", ENTRY, source, Endpoint(node="trainer"))
        await transport.fetch(request, landing, Throttle(), lambda *_: None)
        return await landing.commit()
    finally:
        await landing.abort()
        await transport.close()


async def test_files_come_and_go_over_tls(
    tmp_path: Path, source: Endpoint, authority: Authority, roots: list[Path]
) -> None:
    """By the authority that is configured; both ways, with the digest proven as ever."""
    assert source.http_url.startswith("https://")
    for number, transport in enumerate(transports(tls.trusting(authority.file))):
        landed = await fetched(transport, source, roots[number])
        assert landed == Landed(bytes=len(DATA))
    pushing = HttpTransport(SIGNER, context=tls.trusting(authority.file))
    request = Request("t-2", ENTRY, source, source)
    file = tmp_path / "held"
    assert await pushing.push(request, file, Throttle(), lambda *_: None) == len(DATA)
    await pushing.close()
    assert (Path(source.data_root) / ENTRY.path).read_bytes() == DATA


async def test_a_server_that_nobody_vouches_for_gets_and_gives_nothing(
    tmp_path: Path, source: Endpoint, roots: list[Path]
) -> None:
    """Another authority's word does not count, nor does none: no byte of a file passes."""
    other = tls.trusting(Authority(tmp_path, "other").file)
    for number, transport in enumerate([*transports(other), *transports(tls.trusting())]):
        with pytest.raises(TransportError, match=r"prove|(?i:certificate)"):
            await fetched(transport, source, roots[number])
    pushing = HttpTransport(SIGNER, context=other)
    request = Request("t-2", ENTRY, source, source)
    with pytest.raises(Refused, match="does not prove who it is"):
        await pushing.push(request, tmp_path / "held", Throttle(), lambda *_: None)
    assert not (Path(source.data_root) / ENTRY.path).exists()


async def test_a_certificate_is_good_for_its_own_address_alone(
    authority: Authority, roots: list[Path]
) -> None:
    """One node's certificate does not let it pass for another."""
    server = FileServer({}.get, SIGNER, context=tls.serving(*authority.issued("127.0.0.99")))
    await server.start()
    far = Endpoint(node="gpu-7", http_url=server.url)
    transport = HttpTransport(SIGNER, context=tls.trusting(authority.file))
    with pytest.raises(Refused, match="does not prove who it is"):
        await fetched(transport, far, roots[0])
    await server.stop()


async def test_who_is_told_of_tls_moves_no_byte_without_it(
    tmp_path: Path, authority: Authority, roots: list[Path]
) -> None:
    """Neither way, large or small, one by one or many at once, from a node not yet changed over."""
    held, root = tmp_path / "held", tmp_path / "far"
    held.write_bytes(DATA)
    root.mkdir()
    inventory = Inventory(root, "gpu-7")
    receiver = Receiver("gpu-7", root, inventory)
    server = FileServer({ENTRY.checksum: held}.get, SIGNER, receiver=receiver)
    await server.start()
    try:
        plain = Endpoint(node="gpu-7", http_url=server.url, data_root=str(root))
        request = Request("t-2", ENTRY, plain, plain)
        careful, context = Signer(SIGNER_KEY, plain=False), tls.trusting(authority.file)
        for number, transport in enumerate(transports(context, careful)):
            with pytest.raises(Refused, match="without TLS"):
                await fetched(transport, plain, roots[number])
        moving = HttpTransport(careful, context=context)
        with pytest.raises(Refused, match="without TLS"):
            await moving.push(request, held, Throttle(), lambda *_: None)
        outcomes = [
            *await moving.fetch_many([request], lambda *_: None),
            *await moving.push_many([request], [held]),
        ]
        assert [type(outcome) for outcome in outcomes] == [Refused, Refused]
        assert not (root / ENTRY.path).exists()
        await moving.close()
    finally:
        await server.stop()
        await inventory.close()


async def test_agents_move_files_over_tls_by_configuration_alone(tmp_path: Path) -> None:
    """A chain ends as ever, all of it by HTTPS; who is not told of the authority gets no byte."""
    authority = certificates.Authority(tmp_path / "tls")
    certificate, key = authority.issue("node")
    settings = {
        "http_tls_cert": certificate,
        "http_tls_key": key,
        "http_tls_ca": authority.file,
    }
    async with LocalCluster(tmp_path, **settings) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-7", Role.SELFPLAY)
        cluster.agent("train-1", Role.TRAINING)
        await cluster.joined("coord", "gpu-7", "train-1")
        cluster.play("gpu-7", 5)
        played = SelfplayComplete(config_key="hex8_2p", source_node="gpu-7", games_count=5)
        await cluster.log.publish(node_fact(played, "gpu-7", fact_id("played")))
        await cluster.assert_exactly_once(fact_id("played"))
        beats = await present(cluster.log.bus)
        for name in ("gpu-7", "train-1"):
            assert beats[f"agent.{name}"]["http_url"].startswith("https://")

        cluster.agent("hub", Role.STORAGE, DATAPLANE_HTTP_TLS_CA="")
        await cluster.joined("hub")
        await cluster.command("sync", "hex8_2p", "hub", "--wait", "0")
        at_the_hub: list[TransportResult] = []

        async def tried() -> bool:
            for fact in await cluster.facts(TransferFailed, TransferSucceeded):
                event = fact.event
                assert isinstance(event, TransferFailed | TransferSucceeded)
                at_the_hub.extend(event.results if event.node == "hub" else ())
            return bool(at_the_hub)

        await until(tried, "the hub to have tried")
        assert not any(result.success or result.bytes_transferred for result in at_the_hub)
        assert "certificate" in str(at_the_hub[0].error), at_the_hub
