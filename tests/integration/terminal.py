"""The ``dataplane`` command as its users run it, against one cluster of real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.cluster import LocalCluster


class Terminal:
    """Runs the command against one cluster's coordinator."""

    def __init__(
        self, cluster: LocalCluster, node: str = "gpu-7", seed: Path | None = None, **more: str
    ) -> None:
        """It speaks as `node`, on a bus with keys with the one in the file `seed`."""
        self.cluster = cluster
        self._environment = {
            "DATAPLANE_NATS_URL": cluster.url,
            "DATAPLANE_STATE_DIR": str(cluster.base / "coord" / "state"),
            "DATAPLANE_NODE": node,
            "DATAPLANE_NATS_NKEY": str(seed or ""),
            "PATH": "/usr/bin:/bin",
            **more,
        }

    def run(self, *words: str, status: int | None = 0, stdin: str = "") -> str:
        """Run a command; its output. Fails unless it ends with `status`; None: with any."""
        done = subprocess.run(
            [sys.executable, "-m", "dataplane", *words],
            env=self._environment,
            cwd=self.cluster.base,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert status in (None, done.returncode), done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on; what it says is read as one text. It is ended with the block."""
        with subprocess.Popen(
            [sys.executable, "-m", "dataplane", *words],
            env=self._environment,
            cwd=self.cluster.base,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def json(self, *words: str, status: int | None = 0) -> Any:
        """Run a command with ``--json``; its document."""
        return json.loads(self.run(*words, "--json", status=status))
