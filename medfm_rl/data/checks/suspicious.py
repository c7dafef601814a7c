"""Everything that looks suspicious in a data set."""

from __future__ import annotations

from collections.abc import Sequence

from medfm_rl.data.checks.facts import CaseFacts
from medfm_rl.data.checks.findings import Finding
from medfm_rl.data.checks.image_findings import find_in_images
from medfm_rl.data.checks.mask_findings import find_in_masks
from medfm_rl.data.checks.twins import find_twins


def find_suspicious(cases: Sequence[CaseFacts]) -> list[Finding]:
    """Everything in the facts of these cases that looks suspicious; those that could not be read have none.

    Who the patients are is doubted where cases are found (`find_data_set`), and not here.
    """
    return [*find_twins(cases), *find_in_images(cases), *find_in_masks(cases)]
