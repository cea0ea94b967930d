"""The S3 server of the tests: one for the session, its data thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from dataplane.demo.s3_server import ACCESS_KEY, HOST, SECRET_KEY, S3Server, S3ServerFailed

__all__ = [
    "ACCESS_KEY",
    "HOST",
    "SECRET_KEY",
    "S3Server",
    "new_bucket",
    "running_s3_server",
    "with_credentials",
]


@pytest.fixture(scope="session", name="s3_server")
def running_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's S3 server; without its binary the tests fail, they never skip."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
    except S3ServerFailed as error:
        pytest.fail(str(error))
    yield server
    server.stop()


def new_bucket(server: S3Server) -> str:
    """The name of a bucket that nobody else has: also where a test is run again."""
    name = f"test-{uuid4().hex[:20]}"
    server.client.create_bucket(Bucket=name)
    return name


def with_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the standard chain find this server's credentials, and nobody else's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
