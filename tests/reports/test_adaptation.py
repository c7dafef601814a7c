from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as matplotlib_image
from rich.console import Console
from rich.table import Table

from medfm_rl.metrics.bootstrap import PairedDifference
from medfm_rl.metrics.calibration import reliability_curve
from medfm_rl.metrics.scores import StructureSummary
from medfm_rl.reports.adaptation import ChoiceRow, ReportCase, ReportData, write_report
from medfm_rl.reports.tables import TableRow, comparison_table, summary_table, verdict
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
ROWS = [
    TableRow("LV", 0.81, 0.86, PairedDifference(0.05, 0.02, 0.08, 1.0, 25), "9.1 mm", "6.2 mm"),
    TableRow("MYO", 0.72, 0.71, PairedDifference(-0.01, -0.03, 0.01, 0.2, 25), "12.0 mm", "undefined"),
    TableRow("mean", 0.765, 0.785, PairedDifference(0.02, 0.012, 0.031, 1.0, 25), "10.5 mm", "6.2 mm"),
]


def make_case(name: str = "p01_4CH_ED", truth: bool = True, side: int = 32) -> ReportCase:
    rng = np.random.default_rng(list(name.encode()))
    labels = np.zeros((side, side), np.uint8)
    labels[8:24, 6:26] = 2
    labels[10:22, 8:24] = 1
    labels[24:30, 8:20] = 3
    image = rng.gamma(2.0, 30.0, labels.shape).astype(np.float32)
    reward_map = rng.uniform(size=labels.shape).astype(np.float32)
    moved = np.roll(labels, 2, axis=1)
    scores = (0.712, 0.834) if truth else (None, None)
    return ReportCase(name, image, moved, labels, reward_map, labels if truth else None, *scores)


def make_data(**changes: object) -> ReportData:
    rng = np.random.default_rng(1)
    probabilities = rng.uniform(size=5000)
    curve = reliability_curve(probabilities, rng.uniform(size=5000) < probabilities)
    steps = list(range(1, 41))
    values: dict[str, object] = {
        "title": "Adaptation report",
        "simulated": False,
        "schema": SCHEMA,
        "rows": ROWS,
        "validity": (0.4, 0.9),
        "paired_dice": [(0.70, 0.81), (0.83, 0.80), (0.75, 0.75)],
        "cases": [make_case("p01_4CH_ED"), make_case("p02_2CH_ES")],
        "curves": {
            title: {f"iteration {i}": (steps, np.sqrt(steps).tolist()) for i in (1, 2)} for title in ("reward", "KL")
        },
        "reliability": dict.fromkeys(("judge", "member-0", "member-1"), (curve, 0.09, curve, 0.01)),
        "chosen": "Without labels, the judge chose iteration-00/candidates/00040 among 5 candidates.",
        "choice": (
            ChoiceRow("source", False, {"rules": (0.5, False, True), "held-out reward": (0.8123, True, False)}),
            ChoiceRow("fine-tuning", True, {"rules": (0.9, False, False), "held-out reward": (0.8, False, False)}),
        ),
        "provenance": {"adapted segmenter (SHA-256)": "0f" * 32, "seed": "0"},
    }
    return ReportData(**{**values, **changes})  # type: ignore[arg-type]


UNLABELLED = {
    "rows": [],
    "validity": None,
    "paired_dice": [],
    "choice": (),
    "cases": [make_case(truth=False)],
}
BARE = {**UNLABELLED, "cases": [], "curves": {}, "reliability": {}}


class Page(HTMLParser):
    """What a browser would fetch, and the pictures and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str | None] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                self.sources.append(value or "")
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))

    def handle_data(self, data: str) -> None:
        self.text += data


def write(folder: Path, **changes: object) -> Page:
    write_report(folder / "report.html", make_data(**changes))
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it, of simulated data."""
    folder = tmp_path_factory.mktemp("report")
    write(folder, simulated=True)
    return folder / "report.html"


