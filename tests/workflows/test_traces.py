"""From a mask to the images, rewards and weights that made it: in files and in MLflow, by the same names."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from medfm_rl import cli
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.correction.acceptance import HarmTarget
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError, TrackingError
from medfm_rl.quality.model import QualityModel, Targets
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.runs.finished import load_model, load_run
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.inputs import load_inputs, read_inputs, write_inputs
from medfm_rl.runs.tracked_call import tracked_call
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    CorrectionSettings,
    DataSettings,
    FineTuningSettings,
    NetworkSettings,
    PPOSettings,
    RewardSettings,
    ShapePriorSettings,
    TorchSettings,
    TrackingSettings,
)
from medfm_rl.settings.files import load_config
from medfm_rl.workflows.adapt.final_report import report_run
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.correction import calibrate_correction
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import ScoreRequest, score

# MLflow and SQLAlchemy warn of their own future; what medfm-rl does is warned of elsewhere.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TINY = NetworkSettings(channels=(4, 8), residual_units=0)
NOTHING = CorrectionSettings(method="none")


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha_of_listing(folder: Path, paths: list[Path]) -> str:
    """The hash of a data set as the docs define it, written down once more."""
    names = sorted(path.relative_to(folder) for path in paths)
    return hashlib.sha256("".join(f"{name.as_posix()}:{sha(folder / name)}\n" for name in names).encode()).hexdigest()


@pytest.fixture(scope="module")
def run(quality_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a held-out reward network and a quality model, which was recorded in MLflow."""
    folder = tmp_path_factory.mktemp("traced") / "run"
    shutil.copytree(quality_run, folder)
    torch.manual_seed(7)
    RewardNet(TINY, 4).save(folder / "reward" / "held-out")
    (folder / "mlflow_run_id").write_text("0123abcd\n")
    return folder


@pytest.fixture
def files(quality_run: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=quality_run.parent / "data"))[:2]


def names_of(run: Path) -> dict[str, str]:
    return {
        "model_hash": hash_folder(run / "model"),
        "reward_hash": hash_folder(run / "reward"),
        "quality_hash": sha(run / "quality.json"),
        "mlflow_run_id": "0123abcd",
    }


