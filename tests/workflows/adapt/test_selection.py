from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_runs import TINY, tiny_config, train_tiny_source
from torch import Tensor, nn

from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    FineTuningSettings,
    NetworkSettings,
    PPOSettings,
    RewardSettings,
    SelectionSettings,
    SourceTrainingSettings,
)
from medfm_rl.workflows.adapt.final_report import read_decision
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.adapt.selection import Candidate, RatedMasks, Selection, paired_ratings, rate_masks, select
from medfm_rl.workflows.training_images import load_images


def images_of(*patients: str) -> ImageSet:
    return ImageSet(torch.zeros(len(patients), 1, 4, 4), tuple(map(str, range(len(patients)))), patients)


def choose(
    names: list[str], scores: list[np.ndarray], images: ImageSet, confidence: float, margin: float, incumbent: str
) -> Selection:
    """Of policies whose masks have every structure: the incumbent has the same scores beside each of them."""
    own = scores[names.index(incumbent)]
    return select(names, [(own, score) for score in scores], images, confidence, margin, incumbent)


TEN = images_of(*[f"p{i}" for i in range(10)])
SOURCE = np.linspace(0.5, 0.8, 10)


def test_a_gain_within_the_margin_does_not_count() -> None:
    """Sure as it is: what PPO makes pleases the judge a little in any case."""
    names, scores = ["source", "warm", "ppo"], [SOURCE, SOURCE, SOURCE + 0.008]
    assert choose(names, scores, TEN, 0.95, 0.01, "warm").chosen == "warm"
    assert choose(names, scores, TEN, 0.95, 0.005, "warm").chosen == "ppo"
    # The source policy has to be as much better to win it back.
    assert choose(names[:2], [SOURCE + 0.008, SOURCE], TEN, 0.95, 0.01, "warm").chosen == "warm"
    assert choose(names[:2], [SOURCE + 0.012, SOURCE], TEN, 0.95, 0.01, "warm").chosen == "source"


def test_the_source_wins_where_nothing_is_better() -> None:
    assert (
        choose(["source", "a", "b"], [SOURCE, SOURCE - 0.1, SOURCE - 0.01], TEN, 0.95, 0.0, "source").chosen == "source"
    )


def test_the_source_wins_ties() -> None:
    assert choose(["source", "same"], [SOURCE, SOURCE.copy()], TEN, 0.95, 0.0, "source").chosen == "source"


def test_the_source_wins_alone() -> None:
    assert choose(["source"], [SOURCE], TEN, 0.95, 0.0, "source").chosen == "source"


def test_the_best_of_those_that_are_surely_better_wins() -> None:
    scores = [SOURCE, SOURCE + 0.02, SOURCE + 0.05, SOURCE + 0.03]
    selection = choose(["source", "a", "b", "c"], scores, TEN, 0.95, 0.0, "source")
    assert selection.chosen == "b"
    assert [candidate.name for candidate in selection.candidates] == ["source", "a", "b", "c"]
    assert [candidate.gain for candidate in selection.candidates] == pytest.approx([0, 0.02, 0.05, 0.03])
    assert [candidate.confidence for candidate in selection.candidates] == [0, 1, 1, 1]
    assert selection.candidates[2].score == pytest.approx(SOURCE.mean() + 0.05)


def test_an_incumbent_stays_unless_the_judge_is_sure() -> None:
    """The fine-tuning learnt from ground truth; a judge that mildly prefers the source does not undo it."""
    names, unsure = ["source", "warm", "ppo"], SOURCE + np.tile([0.03, -0.02], 5)
    kept = choose(names, [unsure, SOURCE, unsure - 0.001], TEN, 0.95, 0.0, "warm")
    assert (kept.chosen, kept.incumbent) == ("warm", "warm")
    assert kept.candidates[0].gain == pytest.approx(0.005)
    assert 0.5 < kept.candidates[0].confidence < 0.95
    assert choose(names, [SOURCE - 0.1, SOURCE, SOURCE + 0.01], TEN, 0.95, 0.0, "warm").chosen == "ppo"


