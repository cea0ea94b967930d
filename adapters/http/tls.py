"""TLS between nodes: what a server shows, and whom a client trusts. Never less than 1.2."""

from __future__ import annotations

import ssl
from pathlib import Path


def serving(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server shows. Raises `OSError` or `ssl.SSLError` if the files are no such."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def trusting(authority: Path | None = None) -> ssl.SSLContext:
    """Whom a client trusts: this authority alone, or whom this machine trusts. Names are checked.

    Raises `OSError` or `ssl.SSLError` if the file is no certificate.
    """
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
