"""What is called suspicious in a data set, and what is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medfm_rl.data.checks import CaseFacts, find_suspicious, image_facts, mask_facts, notices
from medfm_rl.types import Case, Geometry

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
NAMES = {0: "background", 1: "LV", 2: "MYO"}


def case(
    name: str,
    image: np.ndarray | None = None,
    spacing: tuple[float, ...] | None = (1.0, 1.0, 3.0),
    direction: tuple[float, ...] = LPS,
    labels: Sequence[int] | None = None,
    names: dict[int, str] = NAMES,
    patient: str | None = None,
) -> CaseFacts:
    """A volume of noise, with a mask that has a pixel of each of the labels."""
    if image is None:
        image = np.random.default_rng(list(name.encode())).normal(100, 10, (1, 6, 12, 14))
    grid = Geometry(spacing, (0.0,) * (image.ndim - 1), direction)
    mask = None
    if labels is not None:
        drawn = np.zeros(image.shape[1:], dtype=np.int64)
        drawn.flat[: len(labels)] = labels
        # Each is another mask.
        drawn.flat[100 + int(name.strip("abcdefgh") or 0)] = labels[0] if labels else 0
        mask = mask_facts(drawn, names)
    seen = image_facts(Case(name, patient or name, image.astype(np.float32), grid))
    return CaseFacts(name, patient or name, (f"{name}.nii",), None if labels is None else f"m/{name}.nii", seen, mask)


def kinds(cases: Sequence[CaseFacts]) -> dict[str, list[str]]:
    return {finding.kind: list(finding.cases) for finding in find_suspicious(cases)}


def usual(count: int = 6, **changes: object) -> list[CaseFacts]:
    return [case(f"a{index}", **changes) for index in range(count)]  # type: ignore[arg-type]


def test_nothing_is_suspicious_in_a_set_whose_images_are_alike() -> None:
    assert kinds(usual()) == {}
    assert kinds(usual(labels=[1, 2])) == {}
    assert kinds([]) == {}
    assert kinds([CaseFacts("a", "a", problems=("broken",))] * 4) == {}


def test_another_spacing_orientation_size_and_range_is_named() -> None:
    odd = case("b", spacing=(1.0, 1.0, 30.0))
    assert kinds([*usual(), odd]) == {"other-spacing": ["b"]}
    assert kinds([*usual(), case("b", direction=RAS)]) == {"other-orientation": ["b"]}
    noise = np.random.default_rng(1).normal(100, 10, (1, 6, 12, 30))
    assert kinds([*usual(), case("b", noise)]) == {"other-size": ["b"]}
    assert kinds([*usual(), case("b", noise[..., :14] + 1024)]) == {"other-values": ["b"]}
    assert kinds([*usual(), case("b", np.repeat(noise[..., :14], 2, axis=0))]) == {"other-channels": ["b"]}


def test_small_differences_of_spacing_are_not() -> None:
    assert kinds([*usual(), case("b", spacing=(1.05, 1.05, 3.0))]) == {}


def test_unknown_spacing_is_named_where_others_know_it() -> None:
    assert kinds([*usual(), case("b", spacing=None)]) == {"spacing-unknown": ["b"]}
    assert kinds(usual(spacing=None)) == {}


def test_mixed_orientations_of_which_none_is_that_of_most_are_named() -> None:
    cases = [*usual(3), *(case(f"b{index}", direction=RAS) for index in range(3))]
    (finding,) = find_suspicious(cases)
    assert finding.title == "6 of 6 images differ in orientation, and none is that of most"
    assert finding.first(1) == "a0 (LPS) and 5 more"


def test_flat_images_among_volumes_are_named() -> None:
    flat = case("b", np.random.default_rng(3).normal(100, 10, (1, 12, 14)), spacing=(1.0, 1.0), direction=(1, 0, 0, 1))
    assert kinds([*usual(), flat])["other-dimensions"] == ["b"]


def test_a_channel_with_one_value_is_named() -> None:
    noise = np.random.default_rng(1).normal(100, 10, (3, 8, 8))
    noise[2] = 4
    plane = {"spacing": (1.0, 1.0), "direction": (1.0, 0.0, 0.0, 1.0)}
    (finding,) = find_suspicious([case("a", noise, **plane)])  # type: ignore[arg-type]
    assert (finding.kind, finding.first()) == ("constant-channel", "a (channel 2: 4 to 4)")


def test_images_of_few_values_look_like_masks_and_do_not_count_for_the_usual_range() -> None:
    """As where a folder holds a mask for each of many structures."""
    masks = [case(f"b{index}", np.eye(12)[None, None].repeat(6, axis=1) * (index + 1)) for index in range(9)]
    assert kinds([*usual(3), *masks])["like-masks"] == [f"b{index}" for index in range(9)]
    assert "other-values" not in kinds([*usual(3), *masks])


def test_the_same_image_is_found_under_two_names_and_two_patients() -> None:
    noise = np.random.default_rng(5).normal(100, 10, (1, 6, 12, 14))
    across = kinds([*usual(), case("b", noise), case("c", noise, spacing=(1.0, 1.0, 3.1))])
    assert across == {"same-image-two-patients": ["b", "c"]}
    within = find_suspicious([*usual(), case("b", noise, patient="p"), case("c", noise, patient="p")])
    assert [finding.kind for finding in within] == ["same-image"]
    assert within[0].cases == {"b": "as c", "c": "as b"}


def test_the_same_mask_under_two_images_is_found_but_not_an_empty_one() -> None:
    cases = [case("a", labels=[1, 2]), case("b", labels=[1, 2])]
    assert kinds(cases) == {"same-mask": ["a", "b"]}
    assert "same-mask" not in kinds([case("a", labels=[]), case("b", labels=[])])


def test_empty_masks_and_missing_labels_are_named() -> None:
    cases = [*usual(labels=[1, 2]), case("b7", labels=[]), case("c8", labels=[1])]
    found = {finding.kind: finding for finding in find_suspicious(cases)}
    assert found["empty-mask"].title == "1 of 8 masks is empty"
    assert found["label-missing"].cases == {"c8": "no MYO"}
    assert found.keys() == {"empty-mask", "label-missing"}


def test_a_label_that_half_of_the_masks_lack_is_not_missing() -> None:
    cases = [*usual(4, labels=[1, 2]), *(case(f"b{index + 4}", labels=[1]) for index in range(4))]
    assert kinds(cases) == {}


def test_a_value_that_nothing_names_and_hardly_any_mask_has_is_named() -> None:
    unnamed = {0: "background"}
    cases = [*usual(labels=[1, 2], names=unnamed), case("b7", labels=[1, 2, 77], names=unnamed)]
    (finding,) = find_suspicious(cases)
    assert (finding.kind, finding.first()) == ("label-rare", "b7 (label 77: 1 pixel)")
    assert kinds(usual(labels=[1, 2], names=unnamed)) == {}


def test_a_structure_that_is_in_no_mask_is_named() -> None:
    (finding,) = find_suspicious(usual(labels=[1]))
    assert (finding.kind, finding.title) == ("label-nowhere", "MYO: in none of the 6 masks that are not empty")


def test_images_without_a_mask_are_named_where_others_have_one() -> None:
    assert kinds([*usual(labels=[1, 2]), case("b")]) == {"no-mask": ["b"]}


def test_a_notice_is_a_line_for_each_kind() -> None:
    cases = [*usual(), *(case(f"b{index}", spacing=(1.0, 1.0, 9.0)) for index in range(5))]
    assert notices("target", find_suspicious(cases)) == [
        "target: 5 of 11 images have another spacing than most (1 x 1 x 3 mm): b0 (1 x 1 x 9 mm), b1 (1 x 1 x 9 mm), "
        "b2 (1 x 1 x 9 mm) and 2 more"
    ]
