"""What is said to a shell at the far end of SSH, and what its answers mean. Pure.

The scripts need nothing there but POSIX and a few tools, quoted once by `command`. They must never
let a path lead out of the data root, and give a final name only to bytes they have digested.
"""

from __future__ import annotations

import re
import shlex

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
from adapters.files.places import OWN_DIRECTORY

SAID_CHARS = 600


# What errors mean.

_UNTRUSTED = re.compile(
    r"Host key verification failed|HOST IDENTIFICATION HAS CHANGED|host key is known"
    r"|[Hh]ost key is not trusted|No matching host key|no matching host key"
)
#: As ssh, and as its library, say it.
_NOT_LET_IN = re.compile(r"Permission denied \([a-z]|Permission denied for user")
#: The ssh client goes on without it, and what it says last is that the other end let it in not.
_OPEN_KEY = re.compile(r"Permissions \d+ for '([^'\n]+)' are too open")
_MEANINGS: tuple[tuple[re.Pattern[str], type[TransportError]], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"timed? ?out during banner exchange|banner exchange.*timed out", Stalled),
        (r"Timeout, server|io timeout|timeout in data", Stalled),
        (r"connect to host|Could not resolve hostname|No route to host", Unreachable),
        (r"Network is unreachable|Connection refused", Unreachable),
        (r"Unable to negotiate|Too many authentication", Refused),
        (r"rsync: (?:command )?not found|command not found", Refused),
        (r"No space left on device|[Qq]uota exceeded", DiskFull),
        (r"Read-only file system", DiskFailed),
    )
)


def meaning(said: str, who: str, otherwise: type[TransportError]) -> TransportError:
    """The error that ssh, rsync or the far end's shell speak of; `otherwise` if we can't tell."""
    said = said.strip()[-SAID_CHARS:]
    if _UNTRUSTED.search(said):
        return Refused(
            f"the host key of {who} is unknown or has changed; find out which, "
            f"then correct the known hosts, in ssh_known_hosts or ~/.ssh/known_hosts: {said}"
        )
    if open_key := _OPEN_KEY.search(said):
        return Refused(f"{who} was not asked: others may read {open_key[1]}: chmod 600 it")
    if _NOT_LET_IN.search(said):
        return Refused(
            f"{who} does not let us in; its ssh_user must know the key of ssh_identity here: {said}"
        )
    for pattern, kind in _MEANINGS:
        if pattern.search(said):
            return kind(f"{who}: {said}")
    return otherwise(f"{who}: {said}" if said else f"{who} broke off")


# What is said at the far end: POSIX shell, its words quoted once by `command`.

#: Before what we want to hear, so that a login's greetings are not taken for it.
MARK = "dataplane:"
_NO_FILE, _OTHER_SIZE, _NO_TOOL, _UNREADABLE, _NO_ROOT = 40, 41, 42, 43, 44
_LEADS_OUT, _OTHER_BYTES, _IS_DIRECTORY, _EXISTS, _NOT_MADE, _CALLED_OFF = 45, 46, 47, 48, 49, 50
_NO_COMMAND = (126, 127)
_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

_COMMON = f"""LC_ALL=C; export LC_ALL; unset CDPATH; umask 022; set -f
say() {{ printf '{MARK}%s\\n' "$1"; }}
size() {{ echo $(($(wc -c <"$1"))); }}
own() {{ cd -P -- "${{1%/}}/{OWN_DIRECTORY}/partial" || exit {_NO_ROOT}; }}
digest() {{
  openssl dgst -sha256 <"$1" 2>/dev/null || sha256sum <"$1" 2>/dev/null ||
  shasum -a 256 <"$1" 2>/dev/null ||
  python3 -c "import hashlib,sys
h=hashlib.sha256()
for b in iter(lambda:sys.stdin.buffer.read(1<<20),b''):h.update(b)
print(h.hexdigest())" <"$1" 2>/dev/null; }}
inside() {{
  case "$PWD/" in "$root/{OWN_DIRECTORY}"/*) exit {_LEADS_OUT};; "$root"/*) ;;
  *) exit {_LEADS_OUT};; esac; }}
"""

