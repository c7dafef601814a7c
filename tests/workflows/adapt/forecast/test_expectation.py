from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from medfm_rl.errors import ConfigError, DataError
from medfm_rl.progress import spoken_time
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    FineTuningSettings,
    PPOSettings,
    RewardSettings,
    ShapePriorSettings,
    TorchSettings,
)
from medfm_rl.workflows.adapt.forecast.expectation import Expectation, expect, with_changes
from medfm_rl.workflows.adapt.forecast.measuring import Amounts, UnitCosts
from medfm_rl.workflows.adapt.forecast.shortening import shorten
from medfm_rl.workflows.adapt.forecast.stage_clock import StageClock, parts_of_stages

COSTS = UnitCosts(
    read=0.5,
    segment=2.0,
    assess=3.0,
    forward=0.25,
    fine_tuning=(1.0, 3.0),
    collect=(2.0, 4.0),
    shape_prior=0.1,
    reward_step=0.5,
    reward_forward=0.01,
    ppo=10.0,
    memory=1_000_000,
)
AMOUNTS = Amounts(
    target=20, selection=10, source=40, cases=70, source_cases=40, evaluation=5, patch=(2, 100), on_gpu=False
)


def settings(**changes: object) -> AdaptConfig:
    values: dict[str, object] = {
        "segmenter": TorchSettings(folder=Path("model")),
        "target": DataSettings(path=Path("target")),
        "source": DataSettings(path=Path("source")),
        "output": Path("run"),
        "fine_tuning": FineTuningSettings(steps=100, target_start=0.5),
        "collect": CollectSettings(source_images=30, target_images=10, actions_per_image=5),
        "shape_prior": ShapePriorSettings(epochs=10),
        "reward": RewardSettings(steps=200, validate_every=100, ensemble=2, validation_fraction=0.5),
        "ppo": PPOSettings(updates=20, eval_every=10),
    }
    return AdaptConfig.model_validate({**values, **changes})


def test_the_time_of_each_stage_is_its_steps_by_what_one_takes() -> None:
    stages = expect(settings(), COSTS, AMOUNTS).stages
    assert stages == pytest.approx(
        {
            "reading": 2 * 0.5 * 70,
            "shape prior": 10 * 40 * 0.1,
            # 50 steps without target images, 50 with; six times the 40 source images for the blends, 20 masks.
            "fine-tuning": 50 * 1 + 50 * 3 + (6 * 40 + 20) * 0.25,
            "collecting actions": 30 * 2 + 10 * 4,
            # Three networks of 200 steps, with half of 40 images by 5 actions seen at two validations and at the end.
            "reward network": 3 * (200 * 0.5 + 3 * 100 * 0.01),
            "PPO": 20 * 10,
            # Nobody reviewed anything.
            "comparing on reviewed patients": 0,
            # Source, fine-tuned and two averages on 10 patches and 40 source images, as they are and in 3 looks.
            "selection": 4 * (10 + 40) * (4 * 0.25 + 0.01),
            # A third of 40 cases three times, and all 70 read.
            "calibrating the quality model": 40 * 3 + 70 * 0.5,
            "evaluating": 2 * 5 * 2,
        }
    )


def test_without_a_source_nothing_of_it_is_counted() -> None:
    amounts = Amounts(20, 10, 0, 30, 0, 0, (1, 100), False)
    stages = expect(settings(source=None), COSTS, amounts).stages
    assert stages["collecting actions"] == 10 * 4
    assert stages["shape prior"] == pytest.approx(10 * 20 * 0.1)
    assert stages["evaluating"] == stages["calibrating the quality model"] == 0


def of(config: AdaptConfig) -> Expectation:
    return expect(config, COSTS, AMOUNTS)


def test_a_run_that_fits_is_left_as_it_is() -> None:
    config = settings()
    assert shorten(config, of(config).seconds / 60, of) == (config, {})


def test_settings_are_lowered_in_the_stated_order_and_only_as_far_as_needed() -> None:
    config = settings(iterations=2)
    once = of(config.model_copy(update={"iterations": 1})).seconds
    shorter, changes = shorten(config, once / 60, of)
    assert changes == {"iterations": (2, 1)}
    # PPO costs 10 s an update: three fewer are 30 s, and no other setting is touched.
    shorter, changes = shorten(config, (once - 30) / 60, of)
    assert changes == {"iterations": (2, 1), "ppo.updates": (20, 17)}
    assert (shorter.iterations, shorter.ppo.updates, shorter.reward) == (1, 17, config.reward)
    assert of(shorter).seconds <= once - 30
    assert with_changes(config, changes) == shorter


def test_what_cannot_fit_is_refused_with_what_it_needs_and_what_was_tried() -> None:
    with pytest.raises(
        ConfigError, match=r"--max-minutes 1: .* needs about \d+ min .*iterations: 1.*fine_tuning\.steps"
    ):
        shorten(settings(), 1, of)


