"""Which anatomy rules tell a bad mask by themselves."""

from __future__ import annotations

from collections.abc import Sequence

from medfm_rl.data.layouts import split_by_patient
from medfm_rl.quality.calibration_case import CalibrationCase
from medfm_rl.quality.model import Targets
from medfm_rl.seeding import derive_seed


def telling_rules(cases: Sequence[CalibrationCase], targets: Targets, seed: int) -> tuple[int, ...]:
    """The rules that hardly any good mask breaks: a mask that breaks one of them is probably not good.

    Rules are put in an order, those that fewest good masks break first, on half of the patients, and as many are taken
    from its beginning as keep the share of patients with a good mask that breaks any of them small on the other half.
    That share can only grow with the number of rules, so conformal risk control (Angelopoulos et al., ICLR 2024)
    applies: of P patients with good masks k may have one that breaks a rule if (k + 1) / (P + 1) is at most alpha, and
    then the good masks of a new patient break one with a probability of at most alpha. Rules tested one by one would be
    chosen by chance: of twenty some are broken by none of ten patients, whatever they are worth.

    Args:
        cases: Calibration cases; not those that the threshold is tested on.
        targets: What a good mask is, and alpha.
        seed: Seed of the split.

    Returns:
        Places in the profile, in its order; none with fewer than (1 - alpha) / alpha patients in the second half.
    """
    good = [case for case in cases if case.dice.mean() >= targets.dice]
    if len({case.patient_id for case in good}) < 2:
        return ()
    rules = len(good[0].rules)
    to_order, to_count = split_by_patient(good, 0.5, derive_seed(seed, "telling rules"))
    order = sorted(range(rules), key=lambda rule: len(_breaking(to_order, [rule])))
    patients = len({case.patient_id for case in to_count})
    kept = [
        count
        for count in range(1, rules + 1)
        if len(_breaking(to_count, order[:count])) + 1 <= targets.alpha * (patients + 1) + 1e-9
    ]
    return tuple(sorted(order[: max(kept, default=0)]))


def _breaking(cases: Sequence[CalibrationCase], rules: Sequence[int]) -> set[str]:
    """Patients with a mask that breaks one of the rules."""
    return {case.patient_id for case in cases if any(not case.rules[rule].passed for rule in rules)}
