"""What a server of S3 answers, in our errors: the class says what to do next, the text says how."""

from __future__ import annotations

import pytest

from adapters.errors import EntryMissing, Interrupted, Overtaken, Refused, TransportError
from adapters.s3.errors import code_in, meaning


@pytest.mark.parametrize(
    ("code", "status", "kind", "said"),
    [
        ("PermanentRedirect", 301, Refused, "s3_region"),
        ("", 307, Refused, "s3_region"),
        ("AuthorizationHeaderMalformed", 400, Refused, "s3_region"),
        ("InvalidObjectState", 403, Refused, "archived"),
        ("QuotaExceeded", 403, Refused, "more room"),
        ("XMinioStorageFull", 507, Refused, "more room"),
        ("InsufficientStorage", 507, Refused, "more room"),
        ("AccessDenied", 403, Refused, "credentials"),
        ("Strange", 400, Refused, "status 400"),
        ("SlowDown", 503, Interrupted, "SlowDown"),
        ("NoSuchKey", 404, EntryMissing, "does not hold it"),
        ("PreconditionFailed", 412, Overtaken, "PreconditionFailed"),
    ],
)
def test_a_code_has_its_class_and_a_hint(
    code: str, status: int, kind: type[TransportError], said: str
) -> None:
    """What will be the same next time is refused, and says what to do; what passes is not."""
    error = meaning(code, status, "s3://b/k")
    assert type(error) is kind
    assert str(error).startswith("s3://b/k: ")
    assert said in str(error)


def test_an_answer_without_a_body_is_told_by_its_status() -> None:
    """As one to a HEAD is."""
    assert code_in("", 404) == "404"
    assert code_in("<Error><Code>SlowDown</Code></Error>", 503) == "SlowDown"
    assert code_in("<html>", 502) == ""