def pictures(page: Page) -> list[np.ndarray]:
    return [
        matplotlib_image.imread(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        for source in page.sources
    ]


def printed(table: Table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_page_fetches_nothing(report: Path) -> None:
    page = Page(report)
    # Paired plot, two cases, two learning curves, reliability.
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(|//[a-z]", re.sub(r"data:image/png;base64,[^\"]*", "", page.source))
    assert all(picture.ndim == 3 and min(picture.shape[:2]) > 100 for picture in pictures(page))


def test_every_picture_has_a_text_of_its_own(report: Path) -> None:
    alts = Page(report).alts
    assert all(alts)
    assert len(set(alts)) == len(alts) == 6
    assert sum("p02_2CH_ES" in str(alt) for alt in alts) == 1


def test_names_are_escaped(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>"><b>'
    page = write(
        tmp_path,
        title=nasty,
        cases=[make_case(nasty)],
        rows=[dataclasses.replace(ROWS[-1], structure=nasty)],
        provenance={nasty: nasty},
        chosen=nasty,
        curves={nasty: {"iteration 1": ([1, 2], [0.1, 0.2])}},
    )
    assert not {"script", "b"} & set(page.tags)
    # Title, heading, choice, structure, caption of the case and both sides of the provenance.
    assert page.text.count(nasty) == 7
    assert sum(nasty in str(alt) for alt in page.alts) == 2


def test_simulated_data_is_called_simulated_and_real_data_is_not(report: Path, tmp_path: Path) -> None:
    simulated, real = Page(report).text, write(tmp_path, **{**BARE, "cases": [make_case()]}).text
    assert "SIMULATED DATA" in simulated
    assert simulated.count("(simulated)") == 2
    assert "simulat" not in real.lower()


def test_pictures_of_simulated_cases_say_so_themselves(tmp_path: Path) -> None:
    """A picture that is copied out of the page still tells."""
    alone = {**BARE, "cases": [make_case()]}
    marked, plain = (pictures(write(tmp_path, **alone, simulated=simulated))[0] for simulated in (True, False))
    # The panels are the same; the words in the legend below are more ink.
    assert (marked[-30:] < 0.5).sum() > (plain[-30:] < 0.5).sum() + 50


def test_without_ground_truth_the_page_claims_no_gain(tmp_path: Path) -> None:
    page = write(tmp_path, **UNLABELLED)
    assert "nothing is known about the gain" in page.text
    assert "Dice" not in page.text
    assert "worst first" not in page.text
    assert not any("ground truth" in str(alt) for alt in page.alts)
    assert "table" not in page.tags


def test_a_run_without_curves_cases_and_networks_still_has_a_page(tmp_path: Path) -> None:
    page = write(tmp_path, **BARE)
    assert page.sources == []
    assert "iteration-00/candidates/00040" in page.text
    assert "0f" * 32 in page.text
    for heading in ("Learning", "Case", "reward mean"):
        assert heading not in page.text


def test_the_table_shows_every_number(report: Path) -> None:
    source = Page(report).source
    row = re.search(r"<tr><td>MYO</td>(.*?)</tr>", source)
    assert row
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert cells == ["0.720", "0.710", "-0.010", "-0.030 to +0.010", "12.0 mm", "undefined"]
    assert "40 % before, 90 % after" in source


def test_only_the_cases_to_show_are_named(tmp_path: Path) -> None:
    """Names can identify patients: the paired plot has those of all cases as points alone."""
    page = write(tmp_path, **{**BARE, "cases": [make_case("p01_4CH_ED")], "paired_dice": [(0.5, 0.6)] * 30})
    assert set(re.findall(r"p\d\d_\w+", page.text + " ".join(map(str, page.alts)))) == {"p01_4CH_ED"}


def test_every_iteration_has_a_curve(tmp_path: Path) -> None:
    """Also beyond the number of colours: the sixth curve changes the picture."""

    def rising(count: int) -> dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]]:
        return {"reward": {f"iteration {i}": ([1, 2, 3], [i, i + 1, i + 2]) for i in range(count)}}

    def coloured(page: Page) -> int:
        picture = pictures(page)[0][..., :3]
        return int((np.ptp(picture, axis=2) > 0.2).sum())

    five, six = (write(tmp_path, **{**BARE, "curves": rising(count)}) for count in (5, 6))
    assert coloured(six) > coloured(five)


def test_more_structures_than_colours_are_drawn(tmp_path: Path) -> None:
    schema = LabelSchema.from_structures({f"structure {i}": i for i in range(1, 25)})
    labels = np.arange(25, dtype=np.uint8).repeat(25).reshape(25, 25)
    case = dataclasses.replace(make_case(side=32), image=np.eye(25, dtype=np.float32), before=labels, after=labels)
    case = dataclasses.replace(case, ground_truth=labels, reward_map=np.ones((25, 25), np.float32))
    picture = pictures(write(tmp_path, **{**BARE, "schema": schema, "cases": [case]}))[0]
    # A legend in one line would be several times as wide as the panels.
    assert picture.shape[1] < 5.5 * picture.shape[0]


def test_empty_masks_and_a_flat_image_are_drawn(tmp_path: Path) -> None:
    nothing = np.zeros((16, 16), np.uint8)
    flat = np.zeros((16, 16), np.float32)
    case = ReportCase("empty", flat, nothing, nothing, flat, nothing, 1.0, 1.0)
    assert len(write(tmp_path, **{**BARE, "cases": [case]}).sources) == 1


def test_writing_replaces_a_report_whole(tmp_path: Path) -> None:
    write(tmp_path, **BARE, title="The older one")
    page = write(tmp_path, **BARE, title="The newer one")
    assert "The newer one" in page.text
    assert "The older one" not in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.001, 0.02, "is better than"),
        (-0.02, -0.001, "is worse than"),
        (-0.01, 0.02, "No difference could be shown"),
        (0.0, 0.02, "No difference could be shown"),
        (-0.02, 0.0, "No difference could be shown"),
    ],
)
def test_the_verdict_follows_the_interval(low: float, high: float, words: str) -> None:
    mean = (low + high) / 2
    row = TableRow("mean", 0.8, 0.8 + mean, PairedDifference(mean, low, high, 0.5, 12), "1 px", "1 px")
    sentence = verdict([ROWS[0], row])
    assert words in sentence
    assert f"{100 * mean:+.1f} Dice points" in sentence
    assert "12 patients" in sentence


