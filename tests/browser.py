"""A page opened in headless Chromium, over the DevTools protocol: what it logs, what it asks the network for,
what it shows."""

import asyncio
import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--remote-debugging-port=0",
]


@contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """A browser of its own with an empty profile; its DevTools address."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        address = next(
            found.group(1)
            for line in process.stderr
            if (found := re.search(r"listening on (ws://\S+)", line))
        )
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


class Tab:
    """One page. `said` are console messages, exceptions and log entries, `asked` the URLs that were
    requested."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number, self._session = socket, 0, ""
        self.said: list[str] = []
        self.asked: list[str] = []
        self._loaded = False

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self._session} if self._session else {}
        )
        await self._socket.send_json(message)
        while True:
            answer = await self._socket.receive_json(timeout=60)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.said.append(f"console.{params['type']}: {[a.get('value') for a in params['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.said.append(f"exception: {params['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.said.append(f"log: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    async def open(self, url: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        made = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)
        await self.call("Page.navigate", url=url)
        while not self._loaded:
            self._note(await self._socket.receive_json(timeout=60))

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


def visit(address: str, look: Any) -> Any:
    """`await look(tab)` on a new page of the browser at `address`."""
    import aiohttp

    async def main() -> Any:
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            return await look(Tab(socket))

    return asyncio.run(main())


CELLS = "[...document.querySelectorAll('td, th, h2, p, dd, li')]"


async def layout(tab: Tab) -> dict[str, Any]:
    """With everything folded opened: how wide the page is, which texts are cut off, which are too small."""
    # by the debugger: a page may forbid scripts
    await tab.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    cut = "e.getBoundingClientRect().right > innerWidth + 1"
    small = "parseFloat(getComputedStyle(e).fontSize) < 12"
    return {
        "wide": await tab.run("document.documentElement.scrollWidth"),
        "cut": await tab.run(f"{CELLS}.filter(e => {cut}).map(e => e.textContent)"),
        "small": await tab.run(f"{CELLS}.filter(e => {small}).map(e => e.textContent)"),
    }
