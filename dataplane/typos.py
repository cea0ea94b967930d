"""What somebody may have meant who wrote a name that is none. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: How alike two names are that may be one, from 0 to 1.
_ALIKE = 0.7


def meant(word: str, what: str, known: Iterable[str]) -> str:
    """The known name that is most like `word`, as a question; else all of them, as `what`."""
    names = {name.lower(): name for name in known}
    alike = difflib.get_close_matches(word.lower(), names, n=1, cutoff=_ALIKE)
    if alike:
        return f"did you mean {names[alike[0]]!r}?"
    return f"{what}: {', '.join(names.values())}"