def test_the_verdict_without_rows_says_that_nothing_is_known() -> None:
    assert "nothing is known" in verdict([])


def test_tables_of_the_terminal_hold_every_row_and_take_names_as_they_are() -> None:
    """Square brackets are rich's markup, and part of many paths."""
    rows = [dataclasses.replace(ROWS[0], structure="LV [bold]"), *ROWS[1:]]
    text = printed(comparison_table(rows, "scores of runs[a]/x"))
    for expected in ("scores of runs[a]/x", "LV [bold]", "+0.050 [+0.020, +0.080]", "undefined", "12.0 mm"):
        assert expected in text


def test_the_table_of_one_model_gives_units_and_leaves_out_what_is_unknown() -> None:
    nan = float("nan")
    rows = [
        StructureSummary("LV", 10, 0.9, 0.8, 3.14159, 1.5, "px", 1, 0.755),
        StructureSummary("x[red]", 10, 0.5, 0.1, nan, nan, "mixed", 10, 0.0),
    ]
    text = printed(summary_table(rows, "model[b] on data"))
    first, second = (next(line for line in text.splitlines() if name in line) for name in ("LV", "x[red]"))
    assert "model[b] on data" in text
    for expected in ("0.900", "0.800", "3.14 px", "1.50 px", "76 %"):
        assert expected in first
    assert "nan" not in second
    assert second.count(" - ") == 2


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is not None:
        return found
    message = "no chromium on this machine; `apt-get install chromium` brings one"
    if os.environ.get("CI"):
        # A check that is skipped where it counts would never fail.
        pytest.fail(message)
    pytest.skip(message)