#: file, size, first byte: the rest of the file in base64.
_GIVE = f"""[ -f "$1" ] || exit {_NO_FILE}
[ -r "$1" ] || exit {_UNREADABLE}
command -v base64 >/dev/null && command -v tail >/dev/null || exit {_NO_TOOL}
[ "$(size "$1")" -eq "$2" ] || exit {_OTHER_SIZE}
say begin
if [ "$3" -gt 1 ]; then tail -c "+$3" <"$1" | base64; else base64 <"$1"; fi
"""

#: root, partial, tools, final name, its directories: what is there, and on which disk.
PREPARE = f"""root=$1 part=$2 tools=$3 name=$4; shift 4
for t in $tools; do command -v "$t" >/dev/null || {{ echo "no $t" >&2; exit {_NO_TOOL}; }}; done
case "$(digest /dev/null)" in *{_EMPTY_SHA256}*) ;;
*) echo 'no sha256sum, openssl, shasum or python3' >&2; exit {_NO_TOOL};; esac
cd -P -- "$root" || exit {_NO_ROOT}
root=${{PWD%/}} home=$PWD mount= there=1
disk() {{
  df=$(df -Pk . 2>/dev/null)
  [ "${{df##*% }}" = "$mount" ] || {{ mount=${{df##*% }}; home=$PWD; }}; }}
disk
for d; do
  [ -d "./$d" ] || {{ there=; break; }}
  cd -P -- "./$d" || exit {_NOT_MADE}
  inside; disk
done
if [ -z "$there" ]; then :
elif [ -d "./$name" ]; then exit {_IS_DIRECTORY}
elif [ -f "./$name" ]; then say "final $(size "./$name")"
elif [ -e "./$name" ] || [ -L "./$name" ]; then say "final 0"; fi
mkdir -p -- "${{home%/}}/{OWN_DIRECTORY}/partial" || exit {_NOT_MADE}
own "$home"
if [ -s "./$part" ]; then say "have $(size "./$part")"; else rm -f -- "./$part"; say "have 0"; fi
set -- ${{df%\\%*}}
if [ $# -gt 2 ]; then shift $(($# - 2)); say "room $1"; fi
say "home $home"
"""

#: home, partial, offset: bytes in base64 are put there. Not appended: what an attempt that was
#: thought dead still writes are the same bytes at the same place.
_TAKE = """own "$1"
[ "$3" -gt 0 ] || : >"./$2"
{ dd bs=1 seek="$3" count=0 2>/dev/null && base64 -d; } 1<>"./$2"
"""

#: A file that grows, a digest, its size, and a patience in seconds: whether that is its digest,
#: read behind whoever writes it. A pipe to a tool would cost as much as the digest. What it waits
#: for is said, so that it ends when nobody listens any more, and it waits no longer than that for a
#: byte: over a connection that fell silent, it would never hear of it. What was read is flushed on
#: the way.
_FOLLOWER = f"""import hashlib, mmap, os, sys, time
path, digest, size, patience = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
sha, at, flushed, grew = hashlib.sha256(), 0, 0, time.monotonic()
block = memoryview(mmap.mmap(-1, 1 << 20))
def say(what): print("{MARK}" + what, flush=True)
def wait():
    if time.monotonic() - grew > patience: sys.exit("nothing comes")
    say("at %d" % at)
    time.sleep(0.05)
while not os.path.isfile(path): wait()
file = os.open(path, os.O_RDONLY)
while at < size:
    count = os.readv(file, [block])
    sha.update(block[:count])
    at += count
    if count: grew = time.monotonic()
    if count < len(block) and at < size: wait()
    if at - flushed >= 32 << 20:
        os.fsync(file)
        flushed = at
        say("at %d" % at)
sys.exit(sha.hexdigest() != digest)
"""

