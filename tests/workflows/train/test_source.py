from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import hash_folder
from medfm_rl.data.images import write_image
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ConfigError, DataError, ModelError, TrackingError, UserError
from medfm_rl.metrics.overlap import dice
from medfm_rl.progress import Progress
from medfm_rl.reports import training as training_report
from medfm_rl.runs.inputs import hash_labelled
from medfm_rl.settings import (
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    SourceTrainingSettings,
    TrackingSettings,
    TrainSourceConfig,
)
from medfm_rl.structures import exclusive
from medfm_rl.types import Geometry, LabelSchema
from medfm_rl.workflows.train import checkpoint
from medfm_rl.workflows.train.source import read_record, train_source, training_folder, training_page
from medfm_rl.workflows.train.supervised import planned_validations, train_supervised

TINY = NetworkSettings(channels=(4, 8), residual_units=0)


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def draw(folder: Path, patients: int = 6, first: int = 0) -> Path:
    """Squares in noise; the files call the inner one 7 and the outer one 3."""
    for patient in range(first, first + patients):
        for frame in range(2):
            rng = np.random.default_rng([patient, frame])
            labels = np.zeros((16, 16), np.uint8)
            row, column = rng.integers(1, 6, 2)
            labels[row : row + 9, column : column + 9] = 3
            labels[row + 3 : row + 6, column + 3 : column + 6] = 7
            image = np.select([labels == 3, labels == 7], [100, 200], 20) + rng.normal(0, 8, labels.shape)
            for kind, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("labels", labels)):
                write_image(folder / kind / f"p{patient}_{frame}.png", pixels, Geometry.unknown(2))
    return folder


@pytest.fixture
def drawn_pictures() -> None:
    """For tests that look at the pictures."""


@pytest.fixture(autouse=True)
def blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw the page takes more time than to train the network."""
    if "drawn_pictures" not in request.fixturenames:
        monkeypatch.setattr(training_report, "encode_figure", lambda figure: "data:,")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("squares"))


def make_config(data: Path, output: Path, **changes: object) -> TrainSourceConfig:
    values: dict[str, object] = {
        "data": DataSettings(path=data),
        "structures": {"inner": 7, "outer": 3},
        "output": output,
        "network": TINY,
        "preprocessing": PreprocessingSettings(size=(16, 16)),
        "training": SourceTrainingSettings(epochs=2, learning_rate=1e-2, batch_size=4),
        "device": "cpu",
    }
    return TrainSourceConfig.model_validate({**values, **changes})


def test_a_toy_problem_is_learnt_and_unseen_patients_are_segmented(squares: Path, tmp_path: Path) -> None:
    training = SourceTrainingSettings(epochs=40, learning_rate=2e-2, batch_size=4)
    train_source(make_config(squares, tmp_path / "model", training=training), silent)
    adapter = TorchModuleAdapter.load(tmp_path / "model")
    assert adapter.schema == LabelSchema(("background", "inner", "outer"), (0, 7, 3))
    scores = []
    for file in find_cases(DataSettings(path=draw(tmp_path / "new", 3, first=100))):
        labelled = file.read_labelled(adapter.schema)
        scores.append(dice(adapter.segment(labelled.case), labelled.ground_truth, exclusive(3)))
    assert np.mean(scores, axis=0).min() > 0.85


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for _, value in sorted(load_file(folder / "weights.safetensors").items())])


def test_the_same_seed_gives_the_same_weights(squares: Path, tmp_path: Path) -> None:
    """Whatever was drawn before, and without touching the generator of the caller."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(list(tmp_path.iterdir())))
        state = torch.get_rng_state()
        train_source(make_config(squares, tmp_path / name, seed=seed), silent)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_dropout_is_drawn_from_the_seed_alone_and_nobody_else_draws_otherwise(squares: Path, tmp_path: Path) -> None:
    network = NetworkSettings(channels=(4, 8), residual_units=0, dropout=0.3)
    for name, state in (("first", 1), ("second", 2)):
        torch.manual_seed(state)
        expected = torch.rand(())
        torch.manual_seed(state)
        train_source(make_config(squares, tmp_path / name, network=network, training={"epochs": 2}), silent)
        assert torch.rand(()) == expected
    assert torch.equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


