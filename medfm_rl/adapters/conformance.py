"""A public test of segmenter adapters, in the manner of scikit-learn's `check_estimator`."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters.base import Scope, SegmenterAdapter, without_gradient
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.lora import add_low_rank, low_rank_parameters
from medfm_rl.adapters.probabilities import probabilities_in
from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import LoRASettings
from medfm_rl.types import Case

_SCOPES: tuple[Scope, ...] = ("all", "norm", "decoder")
_TOLERANCE = 1e-4
_HALVES = 4
"""Pixels that half of an image has along an axis, so that resampling leaves some."""


Load = Callable[[Path], SegmenterAdapter]
Check = Callable[[SegmenterAdapter, Case, Load], None]


class ConformanceError(AssertionError):
    """An adapter breaks a promise of `SegmenterAdapter`; the message says which.

    Args:
        promise: How it is broken.
        check: Name of the check that found it, as in `CHECKS`; empty outside of them.
    """

    def __init__(self, promise: str, check: str = "") -> None:
        super().__init__(f"{check}: {promise}" if check else promise)
        self.check = check


def check_adapter(adapter: SegmenterAdapter, case: Case, load: Load | None = None) -> None:
    """Checks that an adapter keeps the promises that the rest of the package builds on.

    The adapter, its mode, its gradients and the case are left as they were.

    Args:
        adapter: An instance, ready to use.
        case: A case that it can segment.
        load: Reads what `export` writes; None: the class's own `load`, with the folder alone.

    Raises:
        ConformanceError: A promise is broken.
    """
    for _, check in iter_checks(adapter, case, load):
        check()


def iter_checks(
    adapter: SegmenterAdapter, case: Case, load: Load | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of `check_adapter` one by one, each as its name and a call that makes it.

    Args:
        adapter: As in `check_adapter`.
        case: As in `check_adapter`.
        load: As in `check_adapter`.
    """
    for name in CHECKS:
        yield name, partial(run_check, name, adapter, case, load)


def run_check(name: str, adapter: SegmenterAdapter, case: Case, load: Load | None = None) -> None:
    """One of the checks of `check_adapter`.

    Args:
        name: Its name, one of `CHECKS`.
        adapter: As in `check_adapter`.
        case: As in `check_adapter`.
        load: As in `check_adapter`.

    Raises:
        ConformanceError: The promise is broken.
    """
    with _left_as_it_was(adapter):
        adapter.eval()
        try:
            CHECKS[name](adapter, case, load or _load_by_class(adapter))
        except ConformanceError as error:
            raise ConformanceError(str(error), name) from error


def _require(condition: bool, promise: str) -> None:
    if not condition:
        raise ConformanceError(promise)


@contextmanager
def _left_as_it_was(adapter: SegmenterAdapter) -> Iterator[None]:
    training, device = adapter.training, adapter.device
    wanted = {name: parameter.requires_grad for name, parameter in adapter.named_parameters()}
    try:
        # Exports are read again on the CPU, and have to give the same there.
        adapter.cpu()
        yield
    finally:
        adapter.to(device).train(training)
        adapter.zero_grad(set_to_none=True)
        for name, parameter in adapter.named_parameters():
            parameter.requires_grad_(wanted[name])


