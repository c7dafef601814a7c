from __future__ import annotations

import json
import re
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import start_command
from support.tiny_runs import TINY, tiny_config, train_tiny_source

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.runs.finished import load_model
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    FineTuningSettings,
    NetworkSettings,
    PPOSettings,
    PreprocessingSettings,
    RewardSettings,
    SourceTrainingSettings,
)
from medfm_rl.settings.files import dump_config, load_config
from medfm_rl.workflows.adapt.final_report import report_run
from medfm_rl.workflows.adapt.forecast import look_ahead
from medfm_rl.workflows.adapt.forecast.footprint import measure_footprint
from medfm_rl.workflows.adapt.forecast.look_ahead import settings_of_run
from medfm_rl.workflows.adapt.forecast.measuring import Amounts, UnitCosts, measure
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.deploy.predict import predict


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def source_model(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "source"
    return train_tiny_source(simulated_echo, folder, SourceTrainingSettings(epochs=8, batch_size=8, learning_rate=1e-2))


@pytest.fixture(scope="module")
def finished_run(simulated_echo: Path, source_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AdaptConfig:
    output = tmp_path_factory.mktemp("finished") / "run"
    config = tiny_config(simulated_echo, source_model, output, evaluation=DataSettings(path=simulated_echo / "b"))
    run = adapt(config, resume=False, progress=quiet)
    report_run(run, config, quiet)
    return config


def final_hashes(run: Path) -> dict[str, str]:
    """Everything that a run computes; reports and logs are left out."""
    return {name: hash_folder(run / name) for name in ("fine-tuning", "actions", "shape_prior", "reward", "model")} | {
        f"iteration-{i:02d}": hash_folder(run / f"iteration-{i:02d}") for i in range(2)
    }


def test_a_run_leaves_a_model_a_reward_and_a_report(finished_run: AdaptConfig) -> None:
    run = finished_run.output
    assert load_model(run, "cpu").reward is not None
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "SIMULATED DATA" in report
    assert "http" not in report.replace("http-equiv", "")
    summary = json.loads((run / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["dice_difference"]) == {"LV", "MYO", "LA", "mean"}


def test_the_held_out_reward_weighs_an_average_up_to_every_checkpoint_and_the_source(finished_run: AdaptConfig) -> None:
    selection = json.loads((finished_run.output / "iteration-01" / "selection.json").read_text(encoding="utf-8"))
    names = [candidate["name"] for candidate in selection["candidates"]]
    assert names == [
        "source",
        "fine-tuning",
        "iteration-00/candidates/00002",
        "iteration-00/candidates/00004",
        "iteration-01/candidates/00002",
        "iteration-01/candidates/00004",
    ]
    assert selection["chosen"] in names


def test_the_first_average_of_an_iteration_is_what_has_to_be_beaten(finished_run: AdaptConfig) -> None:
    first, second = (
        json.loads((finished_run.output / f"iteration-0{index}" / "selection.json").read_text(encoding="utf-8"))
        for index in range(2)
    )
    assert first["incumbent"] == "iteration-00/candidates/00002"
    stayed = first["chosen"] != "source"
    assert second["incumbent"] == ("iteration-01/candidates/00002" if stayed else "source")


def test_anatomy_rules_change_what_ppo_does_and_nothing_before(
    finished_run: AdaptConfig, simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    """Masks of a network that was trained for seconds break rules, so that there are images of which they speak."""
    ppo = finished_run.ppo.model_copy(update={"rule_share": 0.9})
    config = tiny_config(simulated_echo, source_model, tmp_path / "run", iterations=1, ppo=ppo)
    adapt(config, progress=quiet)
    for part, same in (("fine-tuning", True), ("iteration-00/reward", True), ("iteration-00/ppo/00004", False)):
        assert (config.output / part).is_dir()
        assert (hash_folder(config.output / part) == hash_folder(finished_run.output / part)) == same, part


def test_the_report_says_which_candidate_was_chosen(
    finished_run: AdaptConfig,
) -> None:
    selection = json.loads((finished_run.output / "iteration-01" / "selection.json").read_text(encoding="utf-8"))
    report = (finished_run.output / "report.html").read_text(encoding="utf-8")
    stayed = selection["chosen"] == selection["incumbent"] != "source"
    assert ("was returned: no two signals agreed on another of the 5 candidates" in report) == stayed
    assert ("it was returned." in report) == (selection["chosen"] not in ("source", selection["incumbent"]))
    assert report.count("<td>yes</td>") == 1


def test_a_run_whose_policies_have_learned_goes_on_without_d_r(finished_run: AdaptConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.output, run)
    shutil.rmtree(run / "actions")
    shutil.rmtree(run / "model")
    (run / "iteration-01" / "selection.json").unlink()
    adapt(finished_run.model_copy(update={"output": run}), True, lambda *_: None)
    assert hash_folder(run / "model") == hash_folder(finished_run.output / "model")


def test_a_candidate_averages_the_fine_tuning_and_the_checkpoints_so_far(finished_run: AdaptConfig) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(finished_run.output / name / "actor.safetensors")

    path = [weights(name) for name in ("fine-tuning", "iteration-00/ppo/00002", "iteration-00/ppo/00004")]
    for count, name in ((2, "00002"), (3, "00004")):
        for key, value in weights(f"iteration-00/candidates/{name}").items():
            torch.testing.assert_close(value, sum(state[key] for state in path[:count]) / count)


def test_the_fine_tuning_keeps_the_source_share_that_was_asked_for(
    simulated_echo: Path, source_model: Path, finished_run: AdaptConfig, tmp_path: Path
) -> None:
    """The same fine-tuning with another share ends on the same line through the source policy."""
    source = TorchModuleAdapter.load(source_model).state_dict()
    fine_tuning = FineTuningSettings(steps=2, batch_size=4, source_share=0.7)
    config = tiny_config(simulated_echo, source_model, tmp_path / "run", fine_tuning=fine_tuning, iterations=1)
    adapt(config, resume=False, progress=quiet)
    near = load_file(config.output / "fine-tuning" / "actor.safetensors")
    far = load_file(finished_run.output / "fine-tuning" / "actor.safetensors")
    # A share of .4 moves twice as far as one of .7.
    assert any(not torch.equal(far[key], source[key]) for key in source)
    for key in source:
        torch.testing.assert_close(far[key] - source[key], 2 * (near[key] - source[key]), atol=1e-6, rtol=1e-4)


def test_the_held_out_reward_network_learns_from_ground_truth_of_the_source_alone(
    finished_run: AdaptConfig, simulated_echo: Path
) -> None:
    report = json.loads((finished_run.output / "iteration-00" / "reward" / "held-out.json").read_text(encoding="utf-8"))
    source = {case.patient_id for case in find_cases(DataSettings(path=simulated_echo / "a"))}
    assert set(report["training_patients"]) | set(report["validation_patients"]) <= source


def test_no_patient_is_on_both_sides_of_a_reward_training(finished_run: AdaptConfig) -> None:
    """Neither training and validation, nor the held-out network and the ensemble; in no iteration and over all."""
    trained: dict[str, set[str]] = {}
    held_out: dict[str, set[str]] = {}
    for iteration in range(finished_run.iterations):
        folder = finished_run.output / f"iteration-{iteration:02d}" / "reward"
        reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
        assert set(reports) == {"held-out", "member-0", "member-1"}
        for name, report in reports.items():
            training, validation = set(report["training_patients"]), set(report["validation_patients"])
            assert training
            assert validation
            # A network goes on from that of the iteration before.
            trained[name] = trained.get(name, set()) | training
            held_out[name] = held_out.get(name, set()) | validation
    for name in trained:
        assert not trained[name] & held_out[name]
    of_network = {name: trained[name] | held_out[name] for name in trained}
    assert not of_network["held-out"] & (of_network["member-0"] | of_network["member-1"])


def test_ground_truth_of_the_target_changes_nothing(
    simulated_echo: Path, source_model: Path, finished_run: AdaptConfig, tmp_path: Path
) -> None:
    """A run on target images whose masks are missing ends with the same weights."""
    echo = tmp_path / "echo"
    shutil.copytree(simulated_echo, echo)
    shutil.rmtree(echo / "b" / "labels")
    config = tiny_config(echo, source_model, tmp_path / "run")
    adapt(config, resume=False, progress=quiet)
    assert final_hashes(config.output) == final_hashes(finished_run.output)


def test_how_convolutions_choose_their_algorithm_is_left_as_it_was(
    simulated_echo: Path, source_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stable-baselines3 sets it for the whole process."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    config = tiny_config(
        simulated_echo, source_model, tmp_path / "run", iterations=1, ppo=PPOSettings(updates=1, n_envs=2)
    )
    adapt(config, resume=False, progress=quiet)
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic


def test_the_source_segmenter_is_never_written(finished_run: AdaptConfig, source_model: Path) -> None:
    before = hash_folder(source_model)
    assert before == hash_folder(finished_run.segmenter.folder)
    weights = load_file(source_model / "weights.safetensors")
    adapted = load_file(finished_run.output / "model" / "weights.safetensors")
    assert weights.keys() == adapted.keys()


STAGES = [
    "shape_prior",
    "fine-tuning",
    "actions/00-source-000006",
    "iteration-00/reward/held-out",
    "iteration-00/ppo/00002",
    "iteration-00/candidates/00002",
    "iteration-00/selection.json",
    "iteration-01/ppo/00004",
    "model",
]
"""What a run leaves, in the order in which it does."""


# Ten starts in a row.
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_after_each_stage_resumes_to_the_result_of_an_uninterrupted_one(
    simulated_echo: Path, source_model: Path, finished_run: AdaptConfig, tmp_path: Path
) -> None:
    """SIGKILL as soon as a stage has left its result, then resume in a new process, which the next stage ends."""
    config = tiny_config(simulated_echo, source_model, tmp_path / "run")
    settings = tmp_path / "adapt.yaml"
    settings.write_text(dump_config(config))
    for number, stage in enumerate(STAGES):
        name = f"{stage}.safetensors" if stage.startswith("actions") else stage
        assert not (config.output / name).exists(), f"{stage} was there before its turn"
        resumed = ["--resume"] if number else []
        kill_when_there(config.output / name, start_command("adapt", settings, *resumed, folder=tmp_path))
        assert same_content(config.output / name, finished_run.output / name), f"{stage} is another one"
    torch.set_num_threads(1)
    adapt(config, resume=True, progress=quiet)
    assert final_hashes(config.output) == final_hashes(finished_run.output)


def kill_when_there(awaited: Path, process: BaseProcess) -> None:
    """Kills a process as soon as it has left a result."""
    deadline = time.monotonic() + 200
    try:
        while not awaited.exists():
            assert process.is_alive() or awaited.exists(), f"the run ended before {awaited}"
            assert time.monotonic() < deadline, f"no {awaited}"
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()


def same_content(path: Path, other: Path) -> bool:
    if path.is_dir():
        return hash_folder(path) == hash_folder(other)
    return path.read_bytes() == other.read_bytes()


def test_ctrl_c_leaves_a_run_that_resumes(
    simulated_echo: Path, source_model: Path, finished_run: AdaptConfig, tmp_path: Path
) -> None:
    config = tiny_config(simulated_echo, source_model, tmp_path / "run")

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("PPO 1") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(config, resume=False, progress=interrupt)
    adapt(config, resume=True, progress=quiet)
    assert final_hashes(config.output) == final_hashes(finished_run.output)


def test_a_critic_of_a_resumed_run_learns_as_that_of_an_uninterrupted_one(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    """Also from a checkpoint that does not say how fast."""
    straight, resumed = (
        tiny_config(
            simulated_echo,
            source_model,
            tmp_path / name,
            iterations=1,
            fine_tuning=FineTuningSettings(steps=0),
            ppo=PPOSettings(updates=4, n_envs=4, eval_every=2, baseline="critic", critic_learning_rate=0.05),
        )
        for name in ("straight", "resumed")
    )
    adapt(straight, resume=False, progress=quiet)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("PPO 1") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(resumed, resume=False, progress=interrupt)
    description = resumed.output / "iteration-00" / "ppo" / "00002" / "ppo.json"
    content = json.loads(description.read_text(encoding="utf-8"))
    assert content["settings"].pop("critic_learning_rate") == 0.05
    assert content["autocast"] is False
    description.write_text(json.dumps(content))
    adapt(resumed, resume=True, progress=quiet)
    last = Path("iteration-00") / "ppo" / "00004"
    assert hash_folder(resumed.output / last) == hash_folder(straight.output / last)


def test_a_critic_takes_patches_that_it_cannot_halve(simulated_echo: Path, source_model: Path, tmp_path: Path) -> None:
    """18 pixels are no multiple of 4; patches of other tools have such sides."""
    schema = TorchModuleAdapter.load(source_model).schema
    TorchModuleAdapter.build_unet(TINY, schema, PreprocessingSettings(size=(18, 18))).export(tmp_path / "segmenter")
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = tiny_config(
        simulated_echo,
        tmp_path / "segmenter",
        tmp_path / "run",
        iterations=1,
        anatomy=str(lenient),
        fine_tuning=FineTuningSettings(steps=0),
        reward=RewardSettings(network=NetworkSettings(channels=(4, 8, 8)), ensemble=1, steps=1, validate_every=1),
        ppo=PPOSettings(updates=1, n_envs=2, baseline="critic"),
    )
    assert adapt(config, resume=False, progress=quiet).model.exists()


def test_source_free_runs_too(simulated_echo: Path, source_model: Path, tmp_path: Path) -> None:
    # The tiny model makes no mask that a strict profile would call valid.
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = tiny_config(
        simulated_echo,
        source_model,
        tmp_path / "run",
        source=None,
        iterations=1,
        anatomy=str(lenient),
        selection={"target_fraction": 0.3},
        collect=CollectSettings(source_images=1, target_images=40, actions_per_image=3),
    )
    run = adapt(config, resume=False, progress=quiet)
    report_run(run, config, quiet)
    assert "nothing is known about the gain" in run.report.read_text(encoding="utf-8")
    assert not list(run.actions.glob("*source*"))


def test_starting_twice_needs_resume(finished_run: AdaptConfig) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        adapt(finished_run, resume=False, progress=quiet)


def test_resuming_with_other_settings_names_them(finished_run: AdaptConfig) -> None:
    with pytest.raises(ConfigError, match="seed"):
        adapt(finished_run.model_copy(update={"seed": 5}), resume=True, progress=quiet)


def test_a_folder_with_other_things_is_not_touched(simulated_echo: Path, source_model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not empty"):
        adapt(tiny_config(simulated_echo, source_model, tmp_path), resume=False, progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_predictions_lie_on_the_grid_of_the_image(
    finished_run: AdaptConfig, simulated_echo: Path, tmp_path: Path
) -> None:
    from medfm_rl.data.images import read_image

    files = find_cases(DataSettings(path=simulated_echo / "b"))[:2]
    assert predict(load_model(finished_run.output, "cpu"), files, tmp_path, quiet) == []
    for file in files:
        case = file.read()
        reward, geometry = read_image(tmp_path / "rewards" / f"{file.case_id}.nii.gz")
        assert geometry.matches(case.geometry)
        assert reward.shape[1:] == case.shape
        assert 0 <= reward.min() <= reward.max() <= 1


def test_one_broken_file_does_not_stop_the_others(
    finished_run: AdaptConfig, simulated_echo: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((simulated_echo / "b" / "images").iterdir())[:2]:
        shutil.copy(path, images)
    (images / "broken_1.nii.gz").write_bytes(b"")
    model = load_model(finished_run.output, "cpu")
    problems = predict(model, find_cases(DataSettings(path=images)), tmp_path / "out", quiet)
    assert len(problems) == 1
    assert "broken_1.nii.gz: the file is empty" in problems[0]
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2


def test_nothing_but_broken_files_is_an_error(finished_run: AdaptConfig, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match="no case could be segmented"):
        predict(
            load_model(finished_run.output, "cpu"), find_cases(DataSettings(path=tmp_path)), tmp_path / "out", quiet
        )


def test_reward_maps_of_batch_mates_do_not_change_each_other(finished_run: AdaptConfig) -> None:
    """Frozen and in evaluation mode, whatever `train` is told."""
    ensemble = load_model(finished_run.output, "cpu").reward
    assert ensemble is not None
    ensemble.train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 32, 32, generator=generator)
    actions = torch.randint(4, (3, 32, 32), generator=generator)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    together = ensemble(images, actions)
    alone = ensemble(images[:1], actions[:1])
    assert np.allclose(together[0].numpy(), alone[0].numpy(), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state_dict().items())


@pytest.mark.parametrize("with_source", [True, False])
def test_measuring_writes_nothing_and_draws_nothing(
    simulated_echo: Path, source_model: Path, tmp_path: Path, with_source: bool
) -> None:
    changes = {} if with_source else {"source": None}
    config = tiny_config(simulated_echo, source_model, tmp_path / "run", **changes)
    segmenter = load_segmenter(config.segmenter).eval()
    before, weights = torch.get_rng_state(), hash_folder(source_model)
    costs, amounts = measure(config, quiet)
    footprint = measure_footprint(config, segmenter, quiet)
    assert torch.equal(torch.get_rng_state(), before)
    assert hash_folder(source_model) == weights
    assert not list(tmp_path.iterdir())
    assert (amounts.target + amounts.selection, amounts.source) == (24, 24 if with_source else 0)
    assert footprint.patches == (amounts.target, amounts.selection, amounts.source)
    assert 0 < footprint.policy.recomputed <= footprint.policy.kept
    assert 0 < footprint.packed_mask < footprint.packed_image[1] < footprint.packed_image[0]
    values = [*costs.fine_tuning, costs.collect[1], costs.shape_prior, costs.reward_step, costs.ppo, costs.forward]
    assert all(0 < value < 60 for value in values)
    assert (costs.collect[0] > 0) == with_source


def test_a_run_with_a_limit_of_time_says_what_was_lowered_and_goes_on_by_the_file_as_it_was_written(
    simulated_echo: Path, source_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of PPO takes ten minutes here, and everything else no time."""
    costs = UnitCosts(0, 0, 0, 0, (0, 0), (0, 0), 0, 0, 0, 600, None)
    amounts = Amounts(16, 8, 24, 48, 24, 0, (1, 1024), False)
    monkeypatch.setattr(look_ahead, "measure", lambda *_: (costs, amounts))
    ppo = PPOSettings(updates=12, n_envs=2, n_epochs=1, eval_every=12)
    config = tiny_config(simulated_echo, source_model, tmp_path / "run", iterations=1, ppo=ppo)
    with pytest.raises(ConfigError, match=r"--max-minutes 50: .* about 2 h|--max-minutes 50: .* needs about 1\.7 h"):
        adapt(config, progress=quiet, max_minutes=50)
    assert not (tmp_path / "run").exists()

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("PPO"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(config, progress=interrupt, max_minutes=110)
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "for --max-minutes 110: ppo.updates is 11 in place of 12" in log
    assert "expected on this machine, from a few measured steps: about 1.8 h (PPO 1.8 h)" in log
    with pytest.raises(ConfigError, match="was started with 110"):
        adapt(config, resume=True, progress=quiet, max_minutes=60)
    run = adapt(config, resume=True, progress=quiet)
    assert settings_of_run(config).ppo.updates == load_config(run.config_file, AdaptConfig).ppo.updates == 11
    assert [path.name for path in sorted(run.checkpoints(0).glob("*.json"))] == ["00011.json"]


def test_the_log_of_a_run_has_losses_rewards_and_scores(finished_run: AdaptConfig) -> None:
    log = (finished_run.output / "log.txt").read_text(encoding="utf-8")
    for told in (
        r"fine-tuning: step 2 of 2: loss on labelled images [\d.]+, target [\d.]+",
        r"reward network held-out: step 2 of 4: loss [\d.]+, on held-out patients [\d.]+",
        r"reward network member-1: temperature [\d.]+",
        r"PPO: update 4 of 4: reward [\d.]+, KL to where PPO started [\d.]+",
        r"selection: source: rules [\d.]+ \([+-][\d.]+\), views .*held-out reward [\d.]+ \([+-][\d.]+\)",
        r"selection: iteration-0\d/candidates/00002 \(to be beaten\): ",
        r"selection: \S+ is taken",
    ):
        assert re.search(rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {told}", log, re.MULTILINE), told
    assert "expected on this machine" not in log