def test_where_the_source_is_surely_better_than_the_incumbent_it_comes_back() -> None:
    """Also where another candidate scores higher still: what the judge thinks of the whole attempt is clear."""
    scores = [SOURCE, SOURCE - 0.05, SOURCE + 0.01]
    assert choose(["source", "warm", "ppo"], scores, TEN, 0.95, 0.0, "warm").chosen == "source"


def test_a_higher_mean_by_luck_does_not_win() -> None:
    """One patient gains a lot, nine lose a little: the mean is higher and hardly half of the draws are."""
    lucky = SOURCE - 0.02
    lucky[0] += 0.3
    sure = SOURCE + 0.001
    selection = choose(["source", "lucky", "sure"], [SOURCE, lucky, sure], TEN, 0.95, 0.0, "source")
    assert selection.candidates[1].score > selection.candidates[2].score
    assert selection.chosen == "sure"
    assert choose(["source", "lucky"], [SOURCE, lucky], TEN, 0.51, 0.0, "source").chosen == "lucky"


def test_many_images_of_one_patient_are_one_piece_of_evidence() -> None:
    """20 images gain and 2 lose, but the 20 are of one patient among three."""
    patients = images_of(*["p0"] * 20, "p1", "p2")
    base = np.full(22, 0.5)
    other = np.concatenate([np.full(20, 0.6), [0.45, 0.45]])
    candidate = choose(["source", "a"], [base, other], patients, 0.95, 0.0, "source").candidates[1]
    assert candidate.gain > 0
    # Draws without p0 lose: (2 / 3) ** 3 = 0.296 of them. Over images nearly every draw would gain.
    assert candidate.confidence == pytest.approx(1 - (2 / 3) ** 3, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=1, max_size=4), st.floats(0.51, 0.99))
def test_the_choice_is_deterministic_and_never_scores_below_the_source(
    rows: list[list[float]], confidence: float
) -> None:
    scores = [np.array(row) for row in rows]
    names = ["source", *map(str, range(1, len(scores)))]
    six = images_of(*"abcdef")
    first, second = (choose(names, scores, six, confidence, 0.0, "source") for _ in range(2))
    assert first == second
    chosen = next(candidate for candidate in first.candidates if candidate.name == first.chosen)
    assert chosen.score >= first.candidates[0].score
    assert chosen.name == "source" or chosen.confidence >= confidence


def test_the_decision_is_written_with_every_score(tmp_path: Path) -> None:
    selection = choose(["source", "a"], [SOURCE, SOURCE + 0.1], TEN, 0.95, 0.0, "source")
    selection.write(tmp_path / "selection.json")
    content = json.loads((tmp_path / "selection.json").read_text())
    assert content["chosen"] == "a"
    assert [candidate["name"] for candidate in content["candidates"]] == ["source", "a"]
    assert content["candidates"][1]["score"] == pytest.approx(0.75)


def test_a_decision_comes_back_as_it_was_written(tmp_path: Path) -> None:
    selection = choose(["source", "a"], [SOURCE, SOURCE + 0.1], TEN, 0.95, 0.0, "source")
    selection.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == selection


def test_a_decision_of_version_0_1_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    candidates = [
        {"name": "source", "score": 0.5, "gain": -0.1, "confidence": 0.0},
        {"name": "warm-up", "score": 0.6, "gain": 0.0, "confidence": 0.0},
    ]
    write_json(path, {"chosen": "warm-up", "incumbent": "warm-up", "candidates": candidates})
    selection = Selection.read(path)
    assert (selection.chosen, selection.incumbent) == ("fine-tuning", "fine-tuning")
    assert selection.candidates == (Candidate("source", 0.5, -0.1, 0.0), Candidate("fine-tuning", 0.6, 0.0, 0.0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 3}, "format 3 was written by a newer version of medfm-rl; update"),
        ({"chosen": "source"}, "not a decision between candidates .* resume the run"),
        ([], "not a JSON object; .* resume the run"),
    ],
)
def test_a_decision_that_cannot_be_read_is_named(tmp_path: Path, content: object, message: str) -> None:
    write_json(tmp_path / "selection.json", content)
    with pytest.raises(DataError, match=rf"selection\.json: {message}"):
        Selection.read(tmp_path / "selection.json")


