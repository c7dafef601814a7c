from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from medfm_rl.anatomy.profiles import RuleResult, load_anatomy
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.calibration import Provenance, fit_quality
from medfm_rl.quality.calibration_case import CalibrationCase
from medfm_rl.quality.evidence import Evidence
from medfm_rl.quality.model import QualityModel, Targets
from medfm_rl.quality.telling_rules import telling_rules
from medfm_rl.structures import exclusive
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"a": 1, "b": 2})


def case(patient: int, generator: np.random.Generator, lacks_b: bool = False, good: bool = True) -> CalibrationCase:
    """A mask whose Dice is about what its map says; one without b has a Dice of 0 there."""
    action = torch.zeros(16, 16, dtype=torch.uint8)
    action[2:8, 2:8] = 1
    if not lacks_b:
        action[9:14, 4:12] = 2
    level = float(generator.uniform(0.9, 0.95) if good else generator.uniform(0.3, 0.5))
    dice = np.clip(level + generator.normal(0, 0.03, 2), 0, 1) * [1, 0 if lacks_b else 1]
    return CalibrationCase.of(
        f"p{patient}",
        Evidence(
            action,
            torch.full((16, 16), level),
            torch.zeros(16, 16),
            None,
            generator.normal(size=3),
            generator.normal(size=3),
            (),
            exclusive(3),
        ),
        torch.from_numpy(generator.random((16, 16)) < level),
        dice.astype(np.float32),
    )


def fitted(cases: list[CalibrationCase]) -> QualityModel:
    return fit_quality(cases, load_anatomy("generic", SCHEMA), Targets(), Provenance("test", False, "", "", {}))


def test_masks_that_lack_a_structure_are_no_evidence_on_those_that_have_it() -> None:
    """Of a mask without a structure nothing is predicted: it may make no interval wider or narrower, nor an error."""
    generator = np.random.default_rng(0)
    cases = [case(number, generator, lacks_b=number % 3 == 0) for number in range(120)]
    model = fitted(cases)
    for name, lacking in (("a", 0), ("b", 1), (MEAN, 1)):
        structure = model.structures[name]
        scores, rows = structure.known_conformity()
        assert len(structure.residuals) == 60
        assert (len(rows) < 60) == bool(lacking)
        assert structure.error is not None
        # The Dice lies .03 around what is predicted, and the mean of two closer.
        assert structure.error < 0.05
        assert structure.quantile is not None
        place = int(np.ceil(0.9 * (len(rows) + 1))) - 1
        assert structure.quantile == pytest.approx(sorted(scores)[place], abs=1e-6)
    low, high = model.structures["b"].interval(0.92)
    assert 0.8 < low < high < 1


def test_masks_that_lack_a_structure_do_not_stand_against_a_threshold() -> None:
    """They are never accepted, whatever the threshold is."""
    generator = np.random.default_rng(1)
    model = fitted([case(number, generator, lacks_b=number % 4 == 0) for number in range(200)])
    assert model.accept_threshold is not None
    assert "(7" in model.accept_reason
    bad = fitted([case(number, generator, good=number % 4 != 0) for number in range(200)])
    assert bad.accept_threshold is None or bad.accept_threshold > 0.6


def test_a_structure_that_no_mask_has_promises_nothing() -> None:
    generator = np.random.default_rng(2)
    model = fitted([case(number, generator, lacks_b=True) for number in range(40)])
    assert model.structures["b"].quantile is None
    assert model.structures["b"].error is None
    assert model.structures["b"].interval(0.9) == (0.0, 1.0)
    assert model.structures[MEAN].quantile is None
    assert model.accept_threshold is None
    assert model.structures["a"].quantile is not None
    assert QualityModel.model_validate_json(model.model_dump_json()) == model


