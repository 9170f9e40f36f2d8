"""Debian's Chromium without a window, as a fixture. Nothing of it is mocked: pages are read from disk."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
)
PROGRAMS = (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile; without one the test is skipped, or fails where W2S_REQUIRE_BROWSER is set."""
    binary, driver = (next(filter(None, map(shutil.which, names)), None) for names in PROGRAMS)
    if binary is None or driver is None:
        message = "needs Chromium and its driver: apt-get install -y chromium chromium-driver"
        (pytest.fail if os.environ.get("W2S_REQUIRE_BROWSER") else pytest.skip)(message)
    options = Options()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def open_page(browser: webdriver.Chrome, page: Path, scheme: str = "light") -> None:
    """Open a file with the light or dark colour scheme of the system, and wait until it is seen.

    Chromium drops keys that are pressed before the first paint, which a busy machine can delay.
    """
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")  # forget what earlier pages said
    address = page.resolve().as_uri()
    browser.get(address)
    WebDriverWait(browser, 60).until(  # on a busy machine the page before may still be there
        lambda it: (
            it.execute_script(
                "return [location.href, document.readyState, performance.getEntriesByType('paint').length > 0]"
            )
            == [address, "complete", True]
        )
    )