class Threshold(nn.Module):
    """Class 1 where the image is positive; a dropout that evaluation must switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(torch.cat([-images, images], dim=1))


class Judge(RewardNet):
    """Calls background right with 0.5 and the structure with 0.9."""

    def reward_map(self, images: Tensor, actions: Tensor) -> Tensor:
        return torch.where(actions == 1, 0.9, 0.5)


def scores_alone(judged: RatedMasks, num_classes: int = 2) -> np.ndarray:
    return paired_ratings(judged, judged, num_classes, torch.device("cpu"))[1]


def test_judge_scores_by_hand() -> None:
    """One pixel in the middle of 9 x 9 has a region of 7 x 7: (0.9 + 48 * 0.5) / 49. No pixel: 0."""
    images = -torch.ones(20, 1, 9, 9)
    images[:19, 0, 4, 4] = 1
    scores = scores_alone(rate_masks(Threshold().train(), Judge(TINY, 2), images, torch.device("cpu")))
    assert scores.shape == (20,)
    assert scores[:19] == pytest.approx((0.9 + 48 * 0.5) / 49)
    assert scores[19] == 0


def test_a_score_does_not_depend_on_the_other_images() -> None:
    """20 images are more than one batch."""
    torch.manual_seed(0)
    images = torch.randn(20, 1, 8, 8)
    held_out = RewardNet(NetworkSettings(channels=(4, 8), residual_units=0, norm="batch"), 2).eval()
    together = scores_alone(rate_masks(Threshold(), held_out, images, torch.device("cpu")))
    alone = [scores_alone(rate_masks(Threshold(), held_out, image[None], torch.device("cpu")))[0] for image in images]
    assert together == pytest.approx(alone, abs=1e-6)


class Knowing(RewardNet):
    """Knows the truth, which is where the image is positive: 0.9 for what is right, 0.1 for what is wrong."""

    def reward_map(self, images: Tensor, actions: Tensor) -> Tensor:
        return torch.where(actions == (images[:, 0] > 0).long(), 0.9, 0.1)


class Hallucinating(Threshold):
    """As the threshold, with a false pixel in the corner of slices without the structure."""

    def forward(self, images: Tensor) -> Tensor:
        shown = images.clone()
        shown[(images > 0).flatten(1).any(dim=1).logical_not(), 0, 0, 0] = 1
        return super().forward(shown)


def test_masks_of_nothing_on_slices_without_the_structure_are_preferred_to_false_islands() -> None:
    """5 of 10 slices are empty. The corner has a region of 4 x 4: (15 * 0.9 + 0.1) / 16 with the island there."""
    images = -torch.ones(10, 1, 9, 9)
    images[5:, 0, 4, 4] = 1
    device = torch.device("cpu")
    right, false = (rate_masks(made(), Knowing(TINY, 2), images, device) for made in (Threshold, Hallucinating))
    before, after = paired_ratings(right, false, 2, device)
    assert before == pytest.approx(0.9)
    assert after == pytest.approx([(15 * 0.9 + 0.1) / 16] * 5 + [0.9] * 5)
    of_right, of_false = (paired_ratings(right, other, 2, device) for other in (right, false))
    assert select(["source", "islands"], [of_right, of_false], TEN, 0.95, 0.0, "source").chosen == "source"
    of_right, of_false = (paired_ratings(false, other, 2, device) for other in (right, false))
    selection = select(["source", "islands"], [of_right, of_false], TEN, 0.95, 0.0, "islands")
    assert selection.chosen == "source"
    # 0.8 / 16 on every second image.
    assert selection.candidates[0].gain == pytest.approx(0.025)


def test_the_largest_gain_wins_where_scores_are_over_other_structures() -> None:
    """What is worth .6 where .5 is to be beaten is more than .85 beside .8."""
    scores = [np.full(10, value) for value in (0.7, 0.8, 0.85, 0.5, 0.6)]
    pairs = [(scores[0], scores[0]), (scores[1], scores[2]), (scores[3], scores[4])]
    assert select(["source", "a", "b"], pairs, TEN, 0.95, 0.0, "source").chosen == "b"


@pytest.fixture(scope="module")
def source_model(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny_source(
        simulated_echo, tmp_path_factory.mktemp("model") / "source", SourceTrainingSettings(epochs=1, batch_size=8)
    )


def run_config(echo: Path, model: Path, output: Path, **changes: object) -> AdaptConfig:
    values: dict[str, object] = {
        "iterations": 1,
        "fine_tuning": FineTuningSettings(),
        "collect": CollectSettings(source_images=12, target_images=8, actions_per_image=2),
        "reward": RewardSettings(network=TINY, ensemble=1, steps=2, validate_every=2),
        "ppo": PPOSettings(updates=3, n_envs=2, n_epochs=1, eval_every=2),
    }
    return tiny_config(echo, model, output, **{**values, **changes})


def test_images_are_read_without_opening_a_mask(simulated_echo: Path, source_model: Path, tmp_path: Path) -> None:
    """Masks that no reader takes are beside every image."""
    from medfm_rl.adapters import TorchModuleAdapter

    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(simulated_echo / "b" / "images")
    for path in (tmp_path / "images").iterdir():
        (tmp_path / "labels" / path.name).write_bytes(b"not an image")
    files = find_cases(DataSettings(path=tmp_path))
    adapter = TorchModuleAdapter.load(source_model)
    images = load_images(files, adapter, lambda stage, done, total: None, "target")
    assert len(images) == 24
    with pytest.raises(DataError):
        files[0].read_labelled(adapter.schema)


@pytest.mark.parametrize(("updates", "eval_every", "expected"), [(3, 2, [2, 3]), (1, 5, [1])])
def test_the_last_update_competes_too(
    simulated_echo: Path,
    source_model: Path,
    tmp_path: Path,
    updates: int,
    eval_every: int,
    expected: list[int],
) -> None:
    ppo = PPOSettings(updates=updates, n_envs=2, n_epochs=1, eval_every=eval_every)
    # The untrained model makes no mask that a strict profile would call valid.
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = run_config(simulated_echo, source_model, tmp_path / "run", ppo=ppo, anatomy=str(lenient))
    run = adapt(config, False, lambda stage, done, total: None)
    names = [candidate["name"] for candidate in json.loads(run.selection(0).read_text())["candidates"]]
    assert names == ["source", "fine-tuning", *(f"iteration-00/candidates/{step:05d}" for step in expected)]


def test_too_few_patients_to_select_on_are_told_before_anything_runs(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    """6 patients and a share of 0.1 leave one: the bootstrap over patients needs two."""
    config = run_config(
        simulated_echo, source_model, tmp_path / "run", selection=SelectionSettings(target_fraction=0.1)
    )
    with pytest.raises(DataError, match=r"6 patients.*selection\.target_fraction 0\.1.*raise the fraction"):
        adapt(config, False, lambda stage, done, total: None)
    assert not config.output.exists()


@pytest.mark.parametrize(
    ("incumbent", "chosen", "words"),
    [
        ("source", "source", "sure of none of the 2 candidates: the source model was returned unchanged"),
        (
            "iteration-00/candidates/00010",
            "source",
            "sure, in 99% of its draws, that the source model is better than the average of the weights up to update "
            "10 of PPO in iteration 1 (iteration-00/candidates/00010), by 0.0128 of its score",
        ),
        (
            "fine-tuning",
            "fine-tuning",
            "the policy after the fine-tuning was returned: the held-out reward network was sure of none of the 2",
        ),
        (
            "fine-tuning",
            "iteration-00/candidates/00010",
            "the held-out reward network chose the average of the weights up to update 10",
        ),
    ],
)
def test_the_decision_in_words_says_why(tmp_path: Path, incumbent: str, chosen: str, words: str) -> None:
    run = RunFolder(tmp_path)
    candidates = (
        Candidate("source", 0.5, 0.0128, 0.99),
        Candidate("fine-tuning", 0.5, 0.0, 0.0),
        Candidate("iteration-00/candidates/00010", 0.5, 0.0, 0.0),
    )
    Selection(chosen, incumbent, candidates).write(run.selection(0))
    config = AdaptConfig(segmenter={"folder": "a"}, target={"path": "b"}, output="c")
    assert words in read_decision(run, config)
