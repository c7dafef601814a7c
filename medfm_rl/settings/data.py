"""Where images lie."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from medfm_rl.choices import Layout, Split
from medfm_rl.settings.base import Settings


class DataSettings(Settings):
    """Where images lie and how the folder is laid out."""

    path: Path = Field(description="Folder of the data set.")
    layout: Layout = Field(
        "auto",
        description="nnunet: imagesTr, labelsTr, imagesTs, dataset.json; or images alone, CASE_0000 and so on, a file "
        "per channel. camus: patientXXXX folders, mhd or NIfTI. "
        "folder: images/ and, where there are any, labels/ with the same names. "
        "clips: as folder, where files of three axes are planes over time and folders of numbered pictures are clips. "
        "echonet: FileList.csv, VolumeTracings.csv and Videos/. auto: found out from what is there.",
    )
    split: Split = Field(
        "all", description="Which part of an nnU-Net data set: train (imagesTr), test (imagesTs) or all."
    )
    where: dict[str, str] = Field(
        default_factory=dict,
        description="Keep only the cases with these tags, for example {view: 4CH, phase: ED} in CAMUS.",
    )
    patient_pattern: str | None = Field(
        None,
        description="Regular expression whose first group, found in the case name, is the patient. "
        "Without one the layout decides: the part of the name before the first underscore, in CAMUS the folder, in "
        "nnU-Net's raw data (dataset.json) the whole name.",
    )

    @field_validator("patient_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"not a regular expression ({error})") from error
            if groups == 0:
                raise ValueError("needs a group in parentheses: what it finds is the patient")
        return pattern
