"""How far reviewers agree, and what they say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.feedback_entries import GRID, NAMES, SHOWN, block, correction, on, verdict

from medfm_rl.choices import ConsensusMethod
from medfm_rl.feedback import CorrectedMask, FeedbackError, FeedbackStore, Mask
from medfm_rl.feedback.agreement import agreement, consensus
from medfm_rl.feedback.reading.corrections import changed_structures
from medfm_rl.types import LabelSchema

TWO, THREE, FOUR = (block(slice(1, end)) for end in (3, 4, 5))


@pytest.mark.parametrize("method", ["staple", "majority"])
def test_the_consensus_of_three_is_what_two_say(method: ConsensusMethod) -> None:
    found = consensus([TWO, THREE, THREE], method)
    assert np.array_equal(found.labels, THREE.labels)
    assert (found.names, found.geometry) == (THREE.names, THREE.geometry)


def test_a_tie_of_two_is_background() -> None:
    assert np.array_equal(consensus([TWO, FOUR], "majority").labels, TWO.labels)


def test_masks_of_other_structures_make_no_consensus() -> None:
    other = Mask.of(TWO.labels, ("background", "RV"), GRID)
    with pytest.raises(FeedbackError, match="only masks of one image with the same structures"):
        consensus([TWO, other])


def test_pairs_of_reviewers_are_compared_structure_by_structure(tmp_path: Path) -> None:
    store = FeedbackStore.create(tmp_path / "feedback.sqlite")
    drawn = {"r1": TWO, "r2": FOUR, "r3": FOUR}
    store.add(
        [CorrectedMask(**on(reviewer=name), mask_sha256=mask.sha256) for name, mask in drawn.items()], [TWO, FOUR]
    )
    pairs = {pair.reviewers: pair.dice for pair in agreement(store, store.entries(), "majority")}
    # 2 and 4 rows of 8 pixels: 2 * 16 / (16 + 32); neither has MYO.
    assert pairs["r1", "r2"] == pytest.approx({"LV": 2 / 3, "MYO": 1.0})
    assert pairs["r2", "r3"] == {"LV": 1.0, "MYO": 1.0}
    assert pairs["r1", "consensus"] == pytest.approx({"LV": 2 / 3, "MYO": 1.0})
    assert len(pairs) == 6


def test_who_accepts_a_mask_agrees_with_it(tmp_path: Path) -> None:
    store = FeedbackStore.create(tmp_path / "feedback.sqlite")
    corrected = correction(mask_sha256=FOUR.sha256)
    store.add([verdict(reviewer="r2"), corrected], [SHOWN, FOUR])
    (pair,) = agreement(store, store.entries(), "staple")
    assert pair.reviewers == ("r1", "r2")
    assert pair.dice["LV"] == pytest.approx(2 / 3)


def test_a_mask_is_read_by_the_names_of_another_schema() -> None:
    mask = Mask.of(np.array([[0, 1], [2, 0]], np.uint8), NAMES, GRID)
    schema = LabelSchema.from_structures({"MYO": 1, "LA": 2, "LV": 3})
    assert mask.labels_for(schema).tolist() == [[0, 3], [1, 0]]
    with pytest.raises(FeedbackError, match=r"has LV, MYO, and the segmenter segments RV"):
        mask.labels_for(LabelSchema.from_structures({"RV": 1}))


def test_masks_of_overlapping_structures_are_compared_by_structure_and_taught_by_name(tmp_path: Path) -> None:
    names = LabelSchema.of_regions(("WT", "TC")).class_names
    first = Mask.of(np.array([[1, 3], [0, 0]], np.uint8), names, GRID)
    second = Mask.of(np.array([[3, 3], [0, 2]], np.uint8), names, GRID)
    assert first.schema.structures == ("WT", "TC")
    store = FeedbackStore.create(tmp_path / "feedback.sqlite")
    given = (("r1", first), ("r2", second))
    store.add(
        [
            correction(reviewer=reviewer, mask_sha256=mask.sha256, replaces_sha256=None, changed=())
            for reviewer, mask in given
        ],
        [first, second],
    )
    (pair,) = agreement(store, store.entries(), "staple")
    # 2 pixels of WT in both; one of TC in the first, and the same and two more in the second.
    assert pair.dice == pytest.approx({"WT": 1.0, "TC": 2 * 1 / (1 + 3)})
    assert changed_structures(first, second) == ("TC",)
    turned = LabelSchema.of_regions(("TC", "ET", "WT"))
    assert first.labels_for(turned).tolist() == [[4, 5], [0, 0]]
    with pytest.raises(FeedbackError, match="its structures overlap, and those of the segmenter exclude each other"):
        first.labels_for(LabelSchema.from_structures({"WT": 1, "TC": 2}))