def test_settings_below_the_least_are_not_raised() -> None:
    config = settings(ppo=PPOSettings(updates=4), fine_tuning=FineTuningSettings(steps=300))
    _, changes = shorten(config, (of(config).seconds - 100) / 60, of)
    assert set(changes) == {"fine_tuning.steps"}


def test_an_expectation_comes_back_as_it_was_written(tmp_path: Path) -> None:
    expected = Expectation({"PPO": 3.5}, 10, True, 30.0, {"ppo.updates": (40, 20)}, {"recompute": (0, 1)}, 7)
    expected.write(tmp_path / "expected.json")
    assert Expectation.read(tmp_path / "expected.json") == expected
    assert Expectation.read(tmp_path / "nothing.json") == Expectation()
    former = {"format": 2, "stages": {}, "memory": 5, "on_gpu": False, "max_minutes": None, "shortened": {}}
    (tmp_path / "expected.json").write_text(json.dumps(former))
    assert Expectation.read(tmp_path / "expected.json") == Expectation(memory=5)
    (tmp_path / "expected.json").write_text('{"format": 3, "stages": 3}')
    with pytest.raises(DataError, match="not what is expected of a run"):
        Expectation.read(tmp_path / "expected.json")


def test_what_is_lowered_and_needed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medfm_rl")
    Expectation(
        {"PPO": 600, "selection": 60},
        2_500_000_000,
        False,
        12,
        {"ppo.updates": (40, 20)},
        {"collect.shard_images": (100, 8)},
        700_000_000,
    ).tell()
    assert "for the memory of this machine: collect.shard_images is 8 in place of 100" in caplog.text
    assert "for --max-minutes 12: ppo.updates is 20 in place of 40" in caplog.text
    assert "about 11 min (PPO 10 min, selection 60 s); about 2.5 GB of memory, 0.7 GB on the disk" in caplog.text


def test_the_rest_of_a_run_is_told_by_its_pace(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine at half the speed, of which half a minute of the expected pace is not believed at once."""
    caplog.set_level(logging.INFO, "medfm_rl")
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told: list[tuple[str, int, int]] = []
    clock = StageClock(
        lambda *step: told.append(step),
        Expectation({"fine-tuning": 600.0, "reward network": 1800.0, "PPO": 1200.0}),
        {"reward network": 3},
    )
    for at, step in (
        (600, ("fine-tuning", 1, 2)),
        (1200, ("fine-tuning", 2, 2)),
        # This one stops early, which the next one says.
        (2400, ("reward network a 1/1", 3, 5)),
        (2410, ("reward network b 1/1", 1, 5)),
    ):
        now[0] = at
        clock(*step)
    # 1230 / 630 by 3000 s, and 2430 / 1230 by 2400 s.
    assert "fine-tuning took 20 min; about 1.6 h of the run left" in caplog.text
    assert "reward network a 1/1 took 20 min; about 79 min of the run left" in caplog.text
    assert len(told) == 4


def test_the_parts_of_the_stages_are_those_of_the_settings() -> None:
    parts = parts_of_stages(settings(iterations=2))
    assert parts == {
        "reading": 3,
        "comparing on reviewed patients": 2,
        "collecting actions": 4,
        "reward network": 6,
        "PPO": 2,
        "selection": 2,
    }


def test_comparing_on_reviewed_patients_takes_as_long_as_the_fine_tuning() -> None:
    stages = expect(settings(feedback={"store": "feedback.sqlite"}), COSTS, AMOUNTS).stages
    assert stages["comparing on reviewed patients"] == stages["fine-tuning"] > 0


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_time_is_spoken_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert spoken_time(seconds) == words


def test_frames_of_clips_cost_as_much_as_images_of_the_target_and_are_left_out_without_clips() -> None:
    config = settings()
    stills, clips = (expect(config, COSTS, replace(AMOUNTS, clip_frames=frames)) for frames in (0, 60))
    more = config.iterations * config.collect.clip_images * COSTS.collect[1]
    assert clips.stages["collecting actions"] - stills.stages["collecting actions"] == pytest.approx(more)
    # Of an iteration's images in PPO every other one is of the target, beside those of the source.
    shown = config.iterations * config.ppo.updates * config.ppo.n_envs / 2
    assert clips.stages["PPO"] - stills.stages["PPO"] == pytest.approx(shown * COSTS.collect[1])
    by_networks = config.model_copy(update={"ppo": config.ppo.model_copy(update={"neighbour_share": 0.0})})
    alone = expect(by_networks, COSTS, replace(AMOUNTS, clip_frames=60))
    assert alone.stages["PPO"] == stills.stages["PPO"]
