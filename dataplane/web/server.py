"""Serves the page; its troubles are never those of what it shows."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from dataplane.config import DataPlaneConfig
from dataplane.coordinator.monitor import Monitor
from dataplane.logs import protect
from dataplane.web.access import guard, is_loopback, token_for
from dataplane.web.draw import environment
from dataplane.web.live import Live
from dataplane.web.pages import Pages
from streams.log import LogError

logger = logging.getLogger(__name__)
_STATIC = Path(__file__).parent / "static"


class WebServer:
    """The page of one coordinator. `start`, then `stop`."""

    def __init__(self, monitor: Monitor, config: DataPlaneConfig) -> None:
        self._config = config
        self._token = token_for(config.web_host, config.web_token, config.state_dir / "web_token")
        protect([self._token])
        templates = environment()
        live = Live(monitor, templates)
        self._pages = Pages(monitor, templates, live)
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where it is, without a token; "" while it is not up."""
        host = self._config.web_host
        scheme = "https" if self._config.web_tls_cert else "http"
        named = f"[{host}]" if ":" in host else host
        return f"{scheme}://{named}:{self._port}/" if self._port else ""

    async def start(self) -> None:
        """Serve on the configured port, on a free one where that is taken.

        Raises OSError where the address is none of this machine's or TLS can't be set up.
        """
        app = web.Application(middlewares=[guard(self._token), self._explained])
        app.add_routes(self._pages.routes())
        app.router.add_static("/static", _STATIC)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await self._listen(self._config.web_port)
        except OSError:
            if not self._config.web_port:
                raise
            logger.info("port %d is taken; the page goes to a free one", self._config.web_port)
            await self._listen(0)
        file = self._config.web_file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.url)
        locked = "" if is_loopback(self._config.web_host) and not self._token else "; needs a token"
        logger.info("the page is at %s%s", self.url, locked)

    async def stop(self) -> None:
        """Close it; browsers find the next one by themselves."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            await self._pages.close()
            self._config.web_file.unlink(missing_ok=True)

    async def _listen(self, port: int) -> None:
        assert self._runner is not None
        site = web.TCPSite(
            self._runner, self._config.web_host, port, ssl_context=_tls(self._config)
        )
        await site.start()
        address = self._runner.addresses[0]
        self._port = int(address[1])

    @property
    def _explained(self) -> Middleware:
        """Middleware: what is not there or can't be read now is a page that says so."""

        @web.middleware
        async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except (web.HTTPNotFound, web.HTTPBadRequest) as error:
                title = "Not found" if error.status == 404 else "That can't be asked"
                text = error.text or ""
                return self._pages.draw("trouble.html", status=error.status, title=title, text=text)
            except LogError as error:
                title = "The bus is out of reach"
                return self._pages.draw("trouble.html", status=503, title=title, text=str(error))

        return explain


def _tls(config: DataPlaneConfig) -> ssl.SSLContext | None:
    if not config.web_tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.web_tls_cert, config.web_tls_key or None)
    return context
