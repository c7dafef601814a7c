"""What people do on the page, in a real browser."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support.desk import PLANE, SCHEMA, SIZE, DeskFolder, rings
from support.desk_browser import Browser, served
from support.desk_client import PASSWORD, TOKEN, make_users

from medfm_rl.data.images import write_labels
from medfm_rl.feedback import FeedbackStore
from medfm_rl.feedback.entries import CorrectedMask, Entry, Grade, Preference, Verdict
from medfm_rl.service.desk import Desk

pytestmark = pytest.mark.browser

FIRST, SPECK, PAIR = "p0000_4CH", "p0003_4CH", "p0002_4CH"
"""The audit draw, the case whose rule failed, and the first pair: the first three of the queue."""


@pytest.fixture
def address(desk: Desk) -> Iterator[str]:
    with served(desk) as where:
        yield where


@pytest.fixture
def new_browser() -> Iterator[Callable[[], Browser]]:
    opened: list[Browser] = []

    def new() -> Browser:
        opened.append(Browser())
        return opened[-1]

    yield new
    complaints = [complaint for browser in opened for complaint in browser.complaints()]
    for browser in opened:
        browser.close()
    assert not complaints


@pytest.fixture
def browser(new_browser: Callable[[], Browser]) -> Browser:
    return new_browser()


@pytest.fixture
def review(browser: Browser, address: str) -> Browser:
    """The page, with the first case open."""
    browser.open(f"{address}/login?token={TOKEN}")
    browser.wait_for_case(FIRST)
    return browser


def entries_of(folder: DeskFolder) -> list[Entry]:
    with FeedbackStore.open(folder.store) as store:
        return store.history()


def labels_of(folder: DeskFolder, sha256: str) -> np.ndarray:
    with FeedbackStore.open(folder.store) as store:
        return np.asarray(store.mask(sha256).labels)


def test_a_case_goes_from_the_queue_over_an_edit_and_a_choice_to_the_store(review: Browser, folder: DeskFolder) -> None:
    left = int(review.text("#left"))
    review.do("accept")
    review.wait_for_message(f"Saved: {FIRST}, accepted")
    review.wait_for_case(SPECK)
    assert "LV has 2 parts" in review.text("#case-reason")
    assert not review.one("#case-simulated").get_attribute("hidden")

    review.do("eraser")
    review.drag((0.02, 0.22), (0.12, 0.22), (0.12, 0.3), (0.02, 0.3))
    assert review.one("#corrected").is_displayed()
    review.do("undo")
    assert not review.one("#corrected").is_displayed()
    review.do("redo")
    review.do("save")
    review.wait_for_message(f"Saved: {SPECK}, corrected mask")

    review.wait_for_case(PAIR)
    assert [caption.text for caption in review.all("figcaption")] == ["A", "B"]
    assert not review.all("#facts > *")
    review.do("better-a")
    review.wait_for_message("A is better")

    review.wait_for_case("p0005_4CH")
    review.do("correct-b")
    review.drag((0.4, 0.5), (0.6, 0.5), view=1)
    review.do("save")
    review.wait_for_message("corrected mask")

    verdict, corrected, preference, other, better = entries_of(folder)
    assert isinstance(verdict, Verdict)
    assert (verdict.case, verdict.decision, verdict.drawn) == (FIRST, "accept", "audit")
    assert isinstance(corrected, CorrectedMask)
    assert (corrected.case, corrected.changed) == (SPECK, ("LV",))
    before, after = (labels_of(folder, sha) for sha in (corrected.replaces_sha256 or "", corrected.mask_sha256))
    assert set(before[before != after]) == {1}
    assert set(after[before != after]) == {0}
    assert isinstance(preference, Preference)
    assert preference.case == PAIR
    assert isinstance(other, Preference)
    assert isinstance(better, CorrectedMask)
    assert better.replaces_sha256 == other.better_sha256
    review.until(lambda: int(review.text("#left")) == left - 4, "four fewer are left")


def test_the_page_works_under_a_path_of_a_proxy(browser: Browser, desk: Desk, folder: DeskFolder) -> None:
    with served(desk, "/apps/desk") as address:
        browser.open(f"{address}/login?token={TOKEN}")
        browser.wait_for_case(FIRST)
        browser.do("accept")
        browser.wait_for_message(f"Saved: {FIRST}, accepted")
        assert [entry.kind for entry in entries_of(folder)] == ["verdict"]
        names = browser.script("return indexedDB.databases().then((all) => all.map((each) => each.name))")
        assert names == ["medfm-rl-desk/apps/desk"]
        browser.one("a[href$='/learn']").click()
        browser.until(lambda: "What the store holds" in browser.text("main"), "the page Learn")
        browser.click("#sign-out")
        browser.until(lambda: browser.driver.current_url == f"{address}/login", "the form to sign in")


def test_the_keyboard_is_enough(review: Browser, folder: DeskFolder) -> None:
    review.keys("?")
    assert review.one("#help").is_displayed()
    review.keys(Keys.ESCAPE, "h", "o", "c")
    review.keys("the apex is cut off", Keys.ESCAPE)
    review.one("#case-name").send_keys(Keys.SHIFT + "3")
    review.keys("r")
    review.wait_for_message("rejected")
    review.wait_for_case(SPECK)
    review.keys("u")
    review.wait_for_message("Taken back")
    review.wait_for_case(FIRST)
    # The cursor starts in the middle of the picture, inside of the ventricle.
    line = (" ", *[Keys.ARROW_RIGHT] * 3, " ")
    review.keys("2", "q", *["["] * 6, *line)
    assert not review.one("#corrected").is_displayed(), "other structures are kept"
    review.one("#keep-others").send_keys(" ")
    review.one("figure canvas").send_keys("")
    review.keys(*line, Keys.ESCAPE, "s")
    review.wait_for_message("corrected mask")
    review.wait_for_case(SPECK)
    review.keys("t")
    review.wait_for_message("cannot tell")

    rejected, graded, *_, corrected = entries_of(folder)
    assert isinstance(rejected, Verdict)
    assert (rejected.decision, rejected.comment) == ("reject", "the apex is cut off")
    assert isinstance(graded, Grade)
    assert graded.grade == 3
    assert isinstance(corrected, CorrectedMask)
    assert corrected.changed == ("LV", "MYO")


def test_a_decision_waits_for_the_connection_and_is_not_called_saved_before(
    review: Browser, folder: DeskFolder
) -> None:
    review.offline(True)
    review.do("accept")
    review.wait_for_message("cannot be reached")
    assert review.text("#saved") == "1 not saved yet"
    assert "Saved:" not in review.text("#status")
    assert entries_of(folder) == []
    review.offline(False)
    review.until(lambda: review.text("#saved") == "All saved", "the decision is sent")
    review.wait_for_case(SPECK)
    assert [entry.kind for entry in entries_of(folder)] == ["verdict"]


def test_a_decision_waits_for_a_disk_that_is_full(
    review: Browser, folder: DeskFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medfm_rl.data.files._sync", full)
        review.do("accept")
        review.wait_for_message("NOT saved yet")
        assert review.text("#saved") == "1 not saved yet"
        assert entries_of(folder) == []
    review.until(lambda: review.text("#saved") == "All saved", "the decision is sent again")
    assert [entry.kind for entry in entries_of(folder)] == ["verdict"]


def test_a_decision_whose_answer_was_lost_stands_once(review: Browser, folder: DeskFolder) -> None:
    review.script(
        "const real = window.fetch; let lose = 1;"
        "window.fetch = async (path, options) => { const answer = await real(path, options);"
        "if (String(path).endsWith('/decisions') && lose-- > 0) throw new TypeError('lost'); return answer; };"
    )
    review.do("accept")
    review.wait_for_message("NOT saved yet")
    assert len(entries_of(folder)) == 1
    review.until(lambda: review.text("#saved") == "All saved", "the decision is sent again")
    assert len(entries_of(folder)) == 1


def test_an_edit_that_was_not_saved_is_offered_again(review: Browser) -> None:
    review.do("brush")
    review.drag((0.1, 0.5), (0.2, 0.5))
    review.until(lambda: review.script("return indexedDB.databases().then(all => all.length)") == 1, "a database")
    counted = (
        "const done = arguments[0]; const asked = indexedDB.open('medfm-rl-desk');"
        "asked.onsuccess = () => { const all = asked.result.transaction('drafts').objectStore('drafts').count();"
        "all.onsuccess = () => done(all.result); }"
    )
    review.until(lambda: review.driver.execute_async_script(counted) == 1, "the draft is kept")
    review.driver.refresh()
    review.wait_for_case(FIRST)
    review.until(lambda: review.one("#draft").is_displayed(), "the edit is offered")
    review.one("#draft").find_element(By.TAG_NAME, "button").click()
    assert review.one("#corrected").is_displayed()
    review.do("save")
    review.wait_for_message("corrected mask")
    review.until(lambda: review.driver.execute_async_script(counted) == 0, "the draft is gone")


def test_a_browser_that_stores_nothing_says_so_and_still_saves(
    browser: Browser, folder: DeskFolder, address: str
) -> None:
    code = "IDBFactory.prototype.open = () => { throw new Error('storage is off'); };"
    browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": code})
    browser.open(f"{address}/login?token={TOKEN}")
    browser.wait_for_case(FIRST)
    browser.until(lambda: "storage is off" in browser.text("#alerts"), "the page warns")
    browser.do("accept")
    browser.wait_for_message("Saved")
    assert len(entries_of(folder)) == 1


def test_a_mask_corrected_elsewhere_comes_back(review: Browser, folder: DeskFolder, tmp_path: Path) -> None:
    review.script("window.confirm = () => true")
    labels = rings(SIZE, 3)
    write_labels(tmp_path / "corrected.nii.gz", labels, PLANE, SCHEMA)
    review.script("document.querySelector('.files').open = true")
    assert "/download?mask=" in (review.one("#download").get_attribute("href") or "")
    review.one("#upload").send_keys(str(tmp_path / "corrected.nii.gz"))
    review.wait_for_message("corrected mask, uploaded")
    (corrected,) = entries_of(folder)
    assert isinstance(corrected, CorrectedMask)
    assert np.array_equal(labels_of(folder, corrected.mask_sha256), labels)
    (tmp_path / "notes.nii.gz").write_text("no mask at all")
    review.wait_for_case(SPECK)
    review.one("#upload").send_keys(str(tmp_path / "notes.nii.gz"))
    review.until(lambda: "notes.nii.gz" in review.text("#alerts"), "the file is refused by name")
    assert len(entries_of(folder)) == 1


def test_a_case_that_cannot_be_read_can_be_set_aside(browser: Browser, folder: DeskFolder, address: str) -> None:
    image = folder.images / f"{FIRST}.nii.gz"
    hidden = image.rename(folder.store.parent / image.name)
    try:
        browser.open(f"{address}/login?token={TOKEN}")
        browser.until(lambda: f"{FIRST} cannot be shown" in browser.text("#nothing-text"), "the page says so")
        assert not browser.one("#verdict").is_displayed()
        browser.do("cannot-tell")
        browser.wait_for_message("cannot tell")
        browser.wait_for_case(SPECK)
    finally:
        hidden.rename(image)
    assert entries_of(folder) == []


def test_two_people_work_side_by_side(
    desk: Desk, folder: DeskFolder, address: str, new_browser: Callable[[], Browser]
) -> None:
    make_users(desk, ada="administrator", ben="reviewer")
    people = [new_browser(), new_browser()]
    for name, person in zip(("ada", "ben"), people, strict=True):
        person.open(f"{address}/login")
        person.one("[name=name]").send_keys(name)
        person.one("[name=password]").send_keys(PASSWORD)
        person.click("button[type=submit]")
        person.until(lambda person=person: person.all("figure canvas"), "a case opens")
    ada, ben = people
    assert ada.text("#case-name") == FIRST
    assert ben.text("#case-name") == SPECK
    ben.one("#find-state").send_keys("all")
    ben.until(lambda: FIRST in ben.text("#items button"), "the list shows the case that ada works on")
    ben.click("#items button")
    ben.wait_for_message("ada")
    assert ben.text("#case-name") == SPECK
    ada.do("accept")
    ben.do("reject")
    ada.wait_for_message("Saved")
    ben.wait_for_message("Saved")
    made = [entry for entry in entries_of(folder) if isinstance(entry, Verdict)]
    assert {(entry.reviewer, entry.case, entry.decision) for entry in made} == {
        ("ada", FIRST, "accept"),
        ("ben", SPECK, "reject"),
    }


def test_axe_finds_nothing_serious(review: Browser, address: str, axe: Path) -> None:
    for name in (FIRST, "p0005_4CH", "v01_short", "c01_loop"):
        item = next(one for one in review.all("#items button") if name in one.text)
        if item.get_attribute("aria-current") is None:
            item.click()
        review.wait_for_case(name)
        assert review.serious_faults(axe) == []
    review.do("help")
    assert review.serious_faults(axe) == []
    review.open(f"{address}/learn")
    review.until(lambda: review.text("#reviewer"), "the page knows who it is")
    assert review.serious_faults(axe) == []
    review.driver.delete_all_cookies()
    review.open(f"{address}/login")
    assert review.serious_faults(axe) == []


@pytest.mark.parametrize(("width", "height", "scale"), [(1440, 900, 1), (820, 1180, 2), (720, 450, 2), (390, 800, 3)])
def test_nothing_is_cut_off_at_any_width(review: Browser, width: int, height: int, scale: int) -> None:
    review.resize(width, height, scale)
    review.until(lambda: review.script("return document.documentElement.scrollWidth <= innerWidth"), "the page fits")
    canvas = review.one("figure canvas")
    assert min(canvas.size["width"], canvas.size["height"]) >= 200
    review.do("accept")
    review.wait_for_message("Saved")


@pytest.fixture(scope="session")
def axe() -> Path:
    path = Path(__file__).parents[2] / "web-checks" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("axe-core is not installed; `make page` installs it")
    return path
