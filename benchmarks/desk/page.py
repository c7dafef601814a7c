"""The page of the desk in Chromium: how many clicks a case takes to accept, and what axe-core finds serious.

axe-core comes with `make page`; Chromium and its driver from the system (`apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.desk.folder import PASSWORD, Service, make_place

_CASES = 20
_PATIENCE_S = 30
_AXE = Path(__file__).parents[2] / "web-checks" / "node_modules" / "axe-core" / "axe.min.js"
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def look(folder: Path, cases_to_accept: int) -> dict[str, Any]:
    """Logs in, accepts cases by mouse, and has axe-core look at every page.

    Args:
        folder: For its cases.
        cases_to_accept: How many.

    Returns:
        `clicks`: of each accepted case; `serious`: by page, what axe-core finds serious or critical.
    """
    place = make_place(folder, _CASES, 0)
    service = Service(place)
    service.start()
    try:
        with _chromium() as driver:
            driver.get(f"{service.address}/login")
            serious = {"login": serious_faults(driver)}
            driver.find_element(By.NAME, "name").send_keys("chief")
            driver.find_element(By.NAME, "password").send_keys(PASSWORD)
            driver.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
            clicks = [_accept(driver) for _ in range(cases_to_accept)]
            serious["queue"] = serious_faults(driver)
            _button(driver, "help").click()
            serious["help"] = serious_faults(driver)
            driver.get(f"{service.address}/learn")
            _wait(driver, "return document.querySelector('#reviewer')?.textContent")
            serious["learn"] = serious_faults(driver)
    finally:
        service.kill()
    return {"clicks": clicks, "serious": serious}


def _accept(driver: webdriver.Chrome) -> int:
    """Accepts the case that is open; the clicks until the next one was."""
    _wait(driver, "return document.querySelector('figure canvas') && document.querySelector('#case-name').textContent")
    name = driver.find_element(By.ID, "case-name").text
    driver.execute_script("window.clicks ?? addEventListener('click', () => window.clicks++, true); window.clicks = 0")
    _button(driver, "accept").click()
    _wait(
        driver,
        "return document.querySelector('figure canvas') && document.querySelector('#case-name').textContent !== "
        "arguments[0]",
        name,
    )
    return int(driver.execute_script("return window.clicks"))


def _button(driver: webdriver.Chrome, action: str) -> Any:
    """The button of an action, the one that is seen."""

    def seen(_: object) -> Any:
        found = driver.find_elements(By.CSS_SELECTOR, f"button[data-action='{action}']")
        return next((one for one in found if one.is_displayed() and one.is_enabled()), None)

    return WebDriverWait(driver, _PATIENCE_S, 0.05).until(seen)


def _wait(driver: webdriver.Chrome, code: str, *arguments: Any) -> None:
    WebDriverWait(driver, _PATIENCE_S, 0.05).until(lambda _: driver.execute_script(code, *arguments), f"never: {code}")


def serious_faults(driver: webdriver.Chrome, axe: Path = _AXE) -> list[str]:
    """What axe-core, a script, finds serious or critical on the page as it is."""
    if not axe.exists():
        raise FileNotFoundError(f"{axe}: axe-core is not installed; `make page` installs it")
    driver.execute_script(axe.read_text())
    found = driver.execute_async_script(
        "const done = arguments[1]; axe.run({runOnly: arguments[0]}).then(result => done(result.violations))", _RULES
    )
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@contextmanager
def _chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_window_size(1440, 900)
        yield driver
    finally:
        driver.quit()