#: home, partial, digest or nothing if it is proven, size, mtime, merged, side files, root, final
#: name, its directories: the digest is proven, and the final name is given if we are still there to
#: want it.
PUBLISH = f"""home=$1 part=$2 hex=$3 bytes=$4 stamp=$5; shift 5
merged=$1 sides=$2 root=$3 name=$4; shift 4
own "$home"
[ "$bytes" -gt 0 ] || : >"./$part"
[ -f "./$part" ] && [ "$(size "./$part")" -eq "$bytes" ] || exit {_OTHER_SIZE}
if [ -n "$hex" ]; then
  case "$(digest "./$part")" in *"$hex"*) ;; *) : >"./$part"; exit {_OTHER_BYTES};; esac
fi
p=$PWD/$part
[ -z "$stamp" ] || TZ=UTC0 touch -t "$stamp" "$p" 2>/dev/null
chmod 644 "$p" 2>/dev/null
sync "$p" 2>/dev/null || sync 2>/dev/null
say proven
read -r go && [ "$go" = go ] || exit {_CALLED_OFF}
cd -P -- "$root" || exit {_NO_ROOT}
root=${{PWD%/}}
for d; do
  [ -d "./$d" ] || mkdir -- "./$d" || [ -d "./$d" ] || exit {_NOT_MADE}
  cd -P -- "./$d" || exit {_NOT_MADE}
  inside
done
[ -d "./$name" ] && exit {_IS_DIRECTORY}
for s in $sides; do rm -f -- "./$name$s" || exit {_NOT_MADE}; done
if [ -n "$merged" ]; then ln -- "$p" "./$name" || exit {_EXISTS}; rm -f -- "$p"
else mv -f -- "$p" "./$name" || exit {_NOT_MADE}; fi
sync . 2>/dev/null
say landed
"""

#: A patience in seconds, then as `PUBLISH`, of a file that grows: it is digested meanwhile, where
#: there is Python, and named once we say that it is whole.
FOLLOW = f"""patience=$1; shift
own "$1"
command -v python3 >/dev/null || exit {_NO_TOOL}
python3 -I -S -c '{_FOLLOWER}' "./$2" "$3" "$4" "$patience" || exit {_OTHER_BYTES}
say digested
read -r whole && [ "$whole" = whole ] || exit {_CALLED_OFF}
home=$1 part=$2; shift 3
set -- "$home" "$part" '' "$@"
{PUBLISH}"""


def command(script: str, *words: str) -> str:
    """What to say at the far end so that a POSIX shell there runs a script with these words."""
    return shlex.join(["sh", "-c", _COMMON + script, "sh", *words])


def giving(path: str, size_bytes: int, offset: int) -> str:
    """The command that says a file from `offset` on, in base64."""
    return command(_GIVE, path, str(size_bytes), str(offset + 1))


def taking(home: str, partial: str, offset: int) -> str:
    """The command that puts what it hears, in base64, into a partial file from `offset` on."""
    return command(_TAKE, home, partial, str(offset))


_OUTCOMES: dict[int, tuple[type[TransportError], str]] = {
    _NO_FILE: (EntryMissing, "does not hold this content any more"),
    _OTHER_SIZE: (EntryMissing, "holds a file of another size"),
    _NO_TOOL: (Refused, "lacks a tool that this transport needs"),
    _UNREADABLE: (Refused, "may not read the file"),
    _NO_ROOT: (Refused, "has no such data root"),
    _LEADS_OUT: (PathEscapes, "the path leads out of the data root"),
    _OTHER_BYTES: (DigestMismatch, "got other bytes than the entry's"),
    _IS_DIRECTORY: (NeverReplaced, "a directory has the final name"),
    _EXISTS: (NeverReplaced, "this file is only ever merged, and there is one already"),
    _NOT_MADE: (DiskFailed, "would not make a directory or a name"),
    _CALLED_OFF: (Interrupted, "did not hear that it may go on"),
}


def outcome(status: int | None, said: str, who: str) -> TransportError:
    """The error that the end of a command of ours means; None is a connection that broke off."""
    kind, text = _OUTCOMES.get(status or 0, (Interrupted, ""))
    if status in _NO_COMMAND:
        kind, text = Refused, "has no such command, or does not allow it"
    if text and kind not in (DiskFailed, Refused):
        return kind(f"{who}: {text}")
    return meaning(f"{text}: {said.strip()}" if text else said, who, kind)
