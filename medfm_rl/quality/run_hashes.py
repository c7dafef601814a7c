"""What the networks of a run are called in every record: one hash of its segmenter and one of its reward networks."""

from __future__ import annotations

from pathlib import Path

from medfm_rl.data.files import hash_folder


def hash_run(run: Path) -> dict[str, str]:
    """`model_hash` and `reward_hash` of a finished run: SHA-256 of its folders `model` and `reward`.

    The first is also that of what `export` writes, for it is a copy. The second is of the judge and of how the networks
    are put together too.

    Args:
        run: Folder of the run.
    """
    return {"model_hash": hash_folder(run / "model"), "reward_hash": hash_folder(run / "reward")}
