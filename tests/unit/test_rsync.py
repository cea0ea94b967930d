"""What is said to rsync and ssh, what they say, and what it means; and base64 in pieces."""

from __future__ import annotations

import base64
import random
import shlex
import subprocess
from pathlib import Path

import pytest

from adapters.errors import (
    DigestMismatch,
    DiskFailed,
    DiskFull,
    EntryMissing,
    Interrupted,
    NeverReplaced,
    PathEscapes,
    Refused,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.ssh.base64_ssh import Decoder
from adapters.ssh.connections import SshOptions, address, client_words
from adapters.ssh.push import Place
from adapters.ssh.rsync_words import (
    CHECKSUM_BELOW_BYTES,
    failure,
    progress_in,
    push_words,
    quoted,
)
from adapters.ssh.shell import command, meaning, outcome
from adapters.transport import Request
from streams.values import DataEntry, DataType, Endpoint

FAR = Endpoint(
    node="gpu-7", ssh_host="10.0.0.7", ssh_port=2222, ssh_user="ubuntu", data_root="/data"
)
SHELL = ["ssh", "-p", "2222"]


def request(size_bytes: int = 1000, stall_s: float = 30.0, far: Endpoint = FAR) -> Request:
    """One attempt to push an entry of this size."""
    entry = DataEntry(
        path="models/x.pth",
        data_type=DataType.MODELS,
        config_key="all",
        size_bytes=size_bytes,
        checksum="sha256:" + "0" * 64,
    )
    return Request("t-1", entry, source=FAR, target=far, stall_s=stall_s)


def pushing(
    size_bytes: int = 1000, bytes_per_s: float = 0.0, have: int = 0, home: str = "/data"
) -> list[str]:
    """The words of a push."""
    place = Place(home=home, partial="t-1.partial", have=have)
    return push_words(request(size_bytes), SHELL, bytes_per_s, Path("/held/x"), place)


def test_k18_contents_are_compared_below_100_mb_and_size_and_time_above() -> None:
    """Reading a large file only to compare it costs more than it tells."""
    assert "--checksum" in pushing(CHECKSUM_BELOW_BYTES - 1)
    assert "--checksum" not in pushing(CHECKSUM_BELOW_BYTES)


def test_k18_files_arrive_readable_by_all() -> None:
    """Whatever they were; names are never split or expanded by a shell."""
    assert {"--chmod=F644", "--protect-args"} <= set(pushing())


def test_the_limit_is_said_in_kib_a_second() -> None:
    """No limit is no word, and the least is one: 0 would mean none."""
    assert not any(word.startswith("--bwlimit") for word in pushing())
    assert "--bwlimit=1221" in pushing(bytes_per_s=1_250_000)
    assert "--bwlimit=1" in pushing(bytes_per_s=10)


def test_a_push_goes_on_only_with_what_is_there() -> None:
    """And never by comparing blocks: what is there is the beginning of the same content."""
    assert "--append" not in pushing() and "--whole-file" in pushing()
    assert "--append" in pushing(have=5) and "--whole-file" not in pushing(have=5)


def test_a_push_never_names_the_final_name() -> None:
    """It goes to the partial, and its path is no pattern."""
    words = pushing(home="/mnt/[a] b*")
    assert words[-2:] == ["/held/x", r"10.0.0.7:/mnt/\[a\] b\*/.dataplane/partial/t-1.partial"]
    assert words[-3] == "--"


def test_an_ipv6_address_is_bracketed() -> None:
    """Its colons are not the one before the path."""
    far = Endpoint(node="gpu-7", ssh_host="fd00::7", data_root="/data")
    place = Place(home="/data", partial="p", have=0)
    words = push_words(request(far=far), SHELL, 0, Path("/x"), place)
    assert words[-1] == "[fd00::7]:/data/.dataplane/partial/p"


def test_the_remote_shell_is_quoted_as_rsync_splits_it() -> None:
    """A quote within quotes is doubled; there is no other way to escape."""
    assert quoted(["ssh", "-i", "/a b/it's"]) == "'ssh' '-i' '/a b/it''s'"


def test_k18_host_keys_are_always_checked_and_nothing_is_asked() -> None:
    """With the given keys only, and no configuration file that could say otherwise."""
    options = SshOptions(known_hosts=Path("/k/known 100%"), identity=Path("/k/id"))
    words = client_words(options, FAR, 12.5)
    assert {
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        'UserKnownHostsFile="/k/known 100%%"',
        "GlobalKnownHostsFile=/dev/null",
        'IdentityFile="/k/id"',
        "ConnectTimeout=13",
    } <= set(words)
    assert words[:3] == ["ssh", "-F", "/dev/null"]
    assert words[words.index("-c") + 1].startswith("aes128-gcm@openssh.com")
    assert words[-4:] == ["-l", "ubuntu", "-p", "2222"]


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(node="n"),
        Endpoint(node="n", ssh_host="-oProxyCommand=x"),
        Endpoint(node="n", ssh_host="a b"),
        Endpoint(node="n", ssh_host="a;b"),
        Endpoint(node="n", ssh_host="a", ssh_user="-lroot"),
    ],
)
def test_an_address_is_never_an_option_or_a_command(endpoint: Endpoint) -> None:
    """Whatever a node says of itself."""
    with pytest.raises(Unreachable):
        address(endpoint)


