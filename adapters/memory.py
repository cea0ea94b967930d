"""Memory that files and sockets are read into.

It must begin where a page does, or anywhere but just behind: a large block of Python's own memory
begins 16 bytes into a page, and processors copy whole pages to there at a fifth of their speed.
"""

from __future__ import annotations

import mmap

#: Smaller blocks lie among others, and cost less to make where they do.
_OWN_PAGES_FROM_BYTES = 64 << 10


def room(nbytes: int) -> memoryview:
    """So many bytes of zeros to be read into; given back once nobody refers to them."""
    if nbytes < _OWN_PAGES_FROM_BYTES:
        return memoryview(bytearray(nbytes))
    return memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