def _check_attributes(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    for attribute in ("schema", "patch_size", "in_channels"):
        _require(hasattr(adapter, attribute), f"the adapter has no attribute {attribute}")
    _require(
        len(case.shape) - len(adapter.patch_size) in (0, 1),
        f"patch_size {adapter.patch_size} has another number of axes than the case {case.shape}",
    )


def _check_inference_settings(adapter: SegmenterAdapter, _: Case, __: Load) -> None:
    try:
        own, twin = (
            json.dumps(each.inference_settings(), sort_keys=True) for each in (adapter, copy.deepcopy(adapter))
        )
    except TypeError as error:
        raise ConformanceError(f"inference_settings gives values that JSON does not know: {error}") from error
    _require(own == twin, "the inference_settings of a copy are other ones")


def _check_preprocess(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    before = case.image.copy()
    first, second = adapter.preprocess(case), adapter.preprocess(case)
    _require(np.array_equal(before, case.image), "preprocess changes the case that it is given")
    _require(torch.equal(first.image, second.image), "preprocess gives another result the second time")
    _require(first.image.dtype == torch.float32, f"preprocess gives {first.image.dtype}, float32 is needed")
    _require(bool(torch.isfinite(first.image).all()), "preprocess gives NaN or infinite values")
    _require(
        first.image.ndim == len(case.shape) + 1 and first.image.shape[0] == adapter.in_channels,
        f"preprocess gives the shape {tuple(first.image.shape)}, (C, *S) with C = {adapter.in_channels} is needed",
    )
    _require(
        (first.case_id, first.patient_id, first.native_shape) == (case.case_id, case.patient_id, case.shape),
        "the sample does not carry the case's id, patient and native shape",
    )


def _check_logits(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    image = _batch(adapter.preprocess(case))
    logits = _logits(adapter, image)
    check_logits(logits, adapter.schema.num_classes, image)
    probabilities = probabilities_in(logits, adapter, image)
    _require(probabilities is None, str(probabilities))


def check_logits(logits: Tensor, classes: int, images: Tensor) -> None:
    """Checks that logits are what a policy can be made of.

    Args:
        logits: Logits of the images, as a segmenter gave them.
        classes: K, with the background.
        images: `(B, C, *S)`.

    Raises:
        ConformanceError: They are not `(B, K, *S)`, or no finite real numbers.
    """
    expected = (len(images), classes, *images.shape[2:])
    _require(tuple(logits.shape) == expected, f"logits have shape {tuple(logits.shape)}, {expected} is needed")
    _require(logits.is_floating_point(), f"logits are {logits.dtype}, a floating-point type is needed")
    _require(bool(torch.isfinite(logits).all()), "logits are NaN or infinite")


def _check_evaluation_is_deterministic(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    image = _batch(adapter.preprocess(case))
    same = torch.equal(_logits(adapter, image), _logits(adapter, image))
    _require(same, "two passes in evaluation mode differ: is dropout or sampling still on?")


def _check_forward_changes_nothing(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    image = _batch(adapter.preprocess(case))
    kept = image.clone()
    _logits(adapter, image)
    changed = [name for name, value in adapter.state_dict().items() if not torch.equal(value, before[name])]
    _require(not changed, f"a pass in evaluation mode changes {', '.join(changed[:3])}")
    _require(torch.equal(image, kept), "forward changes the images that it is given")


def _check_batch_independence(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    image = _batch(adapter.preprocess(case))
    other = 3 * image.flip(-1) + 1
    alone, together = _logits(adapter, image)[0], _logits(adapter, torch.cat([image, other]))[0]
    _require(
        torch.allclose(alone, together, atol=_TOLERANCE * max(1.0, float(alone.abs().max()))),
        "the logits of an image depend on its batch-mates in evaluation mode",
    )


def _check_gradients(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    image = _batch(adapter.preprocess(case))
    for scope in _SCOPES:
        try:
            parameters = adapter.trainable(scope)
        except ModelError:
            _require(scope != "all", "trainable('all') is refused; every segmenter has parameters")
            continue
        _require(len(parameters) > 0, f"trainable({scope!r}) is empty; raise ModelError instead")
        without = without_gradient(adapter, parameters, image)
        _require(len(without) < len(parameters), "the logits have no gradient: is forward under no_grad, or detached?")
        _require(
            not without, f"no gradient reaches {len(without)} parameters of scope {scope!r}: {', '.join(without[:3])}"
        )


def _check_restore(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    sample = adapter.preprocess(case)
    labels = adapter.restore(_logits(adapter, _batch(sample))[0], sample)
    _require(labels.shape == case.shape, f"restore gives the size {labels.shape}, the case has {case.shape}")
    _require(labels.dtype == np.uint8, f"restore gives {labels.dtype}, uint8 is needed")
    _require(int(labels.max()) < adapter.schema.num_classes, "restore gives class indices beyond the schema")
    grid = sample.image.shape[1:]
    certain = torch.zeros(adapter.schema.num_classes, *grid)
    certain[1] = 10.0
    restored = adapter.restore(certain, sample)
    # Where files have fewer integers than there are classes, what comes back is what is written for it.
    (written,) = adapter.schema.as_written(np.array([1], dtype=np.uint8))
    # Some tools cut an empty border away and call it background.
    _require(
        bool((restored == written).any()) and bool(np.isin(restored, (0, written)).all()),
        "restore does not give class index 1 where its logit is the largest (file integers belong in files only)",
    )
    values = adapter.restore_map(torch.full(grid, 0.25), sample)
    _require(values.shape == case.shape, f"restore_map gives the size {values.shape}, the case has {case.shape}")
    _require(bool(np.allclose(values, 0.25, atol=1e-3)), "restore_map does not keep a constant map")


def _check_grid_axes(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    """What lies farther along an axis of the image does so after `grid_axes` has turned its mask upright."""
    sample = adapter.preprocess(case)
    axes = adapter.grid_axes(sample)
    for axis, side in enumerate(case.shape):
        if side < 2 * _HALVES:
            continue
        centres = []
        for part in (slice(None, side // 2), slice(side // 2, None)):
            half = np.zeros(case.shape, dtype=np.uint8)
            half[(slice(None),) * axis + (part,)] = 1
            upright = axes.in_image(adapter.preprocess_labels(half, sample).cpu().numpy())
            places = np.argwhere(upright)
            centres.append(places.mean(axis=0) if len(places) else np.full(upright.ndim, np.nan))
        moved = centres[1] - centres[0]
        _require(
            bool(np.isnan(moved).any()) or (moved[axis] > 0 and int(abs(moved).argmax()) == axis),
            f"grid_axes: axis {axis} of the image lies elsewhere, or runs the other way, on the grid of the network",
        )


def _check_native_sizes(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    """Another size than the first is segmented, or refused with a message."""
    larger = np.pad(case.image, [(0, 0), *((1, 2) for _ in case.shape)], mode="edge")
    other = replace(case, image=larger)
    try:
        labels = adapter.segment(other)
    except (DataError, ModelError):
        return
    _require(labels.shape == other.shape, f"a case of size {other.shape} comes back with size {labels.shape}")


def _check_copy(adapter: SegmenterAdapter, case: Case, _: Load) -> None:
    image = _batch(adapter.preprocess(case))
    before = _logits(adapter, image)
    twin = copy.deepcopy(adapter)
    _require(torch.equal(_logits(twin, image), before), "a deep copy gives other logits")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    _require(torch.equal(_logits(adapter, image), before), "a deep copy shares its weights with the original")


def _check_export(adapter: SegmenterAdapter, case: Case, load: Load) -> None:
    image = _batch(adapter.preprocess(case))
    with tempfile.TemporaryDirectory() as folder:
        first, second, occupied = (Path(folder) / name for name in ("first", "second", "occupied"))
        adapter.export(first)
        loaded = load(first)
        loaded.eval()
        _require(
            torch.allclose(_logits(loaded, image), _logits(adapter, image), atol=1e-6),
            "what `export` writes loads as another segmenter",
        )
        with torch.no_grad():
            for parameter in loaded.trainable("all").values():
                parameter.add_(0.05)
        loaded.export(second)
        _require(_names(first) == _names(second), "exporting again gives other files than were loaded")
        changed = _logits(load(second).eval(), image)
        _require(torch.allclose(changed, _logits(loaded, image), atol=1e-6), "`export` loses changed weights")
        occupied.mkdir()
        (occupied / "precious").write_text("kept")
        try:
            adapter.export(occupied)
        except (DataError, ModelError):
            _require(_names(occupied) == ["precious"], "`export` leaves files in a folder that it refused")
        else:
            raise ConformanceError("`export` writes into a folder that is not empty")


def _check_low_rank(adapter: SegmenterAdapter, case: Case, load: Load) -> None:
    """Low-rank parts change nothing while they are zero, learn, and leave in the weights of the tool."""
    image = _batch(adapter.preprocess(case))
    twin = copy.deepcopy(adapter)
    try:
        add_low_rank(twin, twin.trainable("all"), LoRASettings(rank=2), torch.Generator().manual_seed(0))
    except ModelError:
        return
    kinds = {name: (value.shape, value.dtype) for name, value in adapter.state_dict().items()}
    _require(
        kinds == {name: (value.shape, value.dtype) for name, value in twin.state_dict().items()},
        "low-rank parts change the names, shapes or types of the state dict",
    )
    _require(
        torch.equal(_logits(twin, image), _logits(adapter, image)), "low-rank parts change the logits from the start"
    )
    parts = twin.trainable("lora")
    _require(parts.keys() <= low_rank_parameters(twin).keys(), "trainable('lora') gives what is not the low-rank parts")
    without = without_gradient(twin, parts, image)
    _require(not without, f"no gradient reaches {len(without)} low-rank parts: {', '.join(without[:3])}")
    with torch.no_grad():
        for parameter in parts.values():
            parameter.add_(0.02)
    before = _logits(twin, image)
    _require(not torch.equal(before, _logits(adapter, image)), "the logits do not depend on low-rank parts")
    with tempfile.TemporaryDirectory() as folder:
        twin.export(Path(folder) / "merged")
        merged = _logits(load(Path(folder) / "merged").eval(), image)
    tolerance = _TOLERANCE * max(1.0, float(before.abs().max()))
    _require(torch.allclose(merged, before, atol=tolerance), "`export` does not merge low-rank parts into the weights")


def _load_by_class(adapter: SegmenterAdapter) -> Load:
    def load(folder: Path) -> SegmenterAdapter:
        found = getattr(type(adapter), "load", None)
        _require(callable(found), "the adapter's class has no `load` to read what `export` writes")
        assert found is not None
        loaded: SegmenterAdapter = found(folder)
        return loaded

    return load


def _batch(sample: Sample) -> Tensor:
    return sample.image[None]


@torch.no_grad()
def _logits(adapter: SegmenterAdapter, images: Tensor) -> Tensor:
    logits: Tensor = adapter(images)
    return logits


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


CHECKS: Final[Mapping[str, Check]] = {
    "attributes": _check_attributes,
    "preprocess": _check_preprocess,
    "logits": _check_logits,
    "determinism": _check_evaluation_is_deterministic,
    "forward changes nothing": _check_forward_changes_nothing,
    "batch independence": _check_batch_independence,
    "gradients": _check_gradients,
    "restore": _check_restore,
    "grid axes": _check_grid_axes,
    "native sizes": _check_native_sizes,
    "copy": _check_copy,
    "inference settings": _check_inference_settings,
    "export": _check_export,
    "low rank": _check_low_rank,
}
"""The checks by name, in the order in which `check_adapter` makes them."""
