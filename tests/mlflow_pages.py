"""A real MLflow server and a real browser, shared by the tests that need them."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
# every other host does not exist: what is shown came from the server on this machine
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def chromium(profile: Path, size: tuple[int, int] = (1300, 1400)) -> Iterator[Any]:
    """Chromium with an empty profile and no network but this machine."""
    if not (shutil.which(CHROMIUM) and shutil.which(DRIVER)):
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, "disable-sync", f"window-size={size[0]},{size[1]}", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.add_argument(OFFLINE)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What it returns once that is true."""
    last, end = what(), time.monotonic() + seconds
    while not last and time.monotonic() < end:
        time.sleep(0.2)
        last = what()
    assert last, "it did not come about"
    return last


def keep(browser: Any, name: str) -> None:
    """A screenshot as an artifact of the tests: in the folder that AUTOGREEN_SCREENSHOTS names, if it does."""
    if folder := os.environ.get("AUTOGREEN_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))
