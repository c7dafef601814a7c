"""What a store exports, another store takes in, and is then the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.feedback_entries import CORRECTED, SHOWN, block, correction, ef, verdict

from medfm_rl.errors import DataError
from medfm_rl.feedback import CorrectedMask, Entry, FeedbackError, FeedbackStore, Removal
from medfm_rl.feedback.exporting import export_store, read_export

MASKS = [SHOWN, CORRECTED]


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    """A history with everything that can happen to an entry."""
    store = FeedbackStore.create(tmp_path / "feedback.sqlite")
    store.add([ef(55, comment='said "so",\nand wrote it'), correction("p2_a"), verdict()], MASKS)
    store.add([ef(60, uncertainty=1 / 3), verdict("accept", "p2_a", "r2")])
    store.add([Removal(reviewer="r9", removes=store.entries(["verdict"])[0].id, reason="clicked by mistake")])
    return store


def test_a_store_comes_through_an_export_as_it_is(store: FeedbackStore, tmp_path: Path, place: Path | str) -> None:
    digest = export_store(store, tmp_path / "export")
    export = read_export(tmp_path / "export")
    with FeedbackStore.create(place if isinstance(place, str) else tmp_path / "other.sqlite") as other:
        added = other.merge(export.history, export.masks())
        assert len(added.entries) == len(store.history())
        assert other.history() == store.history()
        assert other.entries() == store.entries()
        assert other.state_hash() == store.state_hash() == digest
        again = other.merge(export.history, export.masks())
        assert (again.entries, len(again.repeated)) == ((), len(store.history()))


def test_two_stores_are_the_same_whichever_takes_in_the_other(tmp_path: Path) -> None:
    one, two = (FeedbackStore.create(tmp_path / name) for name in ("1.sqlite", "2.sqlite"))
    one.add([correction(), ef(55)], MASKS)
    two.add([ef(60), verdict(reviewer="r2")], MASKS)
    one.add([ef(65)])
    for number, (taker, giver) in enumerate(((one, two), (two, one))):
        export_store(giver, tmp_path / f"export-{number}")
        export = read_export(tmp_path / f"export-{number}")
        taker.merge(export.history, export.masks())
    assert one.entries() == two.entries()
    assert one.state_hash() == two.state_hash()
    assert ef(65).value in [getattr(entry, "value", None) for entry in one.entries()]


def test_other_tools_read_the_masks_of_an_export(store: FeedbackStore, tmp_path: Path) -> None:
    export_store(store, tmp_path / "export")
    image = sitk.ReadImage(str(tmp_path / "export" / "masks" / f"{CORRECTED.sha256}.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(image), CORRECTED.labels)
    assert image.GetSpacing() == pytest.approx(CORRECTED.geometry.spacing)
    assert image.GetOrigin() == pytest.approx(CORRECTED.geometry.origin)


def test_an_export_that_was_changed_is_refused(store: FeedbackStore, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_store(store, folder)
    masks = folder / "masks"
    (masks / f"{SHOWN.sha256}.nii.gz").write_bytes((masks / f"{CORRECTED.sha256}.nii.gz").read_bytes())
    other = FeedbackStore.create(tmp_path / "other.sqlite")
    export = read_export(folder)
    with pytest.raises(FeedbackError, match=f"mask {SHOWN.sha256}: its content has changed"):
        other.merge(export.history, export.masks())
    assert other.history() == []
    entries = folder / "entries.csv"
    entries.write_text(entries.read_text().replace("EF", "XF"))
    with pytest.raises(FeedbackError, match="XF"):
        read_export(folder)


def test_an_export_that_was_cut_off_or_changed_is_refused(store: FeedbackStore, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_store(store, folder)
    entries = folder / "entries.csv"
    whole = entries.read_text()
    entries.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    count = len(store.history())
    with pytest.raises(FeedbackError, match=rf"has {count - 1} entries, and export\.json says {count}: it was cut off"):
        read_export(folder)
    entries.write_text(whole.replace("p1", "p2"))
    with pytest.raises(FeedbackError, match="by the hash of the state: it was changed"):
        read_export(folder)
    entries.write_text(whole)
    assert len(read_export(folder).history) == count


def test_a_store_that_was_changed_by_hand_does_not_take_in_its_own_export(store: FeedbackStore, tmp_path: Path) -> None:
    history: list[Entry] = [
        CorrectedMask(**{**vars(entry), "mask_sha256": block(slice(0, 6)).sha256})
        if isinstance(entry, CorrectedMask)
        else entry
        for entry in store.history()
    ]
    with pytest.raises(FeedbackError, match=r"entry .* is corrected mask .* here and corrected mask .* there"):
        store.merge(history, [block(slice(0, 6))])


def test_a_folder_that_is_no_export_or_not_empty_is_refused(store: FeedbackStore, tmp_path: Path) -> None:
    with pytest.raises(FeedbackError, match="give a folder that `medfm-rl feedback export` wrote"):
        read_export(tmp_path)
    with pytest.raises(DataError, match="already exists and is not empty"):
        export_store(store, tmp_path)