def interrupt_at(step: int) -> Progress:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("training the") and done == step:
            raise KeyboardInterrupt

    return interrupt


def test_an_interrupted_training_leaves_no_model(squares: Path, tmp_path: Path) -> None:
    config = make_config(squares, tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        train_source(config, interrupt_at(1))
    assert not (tmp_path / "model").exists()
    train_source(config, silent)
    assert (tmp_path / "model" / "segmenter.json").exists()


def test_a_resumed_training_ends_as_one_that_was_never_interrupted(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in the middle of a pass, with dropout and augmentation, and a best validation before the checkpoint."""
    monkeypatch.setattr(checkpoint, "_SECONDS", 0)
    caplog.set_level("INFO", "medfm_rl")
    network = NetworkSettings(channels=(4, 8), residual_units=0, dropout=0.3)
    training = SourceTrainingSettings(steps=14, batch_size=4, learning_rate=0.1, validate_every=2)
    whole = make_config(squares, tmp_path / "whole", network=network, training=training)
    train_source(whole, silent)
    config = whole.model_copy(update={"output": tmp_path / "killed"})
    for step in (5, 10):
        torch.manual_seed(step)
        with pytest.raises(KeyboardInterrupt):
            train_source(config, interrupt_at(step))
    train_source(config, silent)
    assert "going on after step 8 of an interrupted training" in caplog.text
    assert hash_folder(tmp_path / "killed") == hash_folder(tmp_path / "whole")
    assert sorted(path.name for path in training_folder(config.output).iterdir()) == ["log.txt", "report.html"]


@pytest.mark.parametrize(
    ("changes", "message"), [({"seed": 1}, "other seed"), ({"structures": {"inner": 3, "outer": 7}}, "structures")]
)
def test_an_interrupted_training_is_not_gone_on_with_by_other_settings(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(checkpoint, "_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        train_source(make_config(squares, tmp_path / "model"), interrupt_at(4))
    with pytest.raises(ConfigError, match=rf"checkpoint\.safetensors: .*{message}.*delete the file"):
        train_source(make_config(squares, tmp_path / "model", **changes), silent)


def test_a_broken_checkpoint_is_named(squares: Path, tmp_path: Path) -> None:
    config = make_config(squares, tmp_path / "model")
    training_folder(config.output).mkdir()
    (training_folder(config.output) / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"checkpoint\.safetensors: not the checkpoint .*delete the file"):
        train_source(config, silent)


@pytest.mark.parametrize(
    ("settings", "images", "expected"),
    [
        ({"steps": 700, "batch_size": 16}, 45, [*range(3, 700, 3), 700]),
        ({"steps": 700, "batch_size": 16}, 16000, list(range(35, 701, 35))),
        ({"steps": 7, "batch_size": 16, "validate_every": 3}, 45, [3, 6, 7]),
        ({"epochs": 3, "batch_size": 8}, 20, [3, 6, 9]),
        ({"steps": 1}, 5, [1]),
    ],
)
def test_a_training_has_as_many_steps_as_it_says_and_validates_at_each_pass_or_twenty_times(
    settings: dict[str, int], images: int, expected: list[int]
) -> None:
    assert planned_validations(SourceTrainingSettings.model_validate(settings), images) == expected


def test_steps_and_epochs_are_not_both_given() -> None:
    with pytest.raises(ValidationError, match="keep steps"):
        SourceTrainingSettings(steps=5, epochs=2)
    with pytest.raises(ValidationError, match="steps: 700"):
        SourceTrainingSettings(steps=None)
    epochs = SourceTrainingSettings(epochs=2)
    assert SourceTrainingSettings.model_validate(epochs.model_dump()) == epochs
    assert (SourceTrainingSettings().steps, epochs.steps) == (700, None)


def test_structures_are_those_that_the_description_of_the_data_names(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 3)
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "core": 7, "rim": 3}}))
    adapter = train_source(make_config(data, tmp_path / "model", structures=None), silent)
    assert adapter.schema == LabelSchema(("background", "core", "rim"), (0, 7, 3))
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["structures"] == {"background": 0, "core": 7, "rim": 3}


def test_without_a_description_the_line_to_write_is_shown_and_works(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="integers 0, 3, 7") as refused:
        train_source(make_config(squares, tmp_path / "model", structures=None), silent)
    line = str(refused.value).splitlines()[-1].strip()
    assert line == "structures: {NAME-1: 3, NAME-2: 7}"
    adapter = train_source(make_config(squares, tmp_path / "model", **yaml.safe_load(line)), silent)
    assert adapter.schema.structures == ("NAME-1", "NAME-2")


@pytest.mark.usefixtures("drawn_pictures")
def test_the_held_out_patients_are_measured_while_it_runs_and_at_the_end(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "medfm_rl")
    training = SourceTrainingSettings(steps=40, learning_rate=2e-2, batch_size=4)
    train_source(make_config(squares, tmp_path / "model", training=training), silent)
    told = r"step 20 of 40: training loss [\d.]+, validation loss [\d.]+, validation Dice inner [\d.]+, outer"
    assert re.search(told, caplog.text)
    assert "on 1 held-out patient alone" in caplog.text
    log = (training_folder(tmp_path / "model") / "log.txt").read_text()
    assert "step 40 of 40" in log
    found = read_record(tmp_path / "model")["training"]
    assert (found["steps"], found["images"], found["patients"]) == (40, 10, 5)
    assert (found["held_out_images"], found["held_out_patients"]) == (2, 1)
    assert [item["step"] for item in found["history"]] == list(range(2, 41, 2))
    assert found["kept_step"] == min(found["history"], key=lambda item: item["loss"])["step"]
    assert set(found["held_out_dice"]) == {"inner", "outer", "mean"}
    # The network sees these images in their own pixels, so both ways to measure agree.
    kept = next(item for item in found["history"] if item["step"] == found["kept_step"])
    assert found["held_out_dice"]["outer"]["mean"] == pytest.approx(kept["dice"]["outer"], abs=1e-6)
    page = training_page(tmp_path / "model").read_text()
    assert found["summary"] in page.replace("&#39;", "'")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 4
    assert "SIMULATED" not in page


def test_batch_normalisation_of_a_single_pixel_is_refused_with_the_setting(squares: Path, tmp_path: Path) -> None:
    network = NetworkSettings(channels=(4, 4, 4, 4, 4), residual_units=0, norm="batch")
    training = SourceTrainingSettings(steps=2, batch_size=3)
    with pytest.raises(ConfigError, match=r"network\.norm: instance"):
        train_source(make_config(squares, tmp_path / "model", network=network, training=training), silent)


def test_a_folder_in_use_is_refused_and_left_alone(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(ConfigError, match=f"output {tmp_path}: the folder is not empty"):
        train_source(make_config(squares, tmp_path), silent)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def without_a_mask(data: Path) -> None:
    (data / "labels" / "p0_0.png").unlink()


def with_a_strange_label(data: Path) -> None:
    strange = np.zeros((16, 16), np.uint8)
    strange[3:5] = 9
    write_image(data / "labels" / "p0_0.png", strange, Geometry.unknown(2))


def with_a_small_mask(data: Path) -> None:
    write_image(data / "labels" / "p0_0.png", np.eye(8, dtype=np.uint8), Geometry.unknown(2))


def with_one_patient(data: Path) -> None:
    for path in [*data.glob("*/p[1-9]_*")]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_mask, r"data: .*no mask for .*p0_0\.png"),
        (with_a_strange_label, r"labels/p0_0\.png: label 9 .*7 inner"),
        (with_a_small_mask, r"labels/p0_0\.png: the mask has size \(8, 8\)"),
        (with_one_patient, "at least 2 patients"),
    ],
)
def test_data_that_cannot_teach_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 3)
    damage(data)
    with pytest.raises(DataError, match=message):
        train_source(make_config(data, tmp_path / "model"), silent)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"structures": {}}, ConfigError, "structures: .*at least one"),
        ({"structures": {"a": 1, "b": 1}}, ConfigError, "structures: .*distinct"),
        ({"structures": {"a": 300}}, ConfigError, "structures: .*255"),
        ({"preprocessing": PreprocessingSettings(size=(15, 16))}, ModelError, r"preprocessing\.size .*multiple of 2"),
        ({"in_channels": 3}, DataError, "1 channels and the segmenter takes 3"),
        ({"preprocessing": PreprocessingSettings(size=(8, 8, 8))}, DataError, "2-D and the segmenter 3-D"),
    ],
)
def test_settings_that_cannot_work_are_named(
    squares: Path, tmp_path: Path, changes: dict[str, object], error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_source(make_config(squares, tmp_path / "model", **changes), silent)
    assert not (tmp_path / "model").exists()


def test_the_best_epoch_is_kept_and_not_the_last() -> None:
    """Validation labels contradict training: every epoch is worse than the one before, so the first is kept."""
    from monai.losses import DiceCELoss

    torch.manual_seed(0)
    adapter = TorchModuleAdapter.build_unet(
        TINY, LabelSchema.from_structures({"a": 1}), PreprocessingSettings(size=(16, 16))
    )
    images = torch.randn(8, 1, 16, 16)
    labels = (images[:, 0] > 0).to(torch.uint8)
    opposite = (images, 1 - labels)
    settings = SourceTrainingSettings(epochs=6, batch_size=8, learning_rate=1e-2, augment=False)
    history = train_supervised(adapter, (images, labels), opposite, settings, 0, torch.device("cpu"))
    losses = [item.loss for item in history]
    assert losses[-1] > min(losses)
    assert history[-1].training_loss < history[0].training_loss
    with torch.no_grad():
        kept = DiceCELoss(to_onehot_y=True, softmax=True)(adapter(images), opposite[1][:, None])
    assert kept.item() == pytest.approx(min(losses), rel=1e-5)
    assert not adapter.training


def test_a_loss_that_is_not_finite_stops_and_names_the_setting() -> None:
    adapter = TorchModuleAdapter.build_unet(
        TINY, LabelSchema.from_structures({"a": 1}), PreprocessingSettings(size=(16, 16))
    )
    data = (torch.full((2, 1, 16, 16), torch.nan), torch.zeros(2, 16, 16, dtype=torch.uint8))
    with pytest.raises(FloatingPointError, match=r"training\.learning_rate"):
        train_supervised(adapter, data, data, SourceTrainingSettings(augment=False), 0, torch.device("cpu"))


def test_a_source_model_says_what_it_was_trained_with(squares: Path, tmp_path: Path) -> None:
    config = make_config(squares, tmp_path / "model", seed=3, training=SourceTrainingSettings(epochs=1))
    train_source(config, silent)
    text = (tmp_path / "model" / "training.json").read_text()
    record = json.loads(text)
    assert record["settings"]["seed"] == 3
    assert record["settings"]["training"]["epochs"] == 1
    assert record["environment"]["torch"] == importlib.metadata.version("torch")
    data = record["data"]
    assert (data["cases"], data["patients"], data["path"]) == (12, 6, str(squares.resolve()))
    assert data["hash"] == hash_labelled(squares, find_cases(config.data), silent).hash
    assert "p0_0" not in text
    # The same again is the same, to the last byte.
    train_source(config.model_copy(update={"output": tmp_path / "again"}), silent)
    assert hash_folder(tmp_path / "again") == hash_folder(tmp_path / "model")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_source_model_is_recorded_in_mlflow_where_that_is_asked_for(squares: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracking = TrackingSettings(uri="auto", experiment="tests")
    config = make_config(squares, tmp_path / "model", tracking=tracking, training=SourceTrainingSettings(epochs=1))
    train_source(config, silent)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    record = client.get_run((tmp_path / "model" / "mlflow_run_id").read_text().strip())
    assert record.info.run_name == "model"
    assert record.data.params["training.epochs"] == "1"
    assert record.data.params["data.source.cases"] == "12"
    stored = {item.path for item in client.list_artifacts(record.info.run_id)}
    assert {"training.json", "segmenter.json", "weights.safetensors"} <= stored


def test_a_store_that_is_none_is_named_before_anything_is_trained(squares: Path, tmp_path: Path) -> None:
    config = make_config(squares, tmp_path / "model", tracking=TrackingSettings(uri="nowhere"))
    with pytest.raises(TrackingError, match=r"tracking\.uri nowhere: does not say what it is"):
        train_source(config, lambda stage, *_: pytest.fail(stage))
