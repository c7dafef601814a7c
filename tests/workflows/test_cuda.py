"""The whole loop on a GPU, beside the CPU where both can be compared; skipped where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tiny_runs import TINY, tiny_config, train_tiny_source

from medfm_rl.data.images import read_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.networks import build_unet
from medfm_rl.policies import DensePPO
from medfm_rl.quality.baselines import (
    AugmentationAgreement,
    EnsembleAgreement,
    MaxSoftmax,
    MeanEntropy,
    SoftDiceConfidence,
)
from medfm_rl.quality.model import Targets
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.runs.finished import load_model, load_run
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    CorrectionSettings,
    DataSettings,
    PPOHyperparameters,
    PPOSettings,
    RewardSettings,
    SourceTrainingSettings,
)
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import ScoreRequest, score

pytestmark = pytest.mark.cuda
BATCH_NORM = TINY.model_copy(update={"norm": "batch"})


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def source_model(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "source"
    training = SourceTrainingSettings(epochs=8, batch_size=8, learning_rate=1e-2)
    return train_tiny_source(simulated_echo, folder, training, BATCH_NORM, "cuda")


def config_of(echo: Path, model: Path, output: Path, **changes: object) -> AdaptConfig:
    return tiny_config(echo, model, output, **{"iterations": 1, "device": "cuda", **changes})


@pytest.fixture(scope="module")
def run(simulated_echo: Path, source_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_of(simulated_echo, source_model, tmp_path_factory.mktemp("cuda") / "run")
    adapt(config, resume=False, progress=quiet)
    calibration = tmp_path_factory.mktemp("calibration")
    simulate_dataset(calibration, vendor("cart"), 12, seed=1, size=(32, 32), first=201)
    calibrate(load_run(config.output, "cuda"), cases_of(calibration), CalibrateRequest(Targets(dice=0.3)), quiet)
    return config.output


def cases_of(folder: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=folder))


def test_a_run_without_a_source_and_with_a_critic(simulated_echo: Path, source_model: Path, tmp_path: Path) -> None:
    """The other branches of collecting, the fine-tuning and PPO."""
    config = config_of(
        simulated_echo,
        source_model,
        tmp_path / "run",
        source=None,
        collect=CollectSettings(target_images=24, actions_per_image=3, shard_images=6),
        reward=RewardSettings(network=TINY, ensemble=1, steps=4, validate_every=2),
        ppo=PPOSettings(updates=2, n_envs=4, eval_every=1, baseline="critic"),
    )
    assert load_model(adapt(config, resume=False, progress=quiet).path, "cpu").reward is not None


def test_a_run_that_was_killed_goes_on_and_on_another_device(
    simulated_echo: Path, source_model: Path, run: Path, tmp_path: Path
) -> None:
    for device in ("cuda", "cpu"):
        copy = tmp_path / device
        shutil.copytree(run, copy)
        for name in ("model", "iteration-00/ppo/00004", "iteration-00/candidates/00004"):
            shutil.rmtree(copy / name)
        (copy / "iteration-00" / "selection.json").unlink()
        adapt(config_of(simulated_echo, source_model, copy, device=device), resume=True, progress=quiet)
        whole, resumed = (load_file(folder / "iteration-00/ppo/00004/actor.safetensors") for folder in (run, copy))
        for name, value in whole.items():
            torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-2)


def test_masks_and_rewards_are_those_of_the_cpu(run: Path, simulated_echo: Path, tmp_path: Path) -> None:
    files = cases_of(simulated_echo / "b")
    for device in ("cpu", "cuda"):
        assert not predict(load_model(run, "cpu", device), files, tmp_path / device, quiet)
    same, difference = [], []
    for file in files:
        masks = [read_image(tmp_path / name / "labels" / f"{file.case_id}.nii.gz") for name in ("cpu", "cuda")]
        maps = [read_image(tmp_path / name / "rewards" / f"{file.case_id}.nii.gz")[0] for name in ("cpu", "cuda")]
        same.append(np.mean(masks[0][0] == masks[1][0]))
        difference.append(np.mean(np.abs(maps[0] - maps[1])))
    assert np.mean(same) > 0.999
    # Convolutions on a GPU may compute in tf32.
    assert np.mean(difference) < 0.005


def test_scores_are_those_of_the_cpu(run: Path, simulated_echo: Path, tmp_path: Path) -> None:
    files = cases_of(simulated_echo / "b")
    found: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        score(load_run(run, device), files, tmp_path / device, ScoreRequest(maker=load_model(run, "cpu")), quiet)
        found[device] = json.loads((tmp_path / device / "scores.json").read_text())["cases"]
        assert len(found[device]) == len(files)
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert one["case_id"] == other["case_id"]
        for mine, theirs in zip(one["scores"], other["scores"], strict=True):
            assert theirs["mean_reward"] == pytest.approx(mine["mean_reward"], abs=0.02)
            # A structure that the mask lacks has no predicted Dice.
            assert theirs["predicted_dice"] == pytest.approx(mine["predicted_dice"], abs=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "views"},
        {"method": "components"},
        {"method": "shape-prior"},
        {"method": "tta"},
        {"method": "tent"},
        {"method": "intent"},
        {"method": "memo"},
        {"method": "optimise"},
        {"method": "optimise", "optimise": "norm"},
        {"method": "optimise", "optimise": "norm", "objective": "ppo"},
        {"method": "optimise", "optimise": "decoder"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_every_way_to_correct_ends_with_a_mask(
    run: Path, simulated_echo: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    files = cases_of(simulated_echo / "b")[:2]
    chosen = CorrectionSettings.model_validate({"steps": 2, "seconds": 600, **settings})
    found = correct(load_run(run, "cuda"), files, tmp_path / "out", CorrectRequest(chosen, every=True), quiet)
    assert not found.problems
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2


def test_every_other_way_to_judge_a_mask_gives_about_the_number_of_the_cpu(
    run: Path, source_model: Path, simulated_echo: Path
) -> None:
    def estimates(device: str) -> list[float]:
        segmenter = load_model(run, "cpu").segmenter.to(device)
        member = load_model(source_model, "cpu").segmenter.to(device)
        structures = segmenter.schema.classes
        sample = segmenter.preprocess(cases_of(simulated_echo / "b")[0].read())
        image = sample.image.to(device)
        with torch.no_grad():
            action = segmenter(image[None])[0].argmax(dim=0)
        estimators = [
            MeanEntropy(segmenter),
            MaxSoftmax(segmenter),
            SoftDiceConfidence(segmenter, structures),
            AugmentationAgreement(segmenter, structures),
            EnsembleAgreement([segmenter, member], structures),
        ]
        return [estimator.estimate(image, action) for estimator in estimators]

    assert estimates("cuda") == pytest.approx(estimates("cpu"), abs=0.05)


@pytest.mark.parametrize("baseline", ["greedy", "critic"])
def test_an_update_of_ppo_is_that_of_the_cpu(baseline: str) -> None:
    """The same images, draws and weights: actions do not depend on the device."""

    def weights(device: str) -> torch.Tensor:
        torch.manual_seed(0)
        actor = build_unet(TINY, 2, 1, 3)
        critic = build_unet(BATCH_NORM, 2, 1, 1) if baseline == "critic" else None
        settings = RewardSettings(ensemble=1, network=TINY)
        reward = RewardEnsemble([RewardNet(TINY, 3)], settings).to(device)
        images = np.random.default_rng(0).normal(size=(8, 1, 32, 32)).astype(np.float32)
        ppo = DensePPO(
            SegmentationVecEnv(images, reward, 3, n_envs=4, device=device),
            actor,
            PPOHyperparameters(baseline=cast(Any, baseline)),
            critic=critic,
            device=device,
        )
        ppo.learn(4)
        return torch.cat([parameter.detach().cpu().flatten() for parameter in actor.parameters()])

    # A step of Adam is about the learning rate, 1e-4, whatever the gradient: five of them.
    first, second = weights("cpu"), weights("cuda")
    assert (first - second).abs().median() < 1e-5
