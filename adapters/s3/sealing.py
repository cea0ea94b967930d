"""Content sealed with a key that never leaves the node: AES-256-GCM, in chunks.

A sealed content is a header and the chunks of the plain content, each encrypted on its own, so that
it can be read from any chunk on. A chunk opens only in its place, under the digest and the size of
its entry: no chunk can be changed, moved, dropped or taken from elsewhere. It hides the bytes;
digest, size and path stay readable for whoever may read the bucket.

The same content sealed twice with one key is the same bytes, so that an upload in parts can be gone
on with. That is safe only because what is sealed is proven to have the digest it is sealed under:
never seal under a digest that nobody has checked. Nothing here opens a connection.
"""

from __future__ import annotations

import hmac
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adapters.errors import DigestMismatch
from adapters.files.digest import hex_of

KEY_BYTES = 32
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
VERSION = 1
_MAGIC = b"DPSEALED"
#: Magic, version, chunk size as a power of two, id of the key, salt.
_HEADER = struct.Struct(">8sBB8s16s")
HEADER_BYTES = _HEADER.size
_SMALLEST_POWER, _LARGEST_POWER = 4, 26
_PREFIX_BYTES = 7
#: Counter of the chunk, and whether it is the last one.
_PLACE = struct.Struct(">IB")


class KeyUnusable(ValueError):
    """The file holds no key, or others may read it; the text says what to do."""


class SealBroken(DigestMismatch):
    """These bytes are not what this key sealed under this digest."""