def browse(chromium: str, page: Path, *options: str) -> str:
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [*command, profile, *options, page.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    ).stdout


# Frames have a width of their own; the windows of a headless browser have no less than 500 pixels.
MEASURE = """
<body style="margin:0"><iframe id="frame" src="PAGE" style="width:WIDTHpx;height:900px;border:0"></iframe>
<script>
window.onload = () => {
  const view = document.getElementById("frame").contentDocument, root = view.documentElement;
  const images = [...view.images], width = element => element.getBoundingClientRect().width;
  const blocks = [...view.querySelectorAll("figure, table, p, dl, h2")];
  const result = [root.clientWidth, root.scrollWidth, images.length,
    images.filter(image => image.complete && image.naturalWidth > 0).length,
    Math.round(Math.min(...[...view.querySelectorAll(".wide img")].map(width))),
    Math.ceil(Math.max(...blocks.map(block => block.getBoundingClientRect().right))),
    Math.max(...blocks.map(block => block.scrollWidth - block.clientWidth))];
  document.body.innerHTML = "MEASURED " + result.join(" ") + " END";
};
</script></body>
"""


def measure(chromium: str, page: Path, width: int) -> list[int]:
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(MEASURE.replace("WIDTH", str(width)).replace("PAGE", page.name))
    dom = browse(chromium, frame, "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    measured = re.search(r"MEASURED ([\d ]+) END", dom)
    assert measured, dom[-500:]
    return list(map(int, measured[1].split()))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_the_page_within_the_width_of_the_window(chromium: str, report: Path, width: int) -> None:
    shown, needed, images, loaded, panels, right, hidden = measure(chromium, report, width)
    assert shown == width
    assert needed <= width
    assert right <= width
    assert images == loaded == 6
    # Rows of panels stay large enough to see a mask on: on a narrow screen they scroll by themselves.
    assert panels >= 700
    assert hidden == 0 or width < 500


@pytest.mark.browser
def test_nothing_is_cut_off_on_paper(chromium: str, report: Path) -> None:
    """A4 between margins of 1 cm is 718 pixels wide; paper does not scroll."""
    paper = report.with_name("paper.html")
    source = report.read_text(encoding="utf-8").replace("@media screen", "@media speech")
    paper.write_text(source.replace("@media print", "@media all"), encoding="utf-8")
    _, needed, _, _, panels, right, hidden = measure(chromium, paper, 718)
    assert needed <= 718
    assert right <= 718
    assert hidden == 0
    assert panels >= 650


@pytest.mark.browser
def test_a_browser_prints_the_page_on_paper(chromium: str, report: Path) -> None:
    target = report.with_suffix(".pdf")
    browse(chromium, report, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    pdf = target.read_bytes()
    assert pdf.startswith(b"%PDF")
    # Every picture is in it, on a few pages.
    assert len(re.findall(rb"/Subtype\s*/Image", pdf)) >= 6
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6


@pytest.mark.browser
def test_a_screenshot_has_the_banner_and_the_pictures_in_it(chromium: str, report: Path) -> None:
    shot = report.with_suffix(".png")
    browse(chromium, report, f"--screenshot={shot}", "--window-size=1200,2000")
    picture = matplotlib_image.imread(shot)[..., :3]
    assert picture.shape[:2] == (2000, 1200)
    banner = np.abs(picture - np.array([0xFF, 0xF3, 0xCD]) / 255).max(axis=2) < 0.01
    assert banner[:100].mean() > 0.2
    assert not banner[200:].any()
    # The margins of the page stay white; in between there are colours of the masks.
    assert (picture[:, :10] == 1).all()
    assert (np.ptp(picture[300:], axis=2) > 0.2).mean() > 0.01
