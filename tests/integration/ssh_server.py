"""A private sshd on the loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.ssh.connections import SshOptions
from streams.values import Endpoint

PATIENCE_S = 30.0
#: Tools of a far end that has nothing but a shell.
BARE_TOOLS = ("sh", "base64", "dd", "tail", "cat", "wc", "mkdir", "mv", "openssl")
_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
LogLevel ERROR
"""


class SshServer:
    """The real sshd, which knows one user: whoever runs the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "other_host_key", "user_key", "other_user_key"):
            make_key(directory / name)
        self.trust(directory / "host_key")
        self.allow()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if sshd is None:
            raise RuntimeError("there is no sshd; on Debian: apt-get install openssh-server")
        if os.geteuid() == 0:
            # Where sshd confines those who have not logged in yet.
            Path("/run/sshd").mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = self.directory / "sshd_config"
        config.write_text(_CONFIG.format(port=self.port, directory=self.directory))
        log = (self.directory / "log").open("wb")
        self._process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=log)
        log.close()
        self._wait()

    def stop(self) -> None:
        """Stop it and all its sessions."""
        if self._process is not None:
            for pid in self.sessions():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def sessions(self) -> list[int]:
        """The processes of all that are logged in, and what they run."""
        assert self._process is not None
        return descendants(self._process.pid)

    def allow(self, forced: str = "") -> None:
        """Let the user in; with `forced` only to run that."""
        key = (self.directory / "user_key.pub").read_text()
        quoted = forced.replace('"', '\\"')
        line = f'command="{quoted}" {key}' if forced else key
        (self.directory / "authorized_keys").write_text(line)

    def allow_bare(self) -> None:
        """Let the user in where there is nothing but `BARE_TOOLS`."""
        bare = self.directory / "bare"
        bare.mkdir()
        for tool in BARE_TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (bare / tool).symlink_to(found)
        self.allow(f'PATH={bare}; export PATH; exec {bare}/sh -c "$SSH_ORIGINAL_COMMAND"')

    def trust(self, key: Path) -> None:
        """Take this for the server's key, on whatever port."""
        (self.directory / "known_hosts").write_text(f"* {key.with_suffix('.pub').read_text()}")

    def options(self, identity: str = "user_key") -> SshOptions:
        """Trust and appear as set up here."""
        return SshOptions(
            known_hosts=self.directory / "known_hosts", identity=self.directory / identity
        )

    def endpoint(self, data_root: Path, port: int = 0) -> Endpoint:
        """How to reach it, over another port if a wire is in between."""
        return Endpoint(
            node="gpu-7",
            ssh_host="127.0.0.1",
            ssh_port=port or self.port,
            ssh_user=getpass.getuser(),
            data_root=str(data_root),
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd: {(self.directory / 'log').read_text()}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1) as connection,
            ):
                if connection.recv(4) == b"SSH-":
                    return
            time.sleep(0.01)


def make_key(path: Path) -> None:
    """Make a pair of keys, if there is none."""
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def running(word: str) -> list[str]:
    """The command lines on this machine that have a word in them."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in (words := line.read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.append(words)
    return found


@pytest.fixture(scope="session", name="ssh_server")
def running_ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """The session's sshd, for tests that change nothing of it; without sshd they fail."""
    server = SshServer(tmp_path_factory.mktemp("ssh"))
    server.start()
    yield server
    server.stop()
