"""What the commands of the tests load, imported once in the process that they are forked from."""

from __future__ import annotations

import importlib

for _name in (
    "pytest",  # the main module of whoever asks for a process
    "torch._dynamo",  # the first optimiser loads it
    "monai.networks.nets",  # with what it finds installed: thousands of modules
    "medfm_rl.cli",
    "medfm_rl.workflows.adapt.final_report",
    "medfm_rl.workflows.adapt.loop",
    "medfm_rl.workflows.calibrate.quality",
    "medfm_rl.workflows.deploy.correct",
    "medfm_rl.workflows.train.source",
    # Last, because what it needs is optional.
    "medfm_rl.service.app",
):
    importlib.import_module(_name)
