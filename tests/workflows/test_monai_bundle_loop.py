"""The loop on a MONAI bundle, through the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support.choosing import keep_the_incumbent

from medfm_rl import cli
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import find_cases
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig, DataSettings
from medfm_rl.workflows.adapt.choosing import choice
from medfm_rl.workflows.adapt.context import Domains, RunContext
from medfm_rl.workflows.adapt.stages import collection


def write_bundle(folder: Path) -> Path:
    """A bundle of 2-D images with three structures, made as one of MONAI's zoo."""
    from monai.networks.nets import UNet

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    network = {"spatial_dims": 2, "in_channels": 1, "out_channels": 4, "channels": [4, 8], "strides": [2]}
    keys = {"keys": "image"}
    config = {
        "network": {"_target_": "UNet", **network},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", **keys},
                {"_target_": "EnsureChannelFirstd", **keys},
                {"_target_": "Resized", **keys, "spatial_size": [32, 32]},
                {"_target_": "NormalizeIntensityd", **keys},
            ],
        },
        "inferer": {"_target_": "SimpleInferer"},
    }
    names = {"0": "background", "1": "LV", "2": "MYO", "3": "LA"}
    metadata = {
        "network_data_format": {
            "inputs": {"image": {"num_channels": 1, "spatial_shape": [32, 32]}},
            "outputs": {"pred": {"num_channels": 4, "channel_def": names}},
        }
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(0)
    torch.save(UNet(**network).state_dict(), folder / "models" / "model.pt")
    return folder


class Oracle(torch.nn.Module):
    """Gives the images that it knows their masks."""

    def __init__(self, images: torch.Tensor, masks: torch.Tensor) -> None:
        super().__init__()
        self.images, self.masks = images, masks

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = [int((self.images - image).abs().flatten(1).sum(dim=1).argmin()) for image in images]
        return 10.0 * torch.nn.functional.one_hot(self.masks[rows].long(), 4).movedim(-1, 1)


@pytest.mark.filterwarnings("ignore")
def test_anatomy_rules_see_the_masks_of_a_bundle_upright(
    simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle has columns first; there the atrium lies beside the ventricle, and no mask was taken for valid."""
    settings = {
        "segmenter": {"kind": "monai-bundle", "folder": str(write_bundle(tmp_path / "bundle"))},
        "source": {"path": str(simulated_echo / "a")},
        "target": {"path": str(simulated_echo / "b")},
        "output": str(tmp_path / "run"),
        "anatomy": "echo_apical",
        "tracking": {"uri": None},
        "device": "cpu",
    }
    config = AdaptConfig.model_validate(settings)
    stage = RunContext.of_run(config, RunFolder(config.output), lambda *_: None)
    domains = stage.load_domains()
    assert domains.source is not None
    images, masks = domains.source
    files = find_cases(DataSettings(path=simulated_echo / "a"))
    truths = [file.read_labelled(stage.source_policy.schema).ground_truth for file in files]
    valid = [mask for mask, truth in zip(masks, truths, strict=True) if stage.anatomy.is_valid(truth)]
    assert len(valid) > 0.5 * len(masks)
    stage.source_policy.network = Oracle(images.images, masks)
    seen: list[torch.Tensor] = []

    def stop(given: torch.Tensor, *_: object) -> None:
        seen.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "train_shape_prior", stop)
    with pytest.raises(KeyboardInterrupt):
        collection.shape_prior(stage, Domains(images, domains.selection, None))
    assert torch.equal(seen[0], torch.stack(valid))


@pytest.mark.filterwarnings("ignore")
def test_a_bundle_goes_in_and_an_adapted_bundle_comes_out(
    simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    bundle = write_bundle(tmp_path / "bundle")
    before = hash_folder(bundle)
    settings = {
        "segmenter": {"kind": "monai-bundle", "folder": str(bundle)},
        "source": {"path": str(simulated_echo / "a")},
        "target": {"path": str(simulated_echo / "b")},
        "output": str(tmp_path / "run"),
        "fine_tuning": {"steps": 2, "batch_size": 2},
        "collect": {"source_images": 12, "target_images": 4, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": {"channels": [4, 8], "residual_units": 0}, "ensemble": 1, "steps": 2},
        "ppo": {"updates": 1, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(settings))
    # The judge learnt nothing in two steps; what it would choose is not asked here.
    monkeypatch.setattr(choice, "select", keep_the_incumbent)
    assert call("adapt", tmp_path / "adapt.yaml") == 0, capsys.readouterr().err
    assert call("export", tmp_path / "run", "--to", tmp_path / "out") == 0
    assert "(monai-bundle)" in capsys.readouterr().out
    old, new = (torch.load(place / "models" / "model.pt", weights_only=True) for place in (bundle, tmp_path / "out"))
    assert old.keys() == new.keys()
    assert not any(torch.equal(old[name], new[name]) for name in old)
    assert hash_folder(bundle) == before
    assert call("inspect", tmp_path / "out") == 0
    assert "background 0, LV 1, MYO 2, LA 3" in capsys.readouterr().out
    assert call("predict", tmp_path / "run", simulated_echo / "b", tmp_path / "masks") == 0
    assert len(list((tmp_path / "masks" / "rewards").iterdir())) == 24
