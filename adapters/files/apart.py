"""A program of its own: what SQLite finds wrong in a large database.

``python apart.py URI PRAGMA SECONDS`` says what it found, a line each, and ends with the code of
SQLite's error, if there is one; it waits so long for whoever holds the database. The file is read
as memory, which takes a third of what reading its pages does; where a disk fails that is no error
but the end of a process, and only of this one. It imports nothing but what every Python has, so it
starts at once.
"""

from __future__ import annotations

import sqlite3
import sys

#: As much as SQLite allows; it reads what is beyond.
_MAPPED_BYTES = 1 << 40


def main() -> int:
    """Ask, say what was found, and return the code of an error or 0."""
    uri, pragma, busy_s = sys.argv[1:]
    # Whatever it finds can be said, and is read so by whoever asked.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    try:
        db = sqlite3.connect(uri, uri=True, timeout=float(busy_s))
        db.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        found = [str(row[0]) for row in db.execute(f"PRAGMA {pragma}")]
    except sqlite3.Error as error:
        print(error)
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) or sqlite3.SQLITE_ERROR
    except UnicodeDecodeError as error:
        # So ends a complaint of SQLite that quotes what it found, as of a damaged schema.
        print(f"what it holds is no text: {error}")
        return sqlite3.SQLITE_CORRUPT
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