def large(patient: int, generator: np.random.Generator) -> CalibrationCase:
    """A case whose maps of 512 x 512 are made anew whenever they are looked at, as those of volumes are read."""
    small = case(patient, generator)
    evidence, right = small.load()

    def load() -> tuple[Evidence, torch.Tensor]:
        grown = {
            name: getattr(evidence, name).repeat_interleave(32, 0).repeat_interleave(32, 1)
            for name in ("action", "mean_map", "spread")
        }
        return replace(evidence, **grown), right.repeat_interleave(32, 0).repeat_interleave(32, 1)

    return replace(small, load=load, pixels=512 * 512)


def test_pixels_of_many_large_cases_are_drawn_within_the_memory_of_few() -> None:
    """The maps of 80 cases have 21 million pixels: a list of their numbers alone would take 168 MB."""
    generator = np.random.default_rng(3)
    cases = [large(number, generator) for number in range(80)]
    tracemalloc.start()
    model = fitted(cases)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    # What the maps say is right as it is: the few pixels that are drawn calibrate it no further.
    assert model.pixels.ece_after < 0.02


def ruled(patient: int, broken: Sequence[int], rules: int = 3, dice: float = 0.9) -> CalibrationCase:
    """A mask of that Dice that breaks those rules."""
    found = tuple(
        RuleResult("components", "a", None, 1.0, None, 1.0, "parts", "", place not in broken) for place in range(rules)
    )
    return replace(case(patient, np.random.default_rng(patient)), rules=found, dice=np.full(2, dice, np.float32))


def test_a_rule_that_good_masks_break_is_not_telling() -> None:
    """Half of the good masks break the first rule, bad masks break the second, nobody breaks the third."""
    cases = [ruled(number, [0] if number % 2 else []) for number in range(40)]
    cases += [ruled(number, [0, 1], dice=0.4) for number in range(40, 60)]
    assert telling_rules(cases, Targets(), 0) == (1, 2)


def test_few_patients_show_of_no_rule_that_good_masks_keep_it() -> None:
    # Of 9 patients with none that breaks it, (0 + 1) / (9 + 1) is alpha; of 8 it is more.
    assert telling_rules([ruled(number, []) for number in range(18)], Targets(alpha=0.1), 0) == (0, 1, 2)
    assert telling_rules([ruled(number, []) for number in range(16)], Targets(alpha=0.1), 0) == ()
    assert telling_rules([ruled(number, [], dice=0.4) for number in range(60)], Targets(), 0) == ()


def test_many_rules_are_not_telling_because_some_are_unbroken_by_chance() -> None:
    """Each of 25 rules is broken by every tenth good mask, so that nearly all of them break one."""
    generator = np.random.default_rng(0)
    sent = []
    for draw in range(40):
        cases = [ruled(number, np.flatnonzero(generator.random(25) < 0.1).tolist(), 25) for number in range(40)]
        sent.append(1 - 0.9 ** len(telling_rules(cases, Targets(alpha=0.1), draw)))
    # The expected share of good masks that break a telling rule is at most alpha, give or take the error of 40 draws.
    assert np.mean(sent) < 0.13


def test_masks_that_break_a_telling_rule_do_not_stand_against_a_threshold() -> None:
    """They are never accepted, so that the promise is of the others."""
    good = [ruled(number, []) for number in range(200)]
    bad = [ruled(number, [0], dice=0.4) for number in range(200, 300)]
    model = fitted([*good, *bad])
    assert model.telling_rules == (0, 1, 2)
    assert model.accept_threshold is not None
    lenient = fitted([*good, *(replace(item, rules=good[0].rules) for item in bad)])
    assert lenient.accept_threshold is None or lenient.accept_threshold > model.accept_threshold


def test_errors_keep_their_sign() -> None:
    generator = np.random.default_rng(3)
    structure = fitted([case(number, generator) for number in range(40)]).structures["a"]
    assert structure.signed
    assert structure.bias is not None
    errors = [error for error in structure.residuals if error is not None]
    assert min(errors) < 0 < max(errors)
    assert sorted(map(abs, errors)) == sorted(structure.known_conformity()[0])
