from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label as label_parts

from medfm_rl.errors import ConfigError
from medfm_rl.metrics.validity import Anatomy, RuleResult, load_anatomy
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"a": 1, "b": 2})
ECHO = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
LUNG = LabelSchema.from_structures({"lung": 1})

MakeAnatomy = Callable[..., Anatomy]


@pytest.fixture
def anatomy(tmp_path: Path) -> MakeAnatomy:
    def make(*rules: str, schema: LabelSchema = SCHEMA) -> Anatomy:
        path = tmp_path / "mine.yaml"
        path.write_text("rules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules))
        return load_anatomy(str(path), schema)

    return make


def draw(*rows: str) -> np.ndarray:
    """A label map from letters: `.` is background, `a` is 1, `b` is 2."""
    return np.array([[".ab".index(letter) for letter in row] for row in rows], np.uint8)


def only(anatomy: Anatomy, labels: np.ndarray) -> RuleResult:
    (result,) = anatomy.check(labels)
    assert anatomy.is_valid(labels) == result.passed
    return result


RING = draw(".....", ".aaa.", ".a.a.", ".aaa.", ".....")
TWO_PARTS = draw("aa...", "aa...", "...aa", "...aa")


@pytest.mark.parametrize(
    ("rule", "labels", "measured", "passed"),
    [
        ("kind: present, structure: a", draw("..", ".a"), 1, True),
        ("kind: components, structure: a, most: 1", draw("aa.", ".a.", ".aa"), 1, True),
        ("kind: components, structure: a, most: 1", TWO_PARTS, 2, False),
        ("kind: components, structure: a, most: 2", TWO_PARTS, 2, True),
        # Parts hang together across faces, not corners.
        ("kind: components, structure: a, most: 1", draw("a.", ".a"), 2, False),
        # 1 of 9 pixels of the filled ring is hole.
        ("kind: holes, structure: a, most: 0.12", RING, 1 / 9, True),
        ("kind: holes, structure: a, most: 0.11", RING, 1 / 9, False),
        # A bay is no hole.
        ("kind: holes, structure: a, most: 0", draw("aaa", "a.a"), 0, True),
        # The pixel has 4 neighbours; one is b.
        ("kind: contact, structure: a, other: b, least: 0.25", draw("...", ".ab", "..."), 0.25, True),
        ("kind: contact, structure: a, other: b, least: 0.3", draw("...", ".ab", "..."), 0.25, False),
        ("kind: contact, structure: a, other: b, most: 0.2", draw("...", ".ab", "..."), 0.25, False),
        # At the border of the image there are only two neighbours.
        ("kind: contact, structure: a, other: b, least: 0.5", draw("ab", ".."), 0.5, True),
        ("kind: contact, structure: a, other: background, most: 0.75", draw("...", ".ab", "..."), 0.75, True),
        ("kind: contact, structure: a, other: background, most: 0.7", draw("...", ".ab", "..."), 0.75, False),
        ("kind: size_ratio, structure: a, other: b, least: 0.5, most: 2", draw("abbb"), 1 / 3, False),
        ("kind: size_ratio, structure: a, other: b, least: 0.3, most: 2", draw("abbb"), 1 / 3, True),
        ("kind: size_ratio, structure: a, other: b, least: 0.3, most: 2", draw("aaab"), 3, False),
        ("kind: above, structure: a, other: b", draw("a..", "..b"), 1, True),
        ("kind: above, structure: a, other: b", draw("b..", "..a"), -1, False),
        ("kind: above, structure: a, other: b", draw("a.b"), 0, False),
    ],
)
def test_a_rule_by_hand(anatomy: MakeAnatomy, rule: str, labels: np.ndarray, measured: float, passed: bool) -> None:
    result = only(anatomy(rule), labels)
    assert result.measured == pytest.approx(measured)
    assert result.passed is passed
    assert f"kind: {result.rule}," in rule
    assert result.structure == "a"


def test_each_spells_a_rule_out_for_all_structures(anatomy: MakeAnatomy) -> None:
    bound = anatomy("kind: components, structure: each, most: 1")
    assert [(result.structure, result.passed) for result in bound.check(draw("a.a", "bb."))] == [
        ("a", False),
        ("b", True),
    ]


def test_a_speck_does_not_count_but_many_do(anatomy: MakeAnatomy) -> None:
    bound = anatomy("kind: components, structure: a, most: 1, speck: 0.02")
    labels = np.zeros((20, 20), np.uint8)
    labels[:10, :10] = 1
    labels[15, 0] = 1
    assert only(bound, labels).measured == 1
    # Each of the four specks is 1 / 104 of the structure: two are left out, with a third it would be more than 2 %.
    labels[15, 2:8:2] = 1
    result = only(bound, labels)
    assert not result.passed
    assert result.measured == 1 + 2
    strict = anatomy("kind: components, structure: a, most: 1, speck: 0")
    assert only(strict, labels).measured == 1 + 4


@settings(deadline=None, max_examples=25)
@given(labels=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=st.integers(0, 1)))
def test_parts_are_counted_as_scikit_image_counts_them(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray
) -> None:
    labels[(0,) * labels.ndim] = 1
    path = tmp_path_factory.mktemp("rules") / "mine.yaml"
    path.write_text("rules: [{kind: components, structure: lung, most: 1, speck: 0}]")
    parts = label_parts(labels, connectivity=1).max()
    assert only(load_anatomy(str(path), LUNG), labels).measured == parts


