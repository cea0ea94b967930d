"""A few foreign bytes against every decoder; many more by ``python -m tests.fuzz``."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.fuzz.running import feed, pelt
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_foreign_bytes_are_a_value_or_the_declared_error(target: Target) -> None:
    """Nothing else comes out of a decoder, whatever comes in."""
    feed(target, 40)
    pelt(target, 200)


def test_a_decoder_that_crashes_is_found() -> None:
    """What is fed finds an error that is not declared."""

    def crash(data: bytes) -> None:
        if b"\x00" in data:
            raise KeyError(data)

    broken = Target("broken", st.binary(), crash, (ValueError,))
    with pytest.raises(KeyError):
        feed(broken, 300)
    with pytest.raises(KeyError):
        pelt(broken, 3000)
