"""The demo's bucket: an S3 server of its own, and its part of the verdict.

The verdict reads manifests and objects with a plain client and hashlib, with none of our code but
the names of fields: what is audited must not audit itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dataplane.demo.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

BUCKET = "demo"
#: A few games are worth a backup here, and the server knows but one class of storage.
POLICY = '[policy.s3]\nmin_games = 10\nstorage_class = ""\n'


class DemoBucket:
    """One bucket on a server that lives as long as the demo."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.server = S3Server(directory)

    async def start(self) -> None:
        """Start the server and make the bucket. Raises S3ServerFailed."""
        await asyncio.to_thread(self.server.start)
        await asyncio.to_thread(self.server.client.create_bucket, Bucket=BUCKET)

    def stop(self) -> None:
        """End the server."""
        self.server.stop()

    def settings(self) -> dict[str, object]:
        """What a process of the demo must be told of it."""
        return {
            "s3_enabled": "true",
            "s3_bucket": BUCKET,
            "s3_endpoint": self.server.url,
            "s3_region": "us-east-1",
        }

    @staticmethod
    def credentials() -> dict[str, str]:
        """Where the standard chain looks for credentials."""
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

    def examination(self) -> Callable[[str, str], str]:
        """Says what is wrong with a copy, by path and digest; "" if a manifest names it and it is
        whole. Manifests are read once: nobody may write to the bucket meanwhile.
        """
        named: dict[tuple[str, str], str] = {}

        def problem_with(path: str, checksum: str) -> str:
            try:
                if not named:
                    named.update(self._named())
                key = named.get((path, checksum))
                if key is None:
                    return "no manifest in the bucket names it"
                body = self._read(key)
            except (ClientError, BotoCoreError, KeyError, ValueError) as error:
                return f"can't be read from the bucket: {error}"
            found = "sha256:" + hashlib.sha256(body).hexdigest()
            return "" if found == checksum else f"the object there is {found}, not {checksum}"

        return problem_with

    def _named(self) -> dict[tuple[str, str], str]:
        """Key by path and digest, of all that the nodes' manifests name."""
        listed = self.server.client.list_objects_v2(Bucket=BUCKET, Prefix="nodes/")
        named: dict[tuple[str, str], str] = {}
        for one in listed.get("Contents", []):
            for stored in json.loads(self._read(one["Key"]))["entries"]:
                entry = stored["entry"]
                named[entry["path"], entry["checksum"]] = stored["key"]
        return named

    def _read(self, key: str) -> bytes:
        got: Any = self.server.client.get_object(Bucket=BUCKET, Key=key)
        body: bytes = got["Body"].read()
        return body