@pytest.mark.parametrize(
    "rule",
    [
        "kind: present, structure: a",
        "kind: components, structure: a, most: 1",
        "kind: holes, structure: a, most: 1",
        "kind: contact, structure: a, other: b",
        "kind: size_ratio, structure: a, other: b, least: 0, most: 9",
        "kind: size_ratio, structure: b, other: a, least: 0, most: 9",
        "kind: above, structure: b, other: a",
        "kind: contact, structure: b, other: a",
    ],
)
def test_a_missing_structure_meets_no_rule_and_is_told_apart_from_a_measured_failure(
    anatomy: MakeAnatomy, rule: str
) -> None:
    result = only(anatomy(rule), draw("...", ".bb"))
    assert result.measured is None
    assert not result.passed


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((4, 4), 3, np.uint8), "0 to 2, the label map has 3 to 3"),
        (np.full((4, 4), -1), "0 to 2, the label map has -1 to -1"),
        (np.full((4, 4), np.nan), "class indices, got shape .* of float64"),
        (np.ones((4, 4), np.float32), "class indices, got shape .* of float32"),
        (np.ones(4, np.uint8), r"2-D or 3-D array .* shape \(4,\)"),
        (np.ones((1, 1, 4, 4), np.uint8), "2-D or 3-D"),
        (np.ones((0, 4), np.uint8), r"shape \(0, 4\)"),
    ],
    ids=["stranger", "negative", "nan", "real", "1-D", "4-D", "no pixels"],
)
def test_a_check_that_cannot_run_raises_and_is_neither_valid_nor_invalid(
    anatomy: MakeAnatomy, labels: np.ndarray, message: str
) -> None:
    for bound in (anatomy("kind: present, structure: a"), load_anatomy("generic", SCHEMA)):
        for method in (bound.check, bound.is_valid):
            with pytest.raises(ValueError, match=message):
                method(labels)


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ("rules: [{kind: roundness, structure: a}]", ["roundness", "components"]),
        ("rules: [{kind: present, structure: heart}]", ["'heart'", "background, a, b", "generic"]),
        ("rules: [{kind: above, structure: a, other: heart}]", ["'heart'", "background, a, b"]),
        ("rules: [{kind: present, structure: a, colour: red}]", ["colour"]),
        ("rules: [{kind: components, structure: a}]", ["most"]),
        ("rules: [{kind: components, structure: a, most: many}]", ["most", "many"]),
        ("rules: [{kind: holes, structure: a, most: 2}]", ["most", "less than or equal to 1"]),
        ("rules: [{kind: size_ratio, structure: a, other: b, least: 3, most: 2}]", ["least (3) is above most (2)"]),
        ("rules: [{kind: contact, structure: a, other: b, least: 0.5, most: 0.1}]", ["least (0.5) is above most"]),
        ("rule: [{kind: present, structure: a}]", ["rules", "Field required"]),
        ("rules: []\nspecks: 3", ["specks"]),
        ("rules:", ["rules", "valid list"]),
        ("- 1", ["rules: [...]"]),
        ("", ["rules: [...]"]),
        ("rules: [", ["rules: [...]"]),
    ],
)
def test_a_wrong_profile_is_refused_and_says_where(tmp_path: Path, content: str, mentions: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_anatomy(str(path), SCHEMA)
    for mention in [str(path), *mentions]:
        assert mention in str(caught.value)


def test_a_profile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not a valid profile"):
        load_anatomy(str(path), SCHEMA)


def test_an_unknown_profile_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"'liver'.*echo_apical, generic, lungs"):
        load_anatomy("liver", SCHEMA)


