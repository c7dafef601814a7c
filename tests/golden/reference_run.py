"""A tiny run through the real command line, and the hashes of what it leaves.

`expected.json` and `run.zip` beside this file were made by the version that `expected.json` names, before the rooms of
the package were redrawn. Nothing here imports the package, but for what reads a packed D_R, so that the same script
measures any version:

    python tests/golden/reference_run.py FOLDER      # makes the run in FOLDER and prints the hashes
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

_TINY = {"channels": [4, 8], "residual_units": 0}
SETTINGS = {
    "segmenter": {"kind": "torch", "folder": "source"},
    "target": {"path": "data/b"},
    "source": {"path": "data/a"},
    "output": "run",
    "anatomy": "generic",
    "iterations": 2,
    "warm_up": {"steps": 20, "batch_size": 4},
    "collect": {"source_images": 12, "target_images": 8, "actions_per_image": 3, "shard_images": 6},
    "shape_prior": {"epochs": 1, "latent": 4},
    "reward": {"network": _TINY, "steps": 4, "validate_every": 2},
    "ppo": {"updates": 4, "n_envs": 4, "eval_every": 2},
    "tracking": {"uri": None},
    "seed": 0,
    "device": "cpu",
}
Call = Callable[..., str]


def call(folder: Path, *arguments: str) -> str:
    """Runs `medfm-rl` in a folder with one thread; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "medfm_rl", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"medfm-rl {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def adapt(folder: Path, *options: str, call: Call = call) -> None:
    """Adapts `source` to `data/b`, with the settings above, into `run`; `call` runs `medfm-rl`."""
    (folder / "adapt.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    call(folder, "adapt", "adapt.yaml", *options)


def deploy(folder: Path, call: Call = call) -> None:
    """Calls predict, score and correct with the run, on the images of two further patients."""
    common = ("run", "--images", "data/d/images", "--device", "cpu")
    call(folder, "predict", "run", "data/d/images", "predicted", "--device", "cpu")
    call(folder, "score", *common, "--model", "run", "--out", "scored")
    call(folder, "correct", *common, "--out", "corrected", "--all", "--budget", "600")


def hash_weights(path: Path) -> str:
    """SHA-256 of names and values, whatever the file says besides."""
    return _hash_tensors(load_file(path))


def _hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_masks(folder: Path) -> str:
    """SHA-256 of names and pixels of the masks in a folder."""
    import SimpleITK as sitk

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.nii.gz")):
        digest.update(path.name.encode())
        digest.update(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).tobytes())
    return digest.hexdigest()


def hashes_of_run(run: Path) -> dict[str, str]:
    """Hashes of the weights of a finished run: what PPO started from, the segmenter and the reward networks."""
    files = {"model": run / "model" / "weights.safetensors"}
    # Two things had other names in version 0.1.
    for name, places in {
        "fine-tuned": ("fine-tuning", "warm-up"),
        "judge": ("reward/held-out", "reward/judge"),
        "member-0": ("reward/member-0",),
        "member-1": ("reward/member-1",),
    }.items():
        (files[name],) = (path for place in places for path in (run / place).glob("*.safetensors"))
    return {name: hash_weights(path) for name, path in files.items()}


def hashes_of_actions(run: Path) -> dict[str, str]:
    """Hashes of the tensors of each shard of D_R; how they and the origins of its records are written may change."""
    return {
        path.name: _hash_tensors(_tensors_of_shard(path)) for path in sorted((run / "actions").glob("*.safetensors"))
    }


def _tensors_of_shard(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(path)
    if "images" in tensors:
        return tensors
    # Today's shards are packed, and their images lie beside them; version 0.1 has no such reader, and needs none.
    from medfm_rl.data.stored_rows import ArrayStore
    from medfm_rl.reward.shards import open_shard

    return open_shard(path, ArrayStore(path.parent / "images")).tensors()


def hashes_of_deployment(folder: Path) -> dict[str, str]:
    """Hashes of masks, predicted Dice and verdicts, and of what was decided about corrections."""
    scores = csv.DictReader((folder / "scored" / "scores.csv").read_text().splitlines())
    kept = [[row[name] for name in ("case_id", "structure", "predicted_dice", "low", "high")] for row in scores]
    corrections = json.loads((folder / "corrected" / "corrections.json").read_text())["cases"]
    decided = [
        [record[name] for name in ("case", "decision", "step", "reward_gains", "reward_before", "reward_after")]
        for record in corrections
    ]
    return {
        "predicted masks": hash_masks(folder / "predicted" / "labels"),
        "reward maps": hash_masks(folder / "predicted" / "rewards"),
        "scored masks": hash_masks(folder / "scored" / "labels"),
        "scores": hashlib.sha256(json.dumps(kept).encode()).hexdigest(),
        "corrected masks": hash_masks(folder / "corrected" / "labels"),
        "corrections": hashlib.sha256(json.dumps(decided).encode()).hexdigest(),
    }


def how_this_machine_rounds() -> str:
    """A hash that differs where a convolution, its gradient or an exponential is rounded in another way."""
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        image = torch.randn(4, 4, 32, 32, generator=generator)
        weight = torch.randn(8, 4, 3, 3, generator=generator, requires_grad=True)
        found = torch.nn.functional.conv2d(image, weight, padding=1).log_softmax(dim=1)
        up = torch.nn.functional.conv_transpose2d(found.exp(), weight, stride=2)
        ((found * found.exp()).sum() + torch.nn.functional.instance_norm(up).square().mean()).backward()
        assert weight.grad is not None
        values = torch.cat([found.detach().flatten(), weight.grad.flatten(), up.detach().flatten()])
        fft = torch.fft.fftn(image[0], dim=(1, 2)).abs().flatten()
        return hashlib.sha256(torch.cat([values, fft]).numpy().tobytes()).hexdigest()
    finally:
        torch.set_num_threads(threads)


def _first_data(folder: Path) -> None:
    """Simulated patients and a source model; only the version that makes `run.zip` needs them."""
    from medfm_rl.data.ultrasound.phantom import simulate_dataset
    from medfm_rl.data.ultrasound.vendors import vendor

    for name, profile, first, count in (
        ("a", "cart", 1, 6),
        ("b", "handheld", 101, 6),
        ("c", "cart", 201, 24),
        ("d", "cart", 301, 2),
    ):
        simulate_dataset(folder / "data" / name, vendor(profile), count, seed=0, size=(32, 32), first=first)
    settings = {
        "data": {"path": "data/a"},
        "structures": {"LV": 1, "MYO": 2, "LA": 3},
        "output": "source",
        "network": _TINY,
        "preprocessing": {"size": [32, 32]},
        "training": {"epochs": 60, "batch_size": 8, "learning_rate": 0.01},
        "device": "cpu",
    }
    (folder / "source.yaml").write_text(yaml.safe_dump(settings))
    call(folder, "train-source", "source.yaml")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True)
    _first_data(place)
    adapt(place)
    call(place, "calibrate", "run", "--labelled", "data/c", "--dice", "0.5", "--device", "cpu")
    shutil.rmtree(place / "data" / "c")
    deploy(place)
    sys.stdout.write(
        json.dumps(
            {
                "rounding": how_this_machine_rounds(),
                "run": hashes_of_run(place / "run"),
                "deployment": hashes_of_deployment(place),
            },
            indent=2,
        )
    )