class Sealer:
    """A node's own key, and what it seals and opens. Its text and its errors never show the key."""

    def __init__(self, key: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        if len(key) != KEY_BYTES:
            raise KeyUnusable(f"a key has {KEY_BYTES} bytes")
        self._power = chunk_bytes.bit_length() - 1
        if chunk_bytes != 1 << self._power or not _sane(self._power):
            raise ValueError("a chunk has a power of two bytes")
        self._key = key
        self._id = _derived(key, b"id", 8)

    @classmethod
    def from_file(cls, path: Path) -> Sealer:
        """The key in a file that only its owner may read: 32 bytes, or 64 hexadecimal digits."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                held = file.read(KEY_BYTES * 4)
        except OSError as error:
            raise KeyUnusable(f"{path}: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyUnusable(f"others may read {path}: chmod 600 it")
        return cls(_key_in(held, path))

    @staticmethod
    def make_key(path: Path) -> None:
        """Write a new key to a new file that only its owner may read.

        Keep a copy off the bucket: what is sealed cannot be opened without it.
        """
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(KEY_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that tell keys apart and say nothing of them."""
        return self._id.hex()

    def sealing(self, checksum: str, size_bytes: int) -> Sealed:
        """How a content is sealed; it must have been proven to have this digest and size."""
        known = bytes.fromhex(hex_of(checksum)) + size_bytes.to_bytes(8, "big")
        salt = hmac.digest(_derived(self._key, b"salt", 32), known, "sha256")[:16]
        header = _HEADER.pack(_MAGIC, VERSION, self._power, self._id, salt)
        return Sealed(self._key, header, checksum, size_bytes)

    def opening(self, header: bytes, checksum: str, size_bytes: int) -> Sealed:
        """How a sealed content that begins with `header` is opened. Raises `SealBroken`."""
        if len(header) != HEADER_BYTES:
            raise SealBroken("no sealed content: it is too short")
        magic, version, power, key_id, _ = _HEADER.unpack(header)
        if magic != _MAGIC or version != VERSION or not _sane(power):
            raise SealBroken("no sealed content of a version that is known here")
        if key_id != self._id:
            raise SealBroken(f"sealed with key {key_id.hex()}, not with {self.key_id}")
        return Sealed(self._key, header, checksum, size_bytes)


class Sealed:
    """One content in its sealed form: where its chunks are, and how each is sealed and opened."""

    def __init__(self, key: bytes, header: bytes, checksum: str, size_bytes: int) -> None:
        _, _, power, _, salt = _HEADER.unpack(header)
        self.header = header
        #: Of the plain content.
        self.size_bytes = size_bytes
        self.chunk_bytes: int = 1 << power
        self.chunks = max(1, -(-size_bytes // self.chunk_bytes))
        secret = _derived(key, b"content", KEY_BYTES + _PREFIX_BYTES, salt)
        self._cipher = AESGCM(secret[:KEY_BYTES])
        self._prefix = secret[KEY_BYTES:]
        self._bound = header + bytes.fromhex(hex_of(checksum)) + size_bytes.to_bytes(8, "big")

    @property
    def sealed_bytes(self) -> int:
        """How long the sealed form is."""
        return self.chunk_at(self.chunks)

    def chunk_at(self, index: int) -> int:
        """Where a chunk begins in the sealed form; the end of all for the one after the last."""
        plain = min(index * self.chunk_bytes, self.size_bytes)
        return HEADER_BYTES + plain + index * TAG_BYTES

    def seal(self, index: int, plain: bytes) -> bytes:
        """A chunk as it is kept."""
        return self._cipher.encrypt(self._nonce(index), plain, self._bound)

    def open(self, index: int, sealed: bytes) -> bytes:
        """A chunk as it was. Raises `SealBroken`."""
        try:
            return self._cipher.decrypt(self._nonce(index), sealed, self._bound)
        except InvalidTag:
            raise SealBroken(f"chunk {index} of {self.chunks} is not what was sealed") from None

    def read(
        self, plain: Callable[[int, int], bytes], offset: int, length: int
    ) -> Iterator[memoryview]:
        """A range of the sealed form, piece by piece, `plain` being asked for (offset, length) of
        the content.
        """
        end = min(offset + length, self.sealed_bytes)
        index = max(0, offset - HEADER_BYTES) // (self.chunk_bytes + TAG_BYTES)
        at, piece = (self.chunk_at(index), b"") if offset >= HEADER_BYTES else (0, self.header)
        while True:
            yield memoryview(piece)[max(0, offset - at) : end - at]
            at += len(piece)
            if at >= end:
                return
            piece = self.seal(index, plain(index * self.chunk_bytes, self.chunk_bytes))
            index += 1

    def _nonce(self, index: int) -> bytes:
        return self._prefix + _PLACE.pack(index, index == self.chunks - 1)


class Opener:
    """Opens a sealed content as its bytes come, from any offset of the plain content on."""

    def __init__(self, sealed: Sealed, offset: int = 0) -> None:
        self._sealed = sealed
        self._index = min(offset // sealed.chunk_bytes, sealed.chunks - 1)
        self._skip = offset - self._index * sealed.chunk_bytes
        self._gathered = bytearray()
        #: Where in the sealed form the bytes that it is fed begin.
        self.starts_at = sealed.chunk_at(self._index)

    def feed(self, data: bytes) -> bytes:
        """The plain bytes that can be told now. Raises `SealBroken`."""
        self._gathered += data
        plain = []
        while self._index < self._sealed.chunks:
            length = self._sealed.chunk_at(self._index + 1) - self._sealed.chunk_at(self._index)
            if len(self._gathered) < length:
                break
            opened = self._sealed.open(self._index, bytes(memoryview(self._gathered)[:length]))
            del self._gathered[:length]
            plain.append(opened[self._skip :])
            self._index, self._skip = self._index + 1, 0
        return b"".join(plain)

    def finish(self) -> None:
        """Raise `SealBroken` unless all chunks came, and nothing after them."""
        if self._index < self._sealed.chunks or self._gathered:
            raise SealBroken(f"{self._index} of {self._sealed.chunks} whole chunks came")


def _derived(key: bytes, purpose: bytes, length: int, salt: bytes | None = None) -> bytes:
    return HKDF(SHA256(), length, salt, b"dataplane sealing 1 " + purpose).derive(key)


def _sane(power: int) -> bool:
    return _SMALLEST_POWER <= power <= _LARGEST_POWER


def _key_in(held: bytes, path: Path) -> bytes:
    if len(held) == KEY_BYTES:
        return held
    try:
        return bytes.fromhex(held.decode("ascii"))
    except ValueError:
        # Neither the content nor the decoder's words about it.
        raise KeyUnusable(f"{path} holds neither 32 bytes nor 64 hexadecimal digits") from None