@pytest.mark.parametrize(
    ("name", "schema"), [("generic", ECHO), ("generic", LUNG), ("echo_apical", ECHO), ("lungs", LUNG)]
)
def test_the_packaged_profiles_load_and_refuse_an_empty_mask(name: str, schema: LabelSchema) -> None:
    bound = load_anatomy(name, schema)
    assert bound.name == name
    assert {result.structure for result in bound.check(np.zeros((8, 8), np.uint8))} == set(schema.structures)
    assert not bound.is_valid(np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(("name", "missing"), [("lungs", "'lung'"), ("echo_apical", "'LV'")])
def test_a_profile_of_another_anatomy_is_refused(name: str, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        load_anatomy(name, SCHEMA)


def drawn_heart() -> np.ndarray:
    """The ventricle as a box in its wall, which is open towards the atrium below."""
    labels = np.zeros((40, 40), np.uint8)
    labels[4:24, 10:30] = 2
    labels[8:24, 14:26] = 1
    labels[24:34, 14:26] = 3
    return labels


def broken_hearts() -> dict[str, np.ndarray]:
    hearts = {name: drawn_heart() for name in ("hole", "speckled wall", "open wall", "far atrium", "thin")}
    hearts["hole"][12:15, 18:20] = 0
    hearts["speckled wall"][36:39, 2:8] = 2
    hearts["open wall"][8:20, 10:14] = 0
    hearts["far atrium"][24:28] = 0
    # A wall of one pixel: 46 against the 192 of the ventricle.
    hearts["thin"][hearts["thin"] == 2] = 0
    hearts["thin"][7, 13:27] = hearts["thin"][8:24, 13] = hearts["thin"][8:24, 26] = 2
    hearts["upside down"] = drawn_heart()[::-1]
    return hearts


def test_a_drawn_heart_is_valid() -> None:
    assert load_anatomy("echo_apical", ECHO).is_valid(drawn_heart())


@pytest.mark.parametrize(
    ("broken", "violated"),
    [
        ("hole", {("holes", "LV")}),
        ("speckled wall", {("components", "MYO")}),
        # The wall is in two parts, and the ventricle touches the background.
        ("open wall", {("contact", "LV"), ("components", "MYO")}),
        ("far atrium", {("contact", "LA"), ("contact", "LV")}),
        ("thin", {("size_ratio", "MYO")}),
        ("upside down", {("above", "LV")}),
    ],
)
def test_a_broken_heart_fails_the_rules_that_it_breaks(broken: str, violated: set[tuple[str, str]]) -> None:
    results = load_anatomy("echo_apical", ECHO).check(broken_hearts()[broken])
    assert {(result.rule, result.structure) for result in results if not result.passed} == violated


def test_without_an_atrium_no_rule_about_it_is_met() -> None:
    labels = drawn_heart()
    labels[labels == 3] = 0
    results = load_anatomy("echo_apical", ECHO).check(labels)
    about_it = {(r.rule, r.structure) for r in results if r.structure == "LA" or r.rule == "above"}
    assert {(r.rule, r.structure) for r in results if r.measured is None} == about_it


@pytest.mark.parametrize(
    ("name", "schema"), [("generic", ECHO), ("generic", LUNG), ("echo_apical", ECHO), ("lungs", LUNG)]
)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(96, 96), (16, 24, 24)])
def test_noise_is_invalid(name: str, schema: LabelSchema, density: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    noise = np.where(rng.random(shape) < density, rng.integers(1, schema.num_classes, shape), 0).astype(np.uint8)
    assert not load_anatomy(name, schema).is_valid(noise)


def test_salt_and_pepper_on_a_valid_mask_is_invalid() -> None:
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((40, 40)) < 0.1, rng.integers(0, 4, (40, 40)), drawn_heart()).astype(np.uint8)
    for name in ("echo_apical", "generic"):
        assert load_anatomy(name, ECHO).is_valid(drawn_heart())
        assert not load_anatomy(name, ECHO).is_valid(labels)


def ball(centre: tuple[int, int, int], radius: float, shape: tuple[int, int, int] = (16, 20, 24)) -> np.ndarray:
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def test_volumes_are_checked_too() -> None:
    bound = load_anatomy("generic", LUNG)
    solid = ball((8, 10, 8), 5)
    assert bound.is_valid(solid.astype(np.uint8))
    hollow = solid & ~ball((8, 10, 8), 3)
    assert {r.rule for r in bound.check(hollow.astype(np.uint8)) if not r.passed} == {"holes"}
    # A ring in one slice is a tunnel in the volume, no hole.
    tunnel = solid.copy()
    tunnel[:, 10, 8] = False
    assert bound.is_valid(tunnel.astype(np.uint8))
    two = solid | ball((8, 10, 20), 2)
    assert {r.rule for r in bound.check(two.astype(np.uint8)) if not r.passed} == {"components"}


def test_above_means_rows_in_volumes_too(anatomy: MakeAnatomy) -> None:
    # Axes are slices, rows, columns: `a` lies in a later slice and a smaller row.
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[3, 1, 0] = 1
    labels[0, 4, 5] = 2
    assert only(anatomy("kind: above, structure: a, other: b"), labels) == RuleResult("above", "a", 3.0, True)


@pytest.mark.data
@pytest.mark.parametrize(
    ("pack", "name", "schema"),
    [("camus224_train250.npz", "echo_apical", ECHO), ("lung256_dev.npz", "lungs", LUNG)],
)
def test_expert_masks_are_valid(real_data: Path, pack: str, name: str, schema: LabelSchema) -> None:
    with np.load(real_data / pack) as content:
        labels = content["label"]
    bound = load_anatomy(name, schema)
    chosen = labels[:: max(1, len(labels) // 200)][:200]
    valid = [bound.is_valid(mask.astype(np.uint8)) for mask in chosen]
    assert len(valid) == 200
    assert np.mean(valid) >= 0.99
