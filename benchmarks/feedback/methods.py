"""The methods of the feedback benchmark: ours, its controls, and the bounds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.adaptation.cells import measure
from benchmarks.adaptation.methods import Stopwatch
from benchmarks.baselines.preferences import optimise_preferences
from benchmarks.feedback.cells import (
    AGAIN,
    BY_CASE,
    DPO,
    FROM_LESS,
    LADDER,
    NONE,
    OURS,
    TUNED,
    UPPER,
    Cell,
    Cells,
    rounded,
)
from benchmarks.feedback.judgements import AREAS, KINDS, PREFERENCES, target_in_millimetres, tell, ventricle_errors
from benchmarks.feedback.reviewers import patients_in_order, review, source_with_reviewed, target_without_masks
from benchmarks.harness.laboratory import Laboratory, adapt_config, files_of, read_selection
from benchmarks.harness.recording import quiet
from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.metrics.scores import MEAN
from medfm_rl.policies import ACTOR
from medfm_rl.runs.case_records import label_path
from medfm_rl.runs.finished import FinishedRun, load_model, load_run
from medfm_rl.runs.folder import SOURCE, RunFolder
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import AdaptConfig
from medfm_rl.types import Case, LabelMap, LabelSchema
from medfm_rl.workflows.adapt.checks import split_target
from medfm_rl.workflows.adapt.feedback.gathering import gather
from medfm_rl.workflows.adapt.feedback.judged_images import load_judged
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.deploy.choose import ChooseRequest, choose
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.training_images import load_labelled

_LEARNING_RATES = (1e-5, 1e-4, 5e-4)
_STEPS = 300
_BATCH = 16
_RUN = "run"


class FeedbackCells:
    """Makes the cells of one shift with one seed.

    Args:
        laboratory: The shift and the seed.
        cells: Those that there are.
    """

    def __init__(self, laboratory: Laboratory, cells: Cells) -> None:
        self.laboratory = laboratory
        self.cells = cells
        self.shift = laboratory.shift
        self.schema = LabelSchema.from_structures(self.shift.structures)
        self.order = patients_in_order(files_of(self.shift.folders.target), laboratory.seed)

    def make(self, method: str, k: int) -> None:
        """Makes a cell, unless it is there or the target has fewer patients."""
        k = 0 if method in (NONE, UPPER) else k
        key = self.shift.name, method, k, self.laboratory.seed
        if key in self.cells or k > len(self.order) or (k == 0 and method in (AGAIN, TUNED)):
            return
        print(f"  {method}, {k} reviewed", flush=True)
        chosen: str | None = None
        candidates: dict[str, tuple[float, ...]] = {}
        known = next((knowledge for knowledge, name in LADDER.items() if name == method), None)
        if method in BY_CASE:
            self._keep_by_case(key, k, BY_CASE[method])
            return
        if method == OURS or known is not None:
            segmenter, seconds, chosen, candidates = self._ours(k, known)
        elif method in (TUNED, DPO):
            segmenter, seconds = self._tuned(k) if method == TUNED else self._optimised_by_preferences(k)
        else:
            folder, seconds = self.laboratory.trained(self._training_data(method, k))
            segmenter = TorchModuleAdapter.load(folder)
        cell = self._measured(key, segmenter.segment, 0.0 if method == NONE else seconds)
        ventricle = self._ventricle(segmenter) if method in (UPPER, *FROM_LESS) else {}
        self.cells.keep(replace(cell, chosen=chosen, candidates=candidates, ventricle=ventricle))

    def _measured(self, key: tuple[str, str, int, int], segment: Callable[[Case], LabelMap], seconds: float) -> Cell:
        """The cell of what segments the held-out cases so."""
        anatomy = self.laboratory.anatomy(self.laboratory.source_model())
        scores = measure(segment, self.laboratory.held_out(), anatomy, False)
        return Cell(
            *key,
            scores.patient_ids,
            rounded(scores.dice[MEAN]),
            tuple(round(value, 2) if value == value else None for value in scores.hd95[MEAN]),
            sum(scores.valid) / len(scores.valid),
            seconds / 60,
            str(self.laboratory.started_in["commit"]),
        )

    def _keep_by_case(self, key: tuple[str, str, int, int], k: int, margin: float) -> None:
        """The cell of the masks that `choose` takes, as a user would have them chosen."""
        run, files, start = self.run(k), self.laboratory.held_out(), time.perf_counter()
        folder = self._folder(k, None)
        source = load_model(self.laboratory.trained(self.shift.folders.source)[0], "cpu")
        predict(source, files, folder / "source masks")
        in_use = find_masks(folder / "source masks" / "labels", files)
        choose(run, files, folder / "chosen", ChooseRequest(in_use, margin=margin))

        def chosen(case: Case) -> LabelMap:
            path = label_path(folder / "chosen", case.case_id)
            return read_labels(path, run.segmenter.schema, case.shape, case.geometry)

        self.cells.keep(self._measured(key, chosen, time.perf_counter() - start))

    def _training_data(self, method: str, k: int) -> Path:
        folders = self.shift.folders
        if method == AGAIN:
            name = f"{self.shift.name}-reviewed-{k}-seed-{self.laboratory.seed}"
            return source_with_reviewed(
                folders.source, folders.target, self.order[:k], self.laboratory.runs / "data" / name
            )
        return folders.source if method == NONE else folders.target

    def _ours(self, k: int, knowledge: str | None) -> tuple[SegmenterAdapter, float, str, dict[str, tuple[float, ...]]]:
        """The returned segmenter, seconds, and what every candidate was worth on the held-out patients.

        Args:
            k: Patients of whom something is known.
            knowledge: What; None for the experts' masks.
        """
        run, seconds = self._adapted(k, knowledge)
        selection = read_selection(run)
        candidates = {each.name: self._dice_of(run, each.name) for each in selection.candidates}
        shutil.rmtree(run.actions, ignore_errors=True)
        return TorchModuleAdapter.load(run.model), seconds, selection.chosen, candidates

    def run(self, k: int) -> FinishedRun:
        """The run of `ours` with k reviewed patients, for benchmarks that go on from it; made unless it is there."""
        folder = self._folder(k, None) / _RUN
        if not RunFolder(folder).model.is_dir():
            self._adapted(k, None)
        return load_run(folder, "cpu")

    def _folder(self, k: int, knowledge: str | None) -> Path:
        """Where `ours` works: the feedback store, the run and its time."""
        name = f"{k}" if knowledge is None else f"{knowledge}-{k}"
        return self.laboratory.runs / "ours" / f"{self.shift.name}-{name}-seed-{self.laboratory.seed}"

    def _adapted(self, k: int, knowledge: str | None) -> tuple[RunFolder, float]:
        """The finished run of `ours`, and the seconds that it took."""
        watch = Stopwatch(self._folder(k, knowledge) / "elapsed.json")
        run = adapt(self._config(k, knowledge), resume=True, progress=watch.progress)
        return run, watch.keep()

    def _config(self, k: int, knowledge: str | None) -> AdaptConfig:
        """Settings of the run of `ours`."""
        laboratory, folders = self.laboratory, self.shift.folders
        folder, target = self._folder(k, knowledge), self._target(knowledge)
        changes = {"seed": laboratory.seed, **laboratory.budget.adapt}
        if k > 0:
            changes["feedback"] = self._feedback(folder / "feedback.sqlite", k, knowledge, target)
        segmenter = {"kind": "torch", "folder": laboratory.trained(folders.source)[0]}
        return adapt_config(segmenter, target, folders.source, folder / _RUN, self.shift.anatomy, changes)

    def _feedback(self, store: Path, k: int, knowledge: str | None, target: Path) -> dict[str, Any]:
        """Settings that learn from a store, which is filled unless it is there."""
        with_masks, reviewed = self.shift.folders.target, self.order[:k]
        if knowledge is None:
            if not store.exists():
                review(store, with_masks, reviewed, self.schema)
            return {"store": str(store)}
        if not store.exists():
            tell(store, knowledge, target, with_masks, reviewed, self.laboratory.source_model())
        return {"store": str(store), "kinds": [KINDS.get(knowledge, knowledge)]}

    def _target(self, knowledge: str | None) -> Path:
        """The images that `adapt` sees, without masks."""
        target = self.shift.folders.target
        if knowledge == AREAS:
            return target_in_millimetres(target, target.with_name(f"{target.name}-in-mm"))
        return target_without_masks(target, target.with_name(f"{target.name}-without-masks"))

    def _ventricle(self, adapted: SegmenterAdapter) -> dict[str, dict[str, tuple[float, ...]]]:
        """How wrong the ventricle is before and after; nothing where there is none."""
        if not self.shift.is_echo:
            return {}
        models: dict[str, SegmenterAdapter] = {"before": self.laboratory.source_model(), "after": adapted}
        files = self.laboratory.held_out()
        return {when: ventricle_errors(model.segment, files, self.schema) for when, model in models.items()}

    def _dice_of(self, run: RunFolder, name: str) -> tuple[float, ...]:
        policy = self.laboratory.source_model()
        if name != SOURCE:
            policy.load_state_dict(load_file(run.candidate_weights(name) / ACTOR))
        return rounded(
            measure(policy.segment, self.laboratory.held_out(), self.laboratory.anatomy(policy), False).dice[MEAN]
        )

    def _tuned(self, k: int) -> tuple[SegmenterAdapter, float]:
        """The control of who has k masks and no method: fine-tuning on them."""
        start = time.perf_counter()
        reviewed = [file for file in files_of(self.shift.folders.target) if file.patient_id in self.order[:k]]
        images, masks = load_labelled(reviewed, self.laboratory.source_model(), quiet, "reviewed images")
        tuned = self._at_best_rate(partial(self._steps, images.images[:], masks[:]))
        return tuned, time.perf_counter() - start

    def _optimised_by_preferences(self, k: int) -> tuple[SegmenterAdapter, float]:
        """The control of PPO by preferences: direct optimisation of the source model by those that ours learns from."""
        start = time.perf_counter()
        config, source_model = self._config(k, PREFERENCES), self.laboratory.source_model()
        assert config.feedback is not None, "preferences are feedback"
        files = find_cases(config.target)
        learned = gather(config.feedback, files, self.laboratory.seed, quiet)
        _, selecting = split_target(config, (), learned.judged_patients)
        left_out = {file.patient_id for file in selecting}
        judgements = load_judged(config.feedback, learned, files, source_model, left_out, quiet)
        assert judgements is not None, "no reviewer preferred anything"
        tuned = self._at_best_rate(
            partial(optimise_preferences, source_model, judgements, steps=self._step_count, seed=self.laboratory.seed)
        )
        return tuned, time.perf_counter() - start

    def _at_best_rate(self, tuned_by: Callable[[float], TorchModuleAdapter]) -> TorchModuleAdapter:
        """Of the learning rates the highest that costs at most a Dice point on held-out source patients."""
        kept = self.laboratory.source_model()
        before = self._source_dice(kept)
        for learning_rate in _LEARNING_RATES:
            tuned = tuned_by(learning_rate)
            if self._source_dice(tuned) < before - 0.01:
                break
            kept = tuned
        return kept

    @property
    def _step_count(self) -> int:
        return 2 if self.laboratory.budget.trial else _STEPS

    def _steps(self, images: Tensor, masks: Tensor, learning_rate: float) -> TorchModuleAdapter:
        segmenter = self.laboratory.source_model()
        criterion = DiceCELoss(to_onehot_y=True, softmax=True)
        optimiser = torch.optim.AdamW(segmenter.parameters(), lr=learning_rate, weight_decay=1e-4)
        generator = torch_generator(self.laboratory.seed, "tuned")
        for _ in range(self._step_count):
            rows = torch.randint(len(images), (_BATCH,), generator=generator)
            shown, wanted = augment_pair(images[rows], masks[rows], generator)
            loss = criterion(segmenter(shown), wanted[:, None])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return segmenter.eval()

    def _source_dice(self, segmenter: TorchModuleAdapter) -> float:
        files = files_of(self.shift.folders.source_held_out)
        scores = measure(segmenter.segment, files, self.laboratory.anatomy(segmenter), False)
        return sum(scores.dice[MEAN]) / len(files)
