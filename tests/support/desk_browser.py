"""A desk that is served in a thread, and a headless browser that looks at it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.desk.page import serious_faults
from medfm_rl.service.app import create_app
from medfm_rl.service.desk import Desk

WAIT_S = 30


@contextmanager
def served(desk: Desk, under: str = "") -> Iterator[str]:
    """Serves a desk on loopback, perhaps under a path; gives its address."""
    with served_app(create_app(desk, under=under)) as address:
        yield f"{address}{under}"


@contextmanager
def served_app(app: FastAPI) -> Iterator[str]:
    """Serves an application on loopback; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + WAIT_S
    while not server.started:
        assert time.monotonic() < end, "the service does not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(WAIT_S)


def programs() -> tuple[str, str]:
    """The browser and its driver; without them a test is skipped, and fails in CI."""
    found = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if found[0] and found[1]:
        return found[0], found[1]
    message = "no chromium with chromedriver on this machine; `apt-get install chromium chromium-driver` brings both"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Browser:
    """One person's browser, with a profile of its own."""

    def __init__(self, width: int = 1440, height: int = 900, scale: float = 1) -> None:
        chromium, driver = programs()
        options = Options()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_argument("--force-prefers-reduced-motion")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.resize(width, height, scale)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Gives the page another size; `scale` 2 on half the width is the page at 200 %."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, address: str) -> None:
        self.driver.get(address)

    def close(self) -> None:
        self.driver.quit()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits until something is so."""
        return WebDriverWait(self.driver, WAIT_S, 0.05).until(lambda _: condition(), f"never: {what}")

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of an element at this moment, whether it is seen or not."""
        found = self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        return " ".join(str(found).split())

    def click(self, selector: str) -> None:
        """Clicks on what a selector finds, once it is there; what is drawn anew meanwhile is looked for again."""

        def clicked() -> bool:
            try:
                found = self.one(selector)
                if not (found.is_displayed() and found.is_enabled()):
                    return False
                found.click()
            except StaleElementReferenceException:
                return False
            return True

        self.until(clicked, f"{selector} is there")

    def do(self, action: str) -> None:
        """Presses the button of an action, the one that is seen."""
        selector = f"button[data-action='{action}']"
        seen = self.until(
            lambda: [one for one in self.all(selector) if one.is_displayed() and one.is_enabled()], action
        )
        seen[0].click()

    def keys(self, *keys: str) -> None:
        """Presses keys wherever the focus is, one after the other."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait_for_case(self, name: str) -> None:
        """Waits until a case is open, and drawn."""
        self.until(lambda: self.text("#case-name") == name and bool(self.all("figure canvas")), f"case {name} opens")
        self.until(lambda: not self.one("#arriving").is_displayed(), f"case {name} is here")

    def wait_for_message(self, part: str) -> None:
        self.until(lambda: part in self.text("#status") + self.text("#alerts"), f"a message with {part!r}")

    def drag(self, *shares: tuple[float, float], view: int = 0) -> None:
        """Draws on a picture, through places that are given as shares of its width and height."""
        canvas = self.all("figure canvas")[view]
        width, height = canvas.size["width"], canvas.size["height"]
        places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in shares]
        chain = ActionChains(self.driver, duration=20).move_to_element_with_offset(canvas, *places[0]).click_and_hold()
        for x, y in places[1:]:
            chain = chain.move_to_element_with_offset(canvas, x, y)
        chain.release().perform()

    def offline(self, off: bool) -> None:
        """Cuts the connection, or gives it back."""
        self.driver.execute_cdp_cmd("Network.enable", {})
        limits = {"offline": off, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", limits)

    def complaints(self) -> list[str]:
        """What the page's scripts and its content security policy complained of."""
        lines = [str(line["message"]) for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]
        return [line for line in lines if "Failed to load resource" not in line]

    def serious_faults(self, axe: Path) -> list[str]:
        """What axe-core finds serious or critical on the page as it is."""
        return serious_faults(self.driver, axe)
