"""Shared fixtures: tiny schemas, cases and segmenters, and the real data where it is there."""

from __future__ import annotations

import locale
import os
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.postgresql_server import Server, obstacle
from support.shared import made_once
from support.tiny_runs import train_tiny_source

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.quality.model import Targets
from medfm_rl.reward.fusion import write_fusion
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    RewardSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrainSourceConfig,
)
from medfm_rl.settings.files import dump_config
from medfm_rl.types import Case, Geometry, LabelSchema
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.train.source import train_source


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(autouse=True)
def locale_kept() -> Iterator[None]:
    """ITK leaves the locale C behind where a test has it write DICOM, and files of later tests would be ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def threads_kept() -> Iterator[None]:
    """Benchmarks set the threads of torch, and sums of later tests would go in another order."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Only a machine that loses its power would show the difference, and each file that is written waits twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, which is not part of the project."""
    folder = Path(os.environ.get("MEDFM_RL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "camus224_train250.npz").exists():
        pytest.skip(f"the real images are not in {folder} (set MEDFM_RL_DATA)")
    return folder


@pytest.fixture
def schema() -> LabelSchema:
    return LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})


@pytest.fixture
def make_case() -> Callable[..., Case]:
    def make(shape: tuple[int, ...] = (20, 24), channels: int = 1, name: str = "p1_a", seed: int = 0) -> Case:
        image = np.random.default_rng(seed).normal(size=(channels, *shape)).astype(np.float32)
        return Case(name, name.split("_")[0], image, Geometry.unknown(len(shape)))

    return make


@pytest.fixture
def tiny_unet(schema: LabelSchema) -> TorchModuleAdapter:
    torch.manual_seed(0)
    return TorchModuleAdapter.build_unet(
        NetworkSettings(channels=(4, 8), residual_units=0), schema, PreprocessingSettings(size=(16, 16))
    ).eval()


@pytest.fixture(scope="session")
def quality_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with untrained reward networks, `quality.json` of 24 simulated patients, and their `data`."""
    return made_once(tmp_path_factory, "quality", make_quality_run) / "run"


def make_quality_run(folder: Path) -> None:
    data, run = folder / "data", folder / "run"
    simulate_dataset(data, vendor("cart"), 24, seed=0, size=(32, 32))
    train_source(
        TrainSourceConfig(
            data=DataSettings(path=data),
            structures={"LV": 1, "MYO": 2, "LA": 3},
            output=run / "model",
            network=NetworkSettings(channels=(4, 8), residual_units=0),
            preprocessing=PreprocessingSettings(size=(32, 32)),
            training=SourceTrainingSettings(epochs=12, batch_size=8, learning_rate=1e-2),
        ),
        lambda *_: None,
    )
    torch.manual_seed(0)
    for index in range(2):
        RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).save(run / "reward" / f"member-{index}")
    write_fusion(run / "reward", ["member-0", "member-1"], RewardSettings(fusion="mean", pessimism=0.5))
    config = AdaptConfig(
        segmenter=TorchSettings(folder=run / "model"), target=DataSettings(path=data), output=run, anatomy="generic"
    )
    (run / "config.yaml").write_text(dump_config(config))
    files = find_cases(DataSettings(path=data))
    calibrate(load_run(run, "cpu"), files, CalibrateRequest(Targets(dice=0.5)), lambda *_: None)


@pytest.fixture(scope="session")
def simulated_echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated vendors: `a` with 6 patients and `b` with 6 others, 32 x 32 pixels."""

    def make(folder: Path) -> None:
        simulate_dataset(folder / "a", vendor("cart"), 6, seed=0, size=(32, 32))
        simulate_dataset(folder / "b", vendor("handheld"), 6, seed=0, size=(32, 32), first=101)

    return made_once(tmp_path_factory, "echo", make)


@pytest.fixture(scope="session")
def source_model(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter that has seen vendor `a` once: its masks are hardly any."""

    def make(folder: Path) -> None:
        train_tiny_source(simulated_echo, folder / "source", SourceTrainingSettings(epochs=1, batch_size=8))

    return made_once(tmp_path_factory, "source", make) / "source"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    running = Server()
    yield running
    running.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a store can be made: a file, and a database of a server."""
    if request.param == "sqlite":
        return tmp_path / "feedback.sqlite"
    running: Server = request.getfixturevalue("server")
    return running.new_database(f"test_{uuid.uuid4().hex}")


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Within it, no file can grow beyond 100 bytes: writing fails as it does on a full disk."""

    @contextmanager
    def limit() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
