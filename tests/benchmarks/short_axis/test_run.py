from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.nnunet_models import dataset, read, volumetric, write_model

from benchmarks.harness.laboratory import files_of
from benchmarks.harness.nnunet_official import NnUNetRecipe, Training, write_raw
from benchmarks.short_axis import run, volumes
from benchmarks.short_axis.report import summarise, table
from benchmarks.short_axis.run import ShortAxis
from benchmarks.short_axis.sizes import QUICK, RECIPE
from medfm_rl.adapters import NnUNetAdapter
from medfm_rl.data.images import write_labels
from medfm_rl.feedback import FeedbackStore

pytestmark = pytest.mark.nnunet


def tiny(recipe: NnUNetRecipe, training: Training, source: Path, folder: Path) -> Path:
    """In the place of nnU-Net's training: a network with random weights, made once."""
    model = folder / training.title
    if not model.exists():
        plan = volumetric(original_median_spacing_after_transp=[8.0, 1.5, 1.5])
        plan["configurations"]["3d_fullres_parent"] |= {"spacing": [8.0, 1.5, 1.5], "patch_size": [4, 32, 32]}
        description = dataset({"background": 0, "LV": 1}, channels=(recipe.channel,))
        write_model(model, plan, description, (int(training.fold) if training.fold.isdigit() else training.fold,))
    return model


def in_process(model: Path, images: Path, out: Path, mirroring: bool, fold: str = "0") -> Path:
    """In the place of nnU-Net's command, which starts processes."""
    adapter = NnUNetAdapter(model, mirroring=mirroring)
    for path in sorted(images.iterdir()):
        image = read(path)
        name = path.name.replace("_0000", "")
        write_labels(out / name, adapter.segment(image), image.geometry, adapter.schema)
    return out


def test_raw_volumes_are_copies_under_the_names_of_nnunet(tmp_path: Path) -> None:
    parts = volumes.write_parts(
        tmp_path / "data", dict.fromkeys(("source", "source-held-out", "target", "held-out"), 1)
    )
    cases = files_of(parts["source"])
    write_raw(RECIPE, cases, tmp_path / "raw")
    first = tmp_path / "raw" / "imagesTr" / f"{cases[0].case_id}_0000.nii.gz"
    assert first.read_bytes() == cases[0].image_paths[0].read_bytes()
    assert (tmp_path / "raw" / "labelsTr" / f"{cases[0].case_id}.nii.gz").exists()
    description = (tmp_path / "raw" / "dataset.json").read_text()
    assert '"LV": 1' in description
    assert '"file_ending": ".nii.gz"' in description


@pytest.mark.slow
def test_every_part_runs_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On drawn volumes with random networks: what each stage hands to the next; a second call makes nothing."""
    monkeypatch.setattr(volumes, "FIELD_MM", 48.0)
    monkeypatch.setattr(run, "train", tiny)
    monkeypatch.setattr(run, "predict", in_process)
    found = ShortAxis(0, QUICK, tmp_path).run([0, 2])
    assert set(found) == {"source", "upper", "adapted"}
    assert len(found["upper"]["dice"]) == len(found["adapted"]["0"]["dice"]["after"]) == 4
    assert list((tmp_path / "data" / "target-without-masks").iterdir()) != []
    assert not (tmp_path / "data" / "target-without-masks" / "labels").exists()
    with FeedbackStore.open(tmp_path / "adapted-2" / "feedback.sqlite") as store:
        assert len({entry.patient for entry in store.entries()}) == 2
    assert set(summarise([found])["reviewed"]) == {"2"}
    assert "| 0 | " in table([0], [found], QUICK, trial=True)
    monkeypatch.setattr(run, "adapt", None)
    monkeypatch.setattr(run, "predict", None)
    assert ShortAxis(0, QUICK, tmp_path).run([0, 2]) == found