def line_of(out: Path, written: Path) -> dict[str, Any]:
    """The one line of the audit log that has the hash of a file, as a person would look it up."""
    lines = [json.loads(line) for line in (out / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    (found,) = [line for line in lines if sha(written) in line["outputs"].values()]
    assert found["outputs"][written.relative_to(out).as_posix()] == sha(written)
    assert found["time"]
    assert found["medfm_rl"]
    return dict(found)


def test_a_predicted_mask_leads_to_its_image_and_its_run(run: Path, files: list[CaseFile], tmp_path: Path) -> None:
    for _ in range(2):
        # What is kept by a repeated call has the line of the call that made it.
        predict(load_model(run, "cpu"), files, tmp_path, quiet)
    for file in files:
        for part in ("labels", "rewards"):
            line = line_of(tmp_path, tmp_path / part / f"{file.case_id}.nii.gz")
            assert {name: line[name] for name in names_of(run)} == names_of(run)
            assert (line["command"], line["case"]) == ("predict", file.case_id)
            assert line["inputs"]["images"] == [sha(path) for path in file.image_paths]


def test_a_case_that_could_not_be_segmented_has_a_line_too(run: Path, files: list[CaseFile], tmp_path: Path) -> None:
    bad = tmp_path / "bad_1.png"
    bad.write_bytes(b"no image")
    predict(load_model(run, "cpu"), [CaseFile("bad_1", "bad", (bad,)), *files], tmp_path / "out", quiet)
    lines = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    (left_out,) = (line for line in lines if "problem" in line)
    assert "bad_1" in left_out["problem"]
    assert left_out["model_hash"] == names_of(run)["model_hash"]


def test_scored_corrected_and_kept_masks_lead_to_the_same_names(
    run: Path, files: list[CaseFile], tmp_path: Path
) -> None:
    label = f"{files[0].case_id}.nii.gz"
    out = tmp_path / "both"
    correct(load_run(run, "cpu"), files, out, CorrectRequest(NOTHING), quiet)
    correct(load_run(run, "cpu"), files, tmp_path / "all", CorrectRequest(NOTHING, every=True), quiet)
    scored, kept = line_of(out / "scores", out / "scores" / "labels" / label), line_of(out, out / "labels" / label)
    handled = line_of(tmp_path / "all", tmp_path / "all" / "labels" / label)
    for line, command in ((scored, "score"), (kept, "correct"), (handled, "correct")):
        assert {name: line[name] for name in names_of(run)} == names_of(run)
        assert line["command"] == command
        assert line["inputs"]["images"] == [sha(path) for path in files[0].image_paths]
    assert scored["made_by"] == names_of(run)["model_hash"]


def test_scoring_says_who_made_the_masks_where_the_run_did_not(
    run: Path, files: list[CaseFile], tmp_path: Path
) -> None:
    masks = find_masks(files[0].image_paths[0].parents[1] / "labels", files)
    score(load_run(run, "cpu"), files, tmp_path / "given", ScoreRequest(masks=masks), quiet)
    line = line_of(tmp_path / "given", tmp_path / "given" / "rewards" / f"{files[0].case_id}.nii.gz")
    assert line["made_by"] is None
    assert line["inputs"]["mask"] == sha(masks[files[0].case_id])
    other = load_model(run / "model", "cpu")
    made_by = other.identity.model_hash
    score(load_run(run, "cpu"), files, tmp_path / "made", ScoreRequest(maker=other), quiet)
    line = line_of(tmp_path / "made", tmp_path / "made" / "labels" / f"{files[0].case_id}.nii.gz")
    assert line["made_by"] == made_by


def test_a_segmenter_that_is_no_run_is_known_by_the_hash_of_its_folder(
    tiny_unet: TorchModuleAdapter, tmp_path: Path
) -> None:
    tiny_unet.export(tmp_path)
    assert asdict(load_model(tmp_path, "cpu").identity) == {
        "model_hash": hash_folder(tmp_path),
        "reward_hash": None,
        "quality_hash": None,
        "mlflow_run_id": None,
    }


def test_a_quality_model_has_the_hashes_of_its_run_and_one_of_the_format_before_is_read(
    quality_run: Path, tmp_path: Path
) -> None:
    content = json.loads((quality_run / "quality.json").read_text())
    assert content["model_hash"] == hash_folder(quality_run / "model")
    assert content["reward_hash"] == hash_folder(quality_run / "reward")
    data = quality_run.parent / "data"
    assert content["origin"] == f"96 labelled cases of {data.resolve()}"
    files = [path for part in ("images", "labels") for path in (data / part).iterdir()]
    assert content["data_hash"] == sha_of_listing(data, files)
    for name in ("reward_hash", "data_hash"):
        del content[name]
    content |= {"format": 4, "segmenter_hash": content.pop("model_hash")}
    (tmp_path / "quality.json").write_text(json.dumps(content))
    older = QualityModel.read(tmp_path / "quality.json")
    assert (older.model_hash, older.reward_hash, older.data_hash) == (content["segmenter_hash"], None, None)
    older.check_networks(quality_run)


@pytest.fixture
def started(run: Path, tmp_path: Path) -> RunFolder:
    """The run with a record of its inputs: it has adapted to the images of its data set."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run, folder.path)
    write_inputs(folder.inputs, read_inputs(load_config(folder.config_file, AdaptConfig), quiet))
    return folder


def frames(run: RunFolder, patients: int = 10) -> list[CaseFile]:
    """One frame of each of some patients of the run's target."""
    every = find_cases(load_config(run.config_file, AdaptConfig).target)
    return list({file.patient_id: file for file in every}.values())[:patients]


def test_cases_that_a_run_learned_from_are_refused(started: RunFolder) -> None:
    before = sha(started.quality)
    found = r"10 of 10 are images of its target \(sim\d+.* for one\); 10 of 10 are of patients of its target"
    with pytest.raises(DataError, match=found):
        calibrate(load_run(started.path, "cpu"), frames(started), CalibrateRequest(Targets()), quiet)
    with pytest.raises(DataError, match=found):
        calibrate_correction(load_run(started.path, "cpu"), frames(started), HarmTarget(), NOTHING, progress=quiet)
    assert sha(started.quality) == before


def test_other_images_of_a_patient_and_a_copy_under_another_name_are_refused(
    started: RunFolder, tmp_path: Path
) -> None:
    new = [CaseFile(f"new{i}_1", f"new{i}", (tmp_path / f"new{i}_1.nii.gz",)) for i in range(8)]
    for number, file in enumerate(new):
        file.image_paths[0].write_bytes(bytes([number]))
    seen = frames(started, 1)[0]
    patient = CaseFile("other", seen.patient_id, new[0].image_paths)
    with pytest.raises(DataError, match=r"cases: 1 of 9 are of patients of its target \(other for one\)\. What"):
        calibrate(load_run(started.path, "cpu"), [*new, patient], CalibrateRequest(Targets()), quiet)
    shutil.copy(seen.image_paths[0], new[7].image_paths[0])
    with pytest.raises(DataError, match=r"cases: 1 of 8 are images of its target \(new7_1 for one\)\. What"):
        calibrate(load_run(started.path, "cpu"), new, CalibrateRequest(Targets()), quiet)


def test_images_that_were_seen_with_labels_are_refused_whatever_is_asked(started: RunFolder) -> None:
    config = load_config(started.config_file, AdaptConfig)
    sourced = config.model_copy(update={"source": config.target})
    write_inputs(started.inputs, read_inputs(sourced, quiet))
    with pytest.raises(DataError, match=r"cases: 10 of 10 are images of its source \(sim\d+.* for one\)\. What"):
        calibrate(
            load_run(started.path, "cpu"), frames(started), CalibrateRequest(Targets(), allow_overlap=True), quiet
        )


def test_a_quality_model_that_promises_less_says_so_and_where_the_one_before_is(
    started: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """5 of 10 patients are too few for intervals of 90 %; the 12 of 24 before were enough."""
    before = started.quality.read_bytes()
    with caplog.at_level(logging.WARNING):
        model = calibrate(
            load_run(started.path, "cpu"), frames(started), CalibrateRequest(Targets(), allow_overlap=True), quiet
        )
    assert "promises less: no interval but [0, 1] for LV, MYO, LA, mean" in caplog.text
    (kept,) = started.path.glob("quality-*.json")
    assert kept.read_bytes() == before
    assert f"the quality model before is kept as {kept}" in caplog.text
    assert model.origin.endswith(", 10 of them known to the run")


def test_a_run_that_recorded_no_inputs_is_calibrated_with_a_warning(
    started: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    started.inputs.unlink()
    with caplog.at_level(logging.WARNING):
        calibrate(load_run(started.path, "cpu"), frames(started), CalibrateRequest(Targets()), quiet)
    assert "inputs.json does not say which patients the run learned from" in caplog.text


@pytest.fixture(scope="module")
def tracked(
    simulated_echo: Path, quality_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, AdaptConfig]:
    """A run with MLflow beside it, whose settings have relative paths."""
    folder = tmp_path_factory.mktemp("tracked")
    config = AdaptConfig(
        segmenter=TorchSettings(folder=quality_run / "model"),
        target=DataSettings(path=Path("b")),
        source=DataSettings(path=Path("a")),
        evaluation=DataSettings(path=Path("b")),
        output=folder / "run",
        iterations=1,
        fine_tuning=FineTuningSettings(steps=1, batch_size=2),
        collect=CollectSettings(source_images=8, target_images=8, actions_per_image=3, shard_images=8),
        shape_prior=ShapePriorSettings(epochs=1, latent=4),
        reward=RewardSettings(network=TINY, steps=2, validate_every=2),
        ppo=PPOSettings(updates=1, n_envs=2, n_epochs=1, eval_every=1),
        tracking=TrackingSettings(uri="auto", experiment="tests"),
        device="cpu",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(simulated_echo)
        run = adapt(config, False, quiet)
        report_run(run, config, quiet)
        # What was recorded is recorded again, and is the same.
        adapt(config, True, quiet)
    return run, config


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_says_which_data_rewards_and_weights_a_run_had(
    tracked: tuple[RunFolder, AdaptConfig], simulated_echo: Path
) -> None:
    from mlflow import MlflowClient

    run, _ = tracked
    client = MlflowClient(tracking_uri=f"sqlite:///{run.path.parent / 'mlflow.db'}")
    recorded = client.get_run((run.path / "mlflow_run_id").read_text().strip())
    params = recorded.data.params
    target, source = simulated_echo / "b", simulated_echo / "a"
    images = list((target / "images").iterdir())
    labelled = [path for part in ("images", "labels") for path in (source / part).iterdir()]
    masks = list((target / "labels").iterdir())
    hashes = {
        "target": sha_of_listing(target, images),
        "source": sha_of_listing(source, labelled),
        "evaluation": sha_of_listing(target, [*images, *masks]),
    }
    for role, place in (("target", target), ("source", source), ("evaluation", target)):
        assert {name: params[f"data.{role}.{name}"] for name in ("path", "hash", "cases", "patients")} == {
            "path": str(place.resolve()),
            "hash": hashes[role],
            "cases": "24",
            "patients": "6",
        }
    assert params["target.path"] == str(target.resolve())
    assert params["model_hash"] == hash_folder(run.model)
    assert params["reward_hash"] == hash_folder(run.final_reward)
    assert len(params["actions_hash"]) == 64
    assert {(item.dataset.name, item.dataset.digest) for item in recorded.inputs.dataset_inputs} == {
        (role, found[:36]) for role, found in hashes.items()
    }
    assert len(recorded.inputs.dataset_inputs) == 3
    # Names of files are in the artifacts alone.
    patients = {file.patient_id for file in find_cases(DataSettings(path=target))}
    assert not [value for value in params.values() if any(patient in value for patient in patients)]
    artifacts = run.path.parent / "mlflow-artifacts"
    assert sorted(sha(path) for path in artifacts.rglob("inputs.json")) == sorted(
        map(sha, (run.inputs, run.evaluation / "inputs.json"))
    )


def test_a_run_that_was_killed_before_it_recorded_its_results_records_them_when_it_goes_on(
    tracked: tuple[RunFolder, AdaptConfig], simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole folders, under the names of the run: what is fetched from MLflow can be loaded."""
    from mlflow import MlflowClient

    run, config = tracked
    killed = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, killed.path)
    # Its records end before the results, and so does the run in MLflow.
    (killed.path / "mlflow_run_id").unlink()
    monkeypatch.chdir(simulated_echo)
    for _ in range(2):
        adapt(config.model_copy(update={"output": killed.path}), True, quiet)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "fetched").mkdir()
    recorded = (killed.path / "mlflow_run_id").read_text().strip()
    fetched = Path(client.download_artifacts(recorded, "", str(tmp_path / "fetched")))
    for name in ("model", "reward"):
        assert hash_folder(fetched / name) == hash_folder(run.path / name)
    assert sha(fetched / "config.yaml") == sha(killed.config_file)
    assert sha(fetched / "selection.json") == sha(killed.selection(0))
    assert len(RewardEnsemble.load(fetched / "reward").members) == 2


def test_the_report_has_the_names_of_mlflow(tracked: tuple[RunFolder, AdaptConfig]) -> None:
    run, _ = tracked
    page = run.report.read_text(encoding="utf-8")
    expected = {
        "model_hash": hash_folder(run.model),
        "reward_hash": hash_folder(run.final_reward),
        "mlflow_run_id": (run.path / "mlflow_run_id").read_text().strip(),
    }
    for name, value in expected.items():
        assert name in page
        assert value in page
    for name in ("actions_hash", "segmenter_hash", "data.target.hash", "data.source.hash"):
        assert name in page


def test_the_record_of_the_inputs_says_where_they_were_and_whose(
    tracked: tuple[RunFolder, AdaptConfig], simulated_echo: Path
) -> None:
    run, _ = tracked
    target = json.loads(run.inputs.read_text())["inputs"]["target.path"]
    assert target["path"] == str((simulated_echo / "b").resolve())
    assert target["cases"] == {
        file.case_id: file.patient_id for file in find_cases(DataSettings(path=simulated_echo / "b"))
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_call_is_recorded_within_its_run_where_that_is_asked(
    tracked: tuple[RunFolder, AdaptConfig], simulated_echo: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run, _ = tracked
    files = find_cases(DataSettings(path=simulated_echo / "b"))[:2]
    client = MlflowClient(tracking_uri=f"sqlite:///{run.path.parent / 'mlflow.db'}")
    parent = client.get_run((run.path / "mlflow_run_id").read_text().strip())
    within = f"tags.mlflow.parentRunId = '{parent.info.run_id}' and attributes.run_name LIKE 'predict %'"
    with tracked_call(False, load_run(run.path, "cpu"), "predict", files, tmp_path / "quietly", quiet):
        pass
    assert client.search_runs([parent.info.experiment_id], within) == []
    with tracked_call(True, load_run(run.path, "cpu"), "predict", files, tmp_path / "out", quiet):
        predict(load_model(run.path, "cpu"), files, tmp_path / "out", quiet)
    (found,) = client.search_runs([parent.info.experiment_id], within)
    assert found.info.status == "FINISHED"
    images = [path for file in files for path in file.image_paths]
    assert found.data.params["model_hash"] == parent.data.params["model_hash"] == hash_folder(run.model)
    assert found.data.params["data.images.hash"] == sha_of_listing(simulated_echo / "b" / "images", images)
    assert found.data.params["data.images.cases"] == "2"
    assert [item.path for item in client.list_artifacts(found.info.run_id)] == ["audit.jsonl"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_call_loads_and_hashes_each_part_of_a_run_once(
    tracked: tuple[RunFolder, AdaptConfig],
    quality_run: Path,
    simulated_echo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`predict --correct --track` segments, scores, corrects and records: four users of the same run."""
    shutil.copytree(tracked[0].path.parent, tmp_path / "tracked")
    run = RunFolder(tmp_path / "tracked" / "run")
    known = set(load_inputs(run.inputs)["source.path"].cases.values())
    every = find_cases(DataSettings(path=quality_run.parent / "data"))
    labelled = [file for file in every if file.patient_id not in known]
    calibrate(load_run(run.path, "cpu"), labelled, CalibrateRequest(Targets(dice=0.5)))
    seen: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen[name.format(*arguments)] += 1
            return function(*arguments)

        return call

    # Wherever the function is called from: a loader of its own would not be counted by the one of `FinishedRun`.
    for module in list(sys.modules.values()):
        for name, function in (("hash_folder", hash_folder), ("load_segmenter", load_segmenter)):
            if module.__name__.startswith("medfm_rl.") and getattr(module, name, None) is function:
                monkeypatch.setattr(module, name, counted(f"{name} {{0}}", function))
    monkeypatch.setattr(RewardEnsemble, "load", counted("ensemble", RewardEnsemble.load))
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((simulated_echo / "b" / "images").iterdir())[:2]:
        shutil.copy(path, images)
    arguments = ["predict", run.path, images, tmp_path / "out", "--correct", "--track", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    hashed = {name: count for name, count in seen.items() if name.startswith("hash_folder")}
    assert hashed.pop(f"hash_folder {run.model}") == 1
    assert hashed.pop(f"hash_folder {run.final_reward}") == 1
    # Each network of the ensemble by itself, to tell which one was replaced.
    assert set(hashed.values()) <= {1}
    assert [count for name, count in seen.items() if name.startswith("load_segmenter")] == [1]
    assert seen["ensemble"] == 1
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_call_that_fails_leaves_the_record_of_its_run_as_it_was(
    tracked: tuple[RunFolder, AdaptConfig], files: list[CaseFile], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run, _ = tracked
    with (
        pytest.raises(ValueError, match="broken"),
        tracked_call(True, load_run(run.path, "cpu"), "score", files, tmp_path, quiet),
    ):
        raise ValueError("broken")
    client = MlflowClient(tracking_uri=f"sqlite:///{run.path.parent / 'mlflow.db'}")
    parent = client.get_run((run.path / "mlflow_run_id").read_text().strip())
    within = f"tags.mlflow.parentRunId = '{parent.info.run_id}' and attributes.run_name LIKE 'score %'"
    (found,) = client.search_runs([parent.info.experiment_id], within)
    assert (found.info.status, parent.info.status) == ("FAILED", "FINISHED")


def test_a_run_without_a_record_cannot_be_recorded_within(
    quality_run: Path, files: list[CaseFile], tmp_path: Path
) -> None:
    with (
        pytest.raises(TrackingError, match="this run was not recorded in MLflow"),
        tracked_call(True, load_run(quality_run, "cpu"), "score", files, tmp_path, quiet),
    ):
        pass
    with (
        pytest.raises(TrackingError, match="is no run of `medfm-rl adapt`"),
        tracked_call(True, load_model(quality_run / "model", "cpu"), "predict", files, tmp_path, quiet),
    ):
        pass
