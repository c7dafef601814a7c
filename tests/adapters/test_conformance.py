from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.adapters import ConformanceError, Sample, SegmenterAdapter, check_adapter, iter_checks
from medfm_rl.adapters.base import Scope, parameters_in_scope
from medfm_rl.adapters.conformance import CHECKS
from medfm_rl.types import Case, LabelMap, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})


class Working(SegmenterAdapter):
    """Two convolutions on the native grid: the least that keeps every promise."""

    def __init__(self) -> None:
        super().__init__()
        self.schema, self.patch_size, self.in_channels = SCHEMA, (12, 12), 1
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))

    def preprocess(self, case: Case) -> Sample:
        image = torch.from_numpy(case.image.copy())
        return Sample(image, case.case_id, case.patient_id, case.shape, case.geometry)

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        return torch.from_numpy(labels)

    def forward(self, images: Tensor, prompts: object = None) -> Tensor:
        result: Tensor = self.layers(images)
        return result

    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        return logits.argmax(dim=0).to(torch.uint8).numpy()

    def restore_map(self, values: Tensor, sample: Sample) -> np.ndarray:
        return values.numpy()

    def trainable(self, scope: Scope) -> dict[str, nn.Parameter]:
        return parameters_in_scope(self, scope, ())

    def export(self, folder: Path) -> None:
        from medfm_rl.data.files import replace_folder_on_success

        with replace_folder_on_success(folder) as temporary:
            torch.save(self.state_dict(), temporary / "weights.pt")

    @classmethod
    def load(cls, folder: Path) -> Working:
        adapter = cls()
        adapter.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        return adapter


def case_of(shape: tuple[int, ...] = (12, 12)) -> Case:
    from medfm_rl.types import Geometry

    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return Case("a", "a", image, Geometry.unknown(len(shape)))


def test_a_working_adapter_passes_and_is_left_as_it_was() -> None:
    adapter = Working().train()
    adapter.layers[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    check_adapter(adapter, case_of())
    assert adapter.training
    assert not adapter.layers[0].weight.requires_grad
    assert all(value.grad is None for value in adapter.parameters())
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())


def test_checks_can_be_made_one_by_one_and_the_error_names_the_one() -> None:
    adapter = broken(restore_map=lambda s, x, sample: Working.restore_map(s, x, sample) * 2)()
    for name, check in iter_checks(adapter, case_of()):
        if name != "restore":
            check()
            continue
        with pytest.raises(ConformanceError, match=r"^restore: restore_map does not keep a constant map$") as caught:
            check()
        assert caught.value.check == "restore"
    assert [name for name, _ in iter_checks(adapter, case_of())] == list(CHECKS)


def test_what_export_wrote_can_be_read_in_another_way_than_by_the_class() -> None:
    """As settings of a kind do, which say more than the folder."""
    read: list[Path] = []

    def load(folder: Path) -> SegmenterAdapter:
        read.append(folder)
        return Working.load(folder)

    class Loadless(Working):
        load = None  # type: ignore[assignment]

    check_adapter(Loadless(), case_of(), load)
    assert [folder.name for folder in read] == ["first", "second", "merged"]
    with pytest.raises(ConformanceError, match="export: the adapter's class has no `load`"):
        check_adapter(Loadless(), case_of())


def broken(**overrides: Callable[..., Any]) -> Callable[[], SegmenterAdapter]:
    return lambda: type("Broken", (Working,), overrides)()


def in_place(self: Working, case: Case) -> Sample:
    case.image[:] += 1
    return Working.preprocess(self, case)


def with_buffer(self: Working, images: Tensor, prompts: object = None) -> Tensor:
    with torch.no_grad():
        self.layers[0].bias.add_(0.1)
    return Working.forward(self, images)


def loses_weights(self: Working, folder: Path) -> None:
    Working.export(Working(), folder)


def overwrites(self: Working, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(self.state_dict(), folder / "weights.pt")


def exports_what_low_rank_parts_started_from(self: Working, folder: Path) -> None:
    state = {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in self.named_parameters()
        if ".weight.0." not in name
    }
    twin = Working()
    twin.load_state_dict(state)
    Working.export(twin, folder)


def unused_parameter() -> SegmenterAdapter:
    adapter = Working()
    adapter.extra = nn.Linear(2, 2)
    return adapter


def shared_copy(self: Working, memo: dict[int, Any]) -> Working:
    return copy.copy(self)


BROKEN: dict[str, tuple[Callable[[], SegmenterAdapter], str]] = {
    "probabilities": (broken(forward=lambda s, x, p=None: Working.forward(s, x).softmax(1)), "probabilities"),
    "nan": (broken(forward=lambda s, x, p=None: Working.forward(s, x) * torch.nan), "NaN"),
    "wrong K": (broken(forward=lambda s, x, p=None: Working.forward(s, x)[:, :2]), "shape"),
    "random": (broken(forward=lambda s, x, p=None: Working.forward(s, x) + torch.rand(1)), "two passes"),
    "moving state": (broken(forward=with_buffer), "two passes|changes"),
    "batch": (
        broken(forward=lambda s, x, p=None: Working.forward(s, x - x.mean(dim=0, keepdim=True) * (len(x) > 1))),
        "batch-mates",
    ),
    "no gradient": (broken(forward=lambda s, x, p=None: Working.forward(s, x).detach()), "no gradient"),
    "unused parameter": (unused_parameter, "no gradient reaches 2 parameters"),
    "changes case": (broken(preprocess=in_place), "changes the case"),
    "file ids": (broken(restore=lambda s, x, sample: Working.restore(s, x, sample) * 2), "class ind"),
    "mirrored": (
        broken(preprocess_labels=lambda s, x, sample: torch.from_numpy(x[::-1].copy())),
        "axis 0 of the image lies elsewhere, or runs the other way",
    ),
    "transposed": (broken(preprocess_labels=lambda s, x, sample: torch.from_numpy(x.T.copy())), "axis 0 of the image"),
    "int64 labels": (broken(restore=lambda s, x, sample: x.argmax(dim=0).numpy()), "uint8"),
    "wrong grid": (broken(restore=lambda s, x, sample: Working.restore(s, x, sample)[:-1]), "restore gives the size"),
    "map": (broken(restore_map=lambda s, x, sample: Working.restore_map(s, x, sample) * 2), "constant map"),
    "export": (broken(export=loses_weights), "another segmenter"),
    "overwrites": (broken(export=overwrites), "not empty"),
    "unmerged": (broken(export=exports_what_low_rank_parts_started_from), "does not merge low-rank parts"),
    "lora": (broken(trainable=lambda s, scope: dict(s.named_parameters())), "not the low-rank parts"),
    "copy": (broken(__deepcopy__=shared_copy), "shares its weights"),
    "settings": (broken(inference_settings=lambda s: {"device": s.device}), "values that JSON does not know"),
    "settings of an object": (broken(inference_settings=lambda s: {"object": id(s)}), "of a copy are other ones"),
    "sample": (
        broken(preprocess=lambda s, case: replace(Working.preprocess(s, case), patient_id="?")),
        "id, patient",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_caught(name: str) -> None:
    make, message = BROKEN[name]
    torch.manual_seed(0)
    with pytest.raises(ConformanceError, match=message):
        check_adapter(make(), case_of())
