"""The table of TotalSegmentator's tasks, and settings that name one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medfm_rl.errors import ConfigError
from medfm_rl.settings import AdaptConfig, TotalSegmentatorSettings
from medfm_rl.settings.files import commented_config, dump_config, load_config
from medfm_rl.settings.totalsegmentator import find_network, part_names, task_names, weights_root

PARTS = ("organs", "vertebrae", "cardiac", "muscles", "ribs")
ORGANS = "Dataset291_TotalSegmentator_part1_organs_1559subj"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    return tmp_path / "weights"


def load(folder: Path, segmenter: str) -> TotalSegmentatorSettings:
    file = folder / "adapt.yaml"
    file.write_text(f"segmenter: {{kind: totalsegmentator, {segmenter}}}\ntarget: {{path: data}}\noutput: run\n")
    found = load_config(file, AdaptConfig).segmenter
    assert isinstance(found, TotalSegmentatorSettings)
    # As it stands in the folder of a run, whatever the variables are then.
    file.write_text(dump_config(load_config(file, AdaptConfig)))
    assert load_config(file, AdaptConfig).segmenter == found
    return found


def test_the_parts_of_total_are_its_117_structures_in_their_order() -> None:
    assert part_names("total") == PARTS
    counts = [len(find_network("total", part).structures) for part in PARTS]
    assert counts == [24, 26, 18, 23, 26]
    whole = [name for part in PARTS for name in find_network("total", part).structures]
    assert whole == list(find_network("total_fast").structures) == list(find_network("total_fastest").structures)
    assert (whole[0], whole[50], whole[116]) == ("spleen", "heart", "costal_cartilages")
    assert [len(find_network("total_mr", part).structures) for part in part_names("total_mr")] == [29, 21]


def test_every_task_has_a_number_a_trainer_and_distinct_structures() -> None:
    networks = [find_network(task, part) for task in task_names() for part in part_names(task) or (None,)]
    assert len(task_names()) > 55
    for network in networks:
        number = network.dataset.removeprefix("Dataset").partition("_")[0]
        assert number.isdigit()
        assert len(number) == 3
        assert network.trainer.startswith("nnUNetTrainer")
        assert len(set(network.structures)) == len(network.structures) > 0
        assert network.configuration.startswith("3d_")
        assert 0 < network.step_size <= 1
        assert "totalseg_download_weights -t " in network.remedy
    lung = find_network("lung_vessels")
    assert lung.model == "nnUNetTrainerSkeletonRecall__nnUNetPlans__3d_fullres"
    assert lung.crops_to[0] == "lung_upper_lobe_left"
    assert find_network("brain_aneurysm").folds is None
    assert find_network("aorta_annulus").folds == (0, 1, 2, 3, 4)
    assert "`totalseg_set_license`" in find_network("heartchambers_highres").remedy


def test_weights_are_looked_for_where_totalsegmentator_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOTALSEG_WEIGHTS_PATH", raising=False)
    monkeypatch.delenv("TOTALSEG_HOME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_root() == tmp_path / ".totalsegmentator" / "nnunet" / "results"
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path / "home"))
    assert weights_root() == tmp_path / "home" / "nnunet" / "results"
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    assert weights_root() == tmp_path / "weights"


def test_a_task_finds_its_folder(tmp_path: Path, root: Path) -> None:
    organs = load(tmp_path, "task: total, part: organs")
    assert organs.folder == root / ORGANS
    assert organs.network == find_network("total", "organs")
    # The weights of another version, by the number of the data set.
    (root / "Dataset297_TotalSegmentator_total_3mm_1559subj_v204").mkdir(parents=True)
    assert load(tmp_path, "task: total_fast").folder.name.endswith("_v204")
    assert load(tmp_path, "task: total_fast, folder: null").folder.name.endswith("_v204")
    (root / "Dataset297_TotalSegmentator_total_3mm_1559subj").mkdir()
    assert load(tmp_path, "task: total_fast").folder.name.endswith("_1559subj")
    # A folder of such folders, and one of its own.
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ORGANS).mkdir(parents=True)
    assert load(tmp_path, f"task: total, part: organs, folder: {elsewhere}").folder == elsewhere / ORGANS
    assert load(tmp_path, f"task: total, part: ribs, folder: {elsewhere}").folder == elsewhere
    assert load(tmp_path, f"task: total, part: organs, folder: {elsewhere / ORGANS}").folder == elsewhere / ORGANS


def test_a_folder_without_a_task_is_taken_as_it_is(tmp_path: Path) -> None:
    found = load(tmp_path, "folder: weights")
    assert (found.folder, found.network, found.step_size) == (Path("weights"), None, None)


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        ("task: totl", r"segmenter: TotalSegmentator has no task totl; do you mean total .*its tasks are total, "),
        ("task: total", "task total is 5 networks, of which one is adapted; give part: organs, vertebrae, cardiac"),
        ("task: total, part: liver", "task total has no part liver; its parts are organs, vertebrae"),
        ("task: total_fast, part: organs", "task total_fast is one network and has no part organs; leave out part"),
        ("part: organs, folder: x", "part goes with a task"),
        ("train: all", r"segmenter\.folder: this field is needed"),
    ],
)
def test_a_task_that_is_not_there_and_a_part_that_is_missing_are_named(
    tmp_path: Path, segmenter: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, segmenter)


def test_the_commented_settings_name_task_and_part(tmp_path: Path) -> None:
    values = {
        "segmenter": {"kind": "totalsegmentator", "folder": "weights"},
        "target": {"path": "data"},
        "output": "run",
    }
    text = commented_config(AdaptConfig, values)
    assert "  task: null" in text
    assert "  part: null" in text


def test_the_table_needs_neither_torch_nor_totalsegmentator() -> None:
    code = (
        "import sys; from medfm_rl.settings.totalsegmentator import find_network; find_network('total', 'ribs'); "
        "sys.exit('torch' in sys.modules or 'totalsegmentator' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
