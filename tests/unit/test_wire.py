"""What JetStream's refusals mean for whoever asked."""

from __future__ import annotations

import msgspec
import pytest

from streams.log import LogError, LogFull
from streams.wire import ApiError, NoAnswer, accepted


def refusal(code: int, http: int = 500) -> bytes:
    """As the server says it."""
    return msgspec.json.encode(
        {"error": {"code": http, "err_code": code, "description": "it is so"}}
    )


@pytest.mark.parametrize(
    ("code", "http", "means"),
    [
        # No leader yet; streams and consumers that are just moved to another server.
        (10008, 503, NoAnswer),
        (10118, 500, NoAnswer),
        (10119, 500, NoAnswer),
        # An earlier try of the same message is just being replicated.
        (10158, 409, NoAnswer),
        # A server that is too old for them: waiting mends nothing.
        (10195, 500, ApiError),
        (10059, 404, ApiError),
        (10047, 500, LogFull),
    ],
)
def test_refusal_is_the_exception_it_means(code: int, http: int, means: type[LogError]) -> None:
    """What may be over soon is asked again; everything else is said."""
    with pytest.raises(LogError, match="it is so") as refused:
        accepted(refusal(code, http))
    assert type(refused.value) is means


def test_answer_is_given_back() -> None:
    """Also one of nothing at all."""
    assert accepted(b'{"total": 3}') == {"total": 3}
    assert accepted(b"") == {}
