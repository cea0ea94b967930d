"""The tools that people would use instead of a transport of ours, as they would use them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from adapters.http.signing import Signer
from adapters.ssh.connections import CIPHERS
from bench.ends import KEY, Ends, File, Setting
from bench.measuring import Usage, commands

ABSENT = "absent"
_ASKED = {
    "curl": ("--version",),
    "rclone": ("version",),
    "rsync": ("--version",),
    "aws": ("--version",),
    "ssh": ("-V",),
    "dd": ("--version",),
}
_TTL_S = 86_400.0
_RCLONE = {"RCLONE_CONFIG": os.devnull, "RCLONE_CONFIG_S_TYPE": "s3"}
_DIGEST, _SYNC = ["openssl", "dgst", "-sha256"], ["sync"]
_PROVEN = "then sha256sum and sync"
Way = Callable[[Path], Usage]


@cache
def versions() -> dict[str, str]:
    """What each tool says it is; `ABSENT` if it is not installed."""
    return {name: _version(name, *words) for name, words in _ASKED.items()}


def _version(name: str, *words: str) -> str:
    if shutil.which(name) is None:
        return ABSENT
    said = subprocess.run([name, *words], capture_output=True, text=True, check=False)
    return (said.stdout or said.stderr).splitlines()[0].strip()


def ways(ends: Ends, side: str, files: list[File]) -> dict[str, Way]:
    """The peers of one side, by name, as far as they are installed."""
    many = len(files) > 1
    found: dict[str, Way] = {}
    if side in ("http", "p2p") and not many:
        found = _http(ends.setting, files[0])
    elif side in ("http", "p2p") or (side == "rsync" and many):
        found = _many(ends.setting, files)
    elif side == "http push":
        found = _many_pushed(ends, files)
    elif side.startswith("rsync"):
        found = _rsync(ends, side, files[0])
    elif side.startswith("base64"):
        found = _base64(ends, side, files[0])
    elif side.startswith("s3"):
        found = _s3(ends, side, files)
    return {name: way for name, way in found.items() if versions()[_tool(name)] != ABSENT}


def _tool(name: str) -> str:
    return name.split()[0].rstrip(",")


def _http(setting: Setting, file: File) -> dict[str, Way]:
    entry = file.entry
    url = Signer(KEY).url(
        setting.http.http_url, entry.checksum, entry.path, "bench", time.time(), _TTL_S
    )

    def curl(target: Path, *then: list[str]) -> Usage:
        copy = str(target / "copy")
        fetched = ["curl", "--silent", "--show-error", "--fail", "--output", copy, url]
        return commands(fetched, *([*words, copy] for words in then))

    return {
        "curl": curl,
        "curl, then openssl dgst": lambda target: curl(target, _DIGEST),
        "curl, then openssl dgst and sync": lambda target: curl(target, _DIGEST, _SYNC),
        "rclone copyurl": lambda target: commands(["rclone", "copyurl", url, f"{target}/copy"]),
        "dd conv=fsync, the disk alone": lambda target: _written(file, target),
    }


def _written(file: File, target: Path) -> Usage:
    """The limit of whoever syncs: no byte comes over a network, none is digested."""
    return commands(
        ["dd", "status=none", "bs=1M", "conv=fsync", f"if={file.path}", f"of={target}/copy"]
    )


def _many(setting: Setting, files: list[File]) -> dict[str, Way]:
    directory = Path(files[0].path).parent
    daemon = f"rsync://127.0.0.1:{setting.rsyncd_port}/all/{directory.name}/"
    there = f"{setting.ssh.ssh_user}@127.0.0.1:{directory}/"

    def way(target: Path, *then: list[str]) -> Usage:
        return commands(["rsync", "-a", daemon, str(target)], *then)

    return {
        "rsync -a from a daemon": way,
        f"rsync -a from a daemon, {_PROVEN}": lambda target: way(target, *_proof(target)),
        "rsync -a over ssh": lambda target: commands(
            ["rsync", "-a", "-e", shlex.join(_ssh(setting, same_cipher=True)), there, str(target)]
        ),
    }


def _many_pushed(ends: Ends, files: list[File]) -> dict[str, Way]:
    directory = Path(files[0].path).parent

    def way(*then: list[str]) -> Usage:
        setting = ends.setting
        there = f"rsync://127.0.0.1:{setting.rsyncd_port}/taken/{setting.bucket}/"
        return commands(["rsync", "-a", f"{directory}/", there], *then)

    return {
        "rsync -a to a daemon": lambda _: way(),
        f"rsync -a to a daemon, {_PROVEN}": lambda _: way(
            *_proof(ends.base / "taken" / ends.setting.bucket)
        ),
    }


def _proof(directory: Path) -> tuple[list[str], ...]:
    """What ours does besides moving many files: a digest of each, and all on the disk."""
    digests = ["find", str(directory), "-type", "f", "-exec", "sha256sum", "{}", "+"]
    return digests, ["sync", "--file-system", str(directory)]


def _ssh(setting: Setting, *, same_cipher: bool) -> list[str]:
    words = ["ssh", "-F", "/dev/null", "-p", str(setting.ssh.ssh_port), "-i", setting.identity]
    words += ["-o", f"UserKnownHostsFile={setting.known_hosts}", "-o", "IdentitiesOnly=yes"]
    return words + (["-c", CIPHERS[0]] if same_cipher else [])


def _rsync(ends: Ends, side: str, file: File) -> dict[str, Way]:
    """As one types it; with the cipher that ours takes; and so with a digest, as ours has one."""

    def way(target: Path, *then: list[str], same_cipher: bool = True) -> Usage:
        setting = ends.setting
        far = f"{setting.ssh.ssh_user}@127.0.0.1"
        words = ["rsync", "-t", "-e", shlex.join(_ssh(setting, same_cipher=same_cipher))]
        if side == "rsync":
            return commands([*words, f"{far}:{file.path}", f"{target}/copy"], *then)
        return commands([*words, file.path, f"{far}:{setting.ssh.data_root}/copy"], *then)

    def proven(target: Path, *then: list[str]) -> Usage:
        if side == "rsync":
            return way(target, *([*words, f"{target}/copy"] for words in then))
        setting = ends.setting
        ssh = [*_ssh(setting, same_cipher=True), "-l", setting.ssh.ssh_user, "127.0.0.1"]
        far = f"{setting.ssh.data_root}/copy"
        return way(target, *([*ssh, shlex.join([*words, far])] for words in then))

    return {
        "rsync -t over ssh as typed": lambda target: way(target, same_cipher=False),
        "rsync -t over ssh": way,
        "rsync -t over ssh, then openssl dgst": lambda target: proven(target, _DIGEST),
        "rsync -t over ssh, then openssl dgst and sync": lambda target: proven(
            target, _DIGEST, _SYNC
        ),
    }


def _base64(ends: Ends, side: str, file: File) -> dict[str, Way]:
    def way(target: Path) -> Usage:
        setting = ends.setting
        ssh = shlex.join([*_ssh(setting, same_cipher=True), "-l", setting.ssh.ssh_user])
        here = shlex.quote(file.path)
        if side == "base64":
            line = f"{ssh} 127.0.0.1 base64 {here} | base64 -d > {target}/copy"
        else:
            line = f"base64 {here} | {ssh} 127.0.0.1 'base64 -d > {setting.ssh.data_root}/copy'"
        return commands(["sh", "-c", line])

    return {"ssh and base64": way}


def _s3(ends: Ends, side: str, files: list[File]) -> dict[str, Way]:
    many, first = len(files) > 1, Path(files[0].path)
    name = first.parent.name if many else files[0].entry.path
    local = str(first.parent) if many else str(first)

    def rclone(target: Path) -> Usage:
        setting = ends.setting
        os.environ.update(
            _RCLONE
            | {
                "RCLONE_CONFIG_S_ENDPOINT": setting.s3_url,
                "RCLONE_CONFIG_S_PROVIDER": "Other",
                "RCLONE_CONFIG_S_ENV_AUTH": "true",
                "RCLONE_CONFIG_S_REGION": "us-east-1",
            }
        )
        words = ["rclone", "copy" if many else "copyto", "--transfers", "32", "--checkers", "32"]
        if side == "s3 up":
            return commands([*words, local, f"S:{setting.bucket}/{name}"])
        return commands([*words, f"S:{setting.full_bucket}/{name}", f"{target}/copy"])

    def aws(target: Path) -> Usage:
        setting = ends.setting
        words = ["aws", "--endpoint-url", setting.s3_url, "s3", "cp", "--only-show-errors"]
        words += ["--recursive"] if many else []
        if side == "s3 up":
            return commands([*words, local, f"s3://{setting.bucket}/{name}"])
        return commands([*words, f"s3://{setting.full_bucket}/{name}", f"{target}/copy"])

    return {"rclone": rclone, "aws s3 cp": aws}