def test_progress_is_the_last_number_that_rsync_speaks_of() -> None:
    """Lines end with a return, and the last may be cut."""
    said = b"\r              0   0%    0.00kB/s    0:00:00  \r       29000000  96%  248.78MB/s "
    assert progress_in(said) == 29_000_000
    assert progress_in(said + b"\r  300") == 29_000_000
    assert progress_in(b"\nNumber of files: 1 (reg: 1)\n") is None


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (23, 'rsync: [sender] link_stat "/x" failed: No such file or directory (2)', EntryMissing),
        (24, "file has vanished: /x", EntryMissing),
        (23, 'rsync: [sender] read errors mapping "/x": No data available (61)', EntryMissing),
        (23, 'rsync: [sender] send_files failed to open "/x": Permission denied (13)', Refused),
        (23, 'rsync: [Receiver] mkstemp "/x" failed: Permission denied (13)', DiskFailed),
        (11, 'rsync: write failed on "/x": No space left on device (28)', DiskFull),
        (11, "rsync: [receiver] write failed: Read-only file system (30)", DiskFailed),
        (12, "rsync: connection unexpectedly closed", Interrupted),
        (10, "socket", Interrupted),
        (-9, "", Interrupted),
        (20, "", Interrupted),
        (30, "io timeout after 30 seconds", Stalled),
        (127, "sh: 1: rsync: not found", Refused),
        (12, "bash: line 1: rsync: command not found", Refused),
        (2, "protocol version mismatch -- is your shell clean?", Refused),
        (255, "ssh: connect to host a port 22: Connection refused", Unreachable),
        (255, "ssh: connect to host a port 22: No route to host", Unreachable),
        (255, "ssh: Could not resolve hostname a: Name or service not known", Unreachable),
        (255, "ssh: connect to host a port 22: Connection timed out", Unreachable),
        (255, "Connection timed out during banner exchange", Stalled),
        (255, "client_loop: send disconnect: Broken pipe", Interrupted),
        (255, "kex_exchange_identification: Connection closed by remote host", Interrupted),
        (255, "Host key verification failed.", Refused),
        (255, "ubuntu@a: Permission denied (publickey).", Refused),
        (255, "Unable to negotiate with a: no matching cipher found.", Refused),
    ],
)
def test_exit_codes_and_last_words_say_what_to_do_next(
    status: int, said: str, kind: type[TransportError]
) -> None:
    """The words of ssh go before the code; they stand in the error's text."""
    error = failure(status, said, "gpu-7")
    assert type(error) is kind
    assert said in str(error)
    assert "gpu-7" in str(error)


def test_a_private_key_that_others_may_read_is_named_with_what_to_do() -> None:
    """The client's own banner is long, and ends with what the far end said of no key at all."""
    banner = (
        "@@@@\n@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\n@@@@\n"
        "Permissions 0644 for '/home/me/id' are too open.\n"
        "root@10.0.0.7: Permission denied (publickey)."
    )
    error = failure(255, banner, "gpu-7")
    assert type(error) is Refused
    assert str(error) == "gpu-7 was not asked: others may read /home/me/id: chmod 600 it"


@pytest.mark.parametrize(
    "said", ["me@a: Permission denied (publickey).", "Permission denied for user me on host a"]
)
def test_who_is_not_let_in_is_told_which_settings_decide_it(said: str) -> None:
    """One is of that node, one of this."""
    error = meaning(said, "gpu-7", Interrupted)
    assert type(error) is Refused
    assert "ssh_user must know the key of ssh_identity here" in str(error)


def test_an_unknown_host_key_names_the_setting_of_those_that_are_known() -> None:
    """Whoever reads it corrects a file, and must know which."""
    said = str(failure(255, "Host key verification failed.", "gpu-7"))
    assert "ssh_known_hosts or ~/.ssh/known_hosts" in said


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (None, Interrupted),
        (-9, Interrupted),
        (1, Interrupted),
        (40, EntryMissing),
        (42, Refused),
        (45, PathEscapes),
        (46, DigestMismatch),
        (47, NeverReplaced),
        (49, DiskFailed),
        (127, Refused),
    ],
)
def test_the_end_of_our_own_commands_says_what_to_do_next(
    status: int | None, kind: type[TransportError]
) -> None:
    """They have exit codes of their own."""
    assert type(outcome(status, "", "gpu-7")) is kind


def test_a_full_disk_at_the_far_end_is_told_from_a_broken_one() -> None:
    """By what its tools say, whichever of them says it."""
    assert type(outcome(49, "mkdir: ./a: No space left on device", "n")) is DiskFull
    assert type(outcome(1, "base64: write error: No space left on device", "n")) is DiskFull
    assert type(meaning("Disk quota exceeded", "n", Interrupted)) is DiskFull


@pytest.mark.parametrize(
    "word", ["plain", "", "it's", 'a "b"', "$HOME `id` $(id)", "a\nb", "-n", "*", "ü \\ "]
)
def test_words_reach_the_far_shell_unchanged(word: str) -> None:
    """Through the login shell and through ours."""
    said = subprocess.run(
        ["sh", "-c", command('printf "%s|" "$@"', word, "end")], capture_output=True, check=True
    ).stdout.decode()
    assert said == f"{word}|end|"
    assert shlex.split(command(":"))[:2] == ["sh", "-c"]


def test_base64_is_understood_in_pieces_of_any_length() -> None:
    """With line ends anywhere, and padding at the end."""
    numbers = random.Random(7)
    for length in (0, 1, 2, 3, 56, 57, 58, 10_000):
        data = numbers.randbytes(length)
        text, decoder, got = base64.encodebytes(data), Decoder(), b""
        while text:
            cut = numbers.randint(1, 200)
            got += decoder.feed(text[:cut])
            text = text[cut:]
        assert got == data
