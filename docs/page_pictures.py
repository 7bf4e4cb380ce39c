"""Takes the pictures of the page: `python docs/page_pictures.py` (Playwright, and a Chromium on the PATH).

The clips are those of the tests' server: tones, but with the page as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.page_server import FakeServer, running

DOCS = Path(__file__).parent
HOUR, DAY = 3600.0, 86400.0
PICTURES = {
    "page-light.png": ("light", 1280, 800),
    "page-dark.png": ("dark", 1280, 800),
    "page-phone.png": ("light", 390, 844),
}


def fill(server: FakeServer) -> None:
    server.add("a solo cello in a large church, slow and warm", age=2 * HOUR, seed=421, favourite=True)
    server.add("80s synthwave with a driving bass", age=DAY, takes=2, seed=77)
    server.add("acoustic folk guitar, hopeful, with hand claps", age=2 * DAY, seed=1204)


def main() -> None:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name, (scheme, width, height) in PICTURES.items():
            with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
                server.speed = 1.8
                fill(server)
                context = chromium.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page = context.new_page()
                page.goto(server.url)
                page.fill("#prompt", "a chill lo-fi beat with vinyl crackle and soft piano")
                page.fill("#duration", "12")
                page.keyboard.press("Control+Enter")
                page.wait_for_selector(".card[data-status=running]")
                page.wait_for_timeout(4000)
                if width < 500:
                    page.evaluate("document.getElementById('list').scrollIntoView()")
                    page.wait_for_timeout(300)
                page.screenshot(path=DOCS / name)
                context.close()
        chromium.close()


if __name__ == "__main__":
    main()
