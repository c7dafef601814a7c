"""What a data set holds, case by case, and what in it looks suspicious.

Facts of each case are taken while it is in memory; what is odd is found in the facts of all. So one reading serves the
check of a data set and the commands that read it anyway.
"""

from medfm_rl.data.checks.facts import (
    CaseFacts,
    ImageFacts,
    MaskFacts,
    case_facts,
    facts_by_schema,
    facts_of_record,
    image_facts,
    mask_facts,
    record_of_facts,
)
from medfm_rl.data.checks.findings import Finding, notices
from medfm_rl.data.checks.suspicious import find_suspicious

__all__ = [
    "CaseFacts",
    "Finding",
    "ImageFacts",
    "MaskFacts",
    "case_facts",
    "facts_by_schema",
    "facts_of_record",
    "find_suspicious",
    "image_facts",
    "mask_facts",
    "notices",
    "record_of_facts",
]
