"""How data sets are laid out in folders, and who each image shows."""

from medfm_rl.data.layouts.cases import (
    CaseFile,
    are_simulated,
    describe_patients,
    find_ventricle,
    require_masks,
    ventricle_of,
    whole_clips,
    with_masks,
)
from medfm_rl.data.layouts.description import SIMULATION_RECORD, DescribedLabels, described_labels, is_simulated
from medfm_rl.data.layouts.finding import DataSet, find_cases, find_data_set
from medfm_rl.data.layouts.patients import name_patients, split_by_patient

__all__ = [
    "SIMULATION_RECORD",
    "CaseFile",
    "DataSet",
    "DescribedLabels",
    "are_simulated",
    "describe_patients",
    "described_labels",
    "find_cases",
    "find_data_set",
    "find_ventricle",
    "is_simulated",
    "name_patients",
    "require_masks",
    "split_by_patient",
    "ventricle_of",
    "whole_clips",
    "with_masks",
]
