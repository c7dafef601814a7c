"""The process that scores for the service: a run in memory, a request a line, an answer a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medfm_rl.errors import StorageError, UserError


def main(run: str) -> None:
    """Answers until nobody asks any more."""
    from medfm_rl.runs.finished import load_run

    # What libraries print would be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    loaded = load_run(Path(run), "auto", None)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(loaded, json.loads(line))) + "\n")
        answers.flush()


def _answer(run: Any, request: dict[str, str]) -> dict[str, str]:
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.settings import DataSettings
    from medfm_rl.workflows.deploy.score import ScoreRequest, score

    try:
        files = find_cases(DataSettings(path=Path(request["images"])))
        masks = find_masks(Path(request["masks"]), files)
        score(run, files, Path(request["out"]), ScoreRequest(masks=masks))
    except StorageError as error:
        return {"storage": str(error)}
    except UserError as error:
        return {"error": str(error)}
    return {"done": request["out"]}


if __name__ == "__main__":
    main(sys.argv[1])
