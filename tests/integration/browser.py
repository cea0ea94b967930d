"""A real headless Chromium for tests, driven over its own protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.integration.cluster import until

PATIENCE_S = 60.0


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        #: What the page complained of: exceptions, refused resources, failed requests.
        self.complaints: list[str] = []
        #: Every address it asked for.
        self.asked: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded":
                self.complaints.append(said["params"]["entry"]["text"])
            elif said["method"] == "Network.requestWillBeSent":
                self.asked.append(said["params"]["request"]["url"])

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; its result."""
        number = next(self._ids)
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        said = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in said, said
        return said["result"]

    async def go(self, url: str) -> None:
        """Load a page and wait until it is there."""
        await self.call("Page.navigate", url=url)
        await self.waits_for(f"location.href.startsWith({json.dumps(url)})")
        await self.waits_for("document.readyState === 'complete'")

    async def says(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def waits_for(self, expression: str) -> None:
        """Until an expression is true."""
        await until(lambda: self.says(expression), expression)

    async def text(self, selector: str) -> str:
        """What can be read in the first element that matches."""
        return str(await self.says(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def window(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """How large the screen is, and whether its owner likes it dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, file: Path) -> None:
        """The whole page as PNG."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(found["data"]))

    async def tree(self) -> list[dict[str, Any]]:
        """What a screen reader is told: roles and names, ignored nodes left out."""
        found = await self.call("Accessibility.getFullAXTree")
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in found["nodes"]
            if not node["ignored"]
        ]

    async def close(self) -> None:
        """Let go of it."""
        self._reading.cancel()
        await self._socket.close()


@asynccontextmanager
async def chromium(home: Path) -> AsyncIterator[Page]:
    """A browser with one empty tab; it fails where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    assert binary, "there is no chromium; make system"
    profile = home / "chromium"
    port_file = profile / "DevToolsActivePort"
    await asyncio.to_thread(port_file.unlink, missing_ok=True)
    process = await asyncio.create_subprocess_exec(
        binary,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await until(lambda: port_file.exists() and port_file.read_text().strip(), "chromium")
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json()
            address = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
            page = Page(await session.ws_connect(address, max_msg_size=0))
            for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                await page.call(f"{domain}.enable")
            yield page
            await page.close()
    finally:
        process.terminate()
        await process.wait()
