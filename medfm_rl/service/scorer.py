"""Scores what programs send: by a process that has the run loaded, with the function that `medfm-rl score` calls."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import final

from medfm_rl.data.files import replace_on_success, write_text
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import StorageError
from medfm_rl.runs.scores import SCORES_FILE
from medfm_rl.service.errors import DeskError
from medfm_rl.service.uploads import require_own_pixels, suffix_to_send

_LONGEST_NAME = 200
_MOST_FILES = 100_000


@final
class Scorer:
    """Scores masks with a run; one request at a time.

    Args:
        run: The run, with a quality model.
        folder: Where requests and results lie.
        roots: Folders from which files may be scored by path.
    """

    def __init__(self, run: Path, folder: Path, roots: Sequence[Path]) -> None:
        self._run = run.absolute()
        self._folder = folder.absolute() / "scored"
        self._roots = tuple(root.resolve() for root in roots)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def upload(self, name: str, image: tuple[str, bytes], mask: tuple[str, bytes]) -> bytes:
        """Scores an image and a mask that were sent; what comes is the `scores.json` that `score` writes of them.

        They are kept under a name made of their content, so that the same request gives the same result, and the
        command can be called on the same files.

        Raises:
            DeskError: The name is none, a file is of no known kind, or the case cannot be scored.
            StorageError: The disk is full, or cannot be written.
        """
        if not name or len(name) > _LONGEST_NAME or not all(part.isalnum() or part in "._-" for part in name):
            raise DeskError(422, "name", "the case has no name that files can have", "use letters, digits, . _ and -")
        digest = hashlib.sha256()
        sent = {"images": image, "masks": mask}
        suffixes = {}
        for kind, (file, content) in sent.items():
            suffixes[kind] = suffix_to_send(file, f"the file of {kind}")
            digest.update(f"{kind}\0{file}\0{len(content)}\0".encode(errors="surrogatepass"))
            digest.update(content)
        place = self._folder / f"{name[:60]}-{digest.hexdigest()[:24]}"
        with self._lock:
            for kind, (_, content) in sent.items():
                path = place / kind / f"{name.lstrip('.') or 'case'}{suffixes[kind]}"
                if not path.exists():
                    with replace_on_success(path) as temporary:
                        temporary.write_bytes(content)
                        require_own_pixels(temporary, f"the file of {kind}")
            try:
                return self._score(place / "images", place / "masks", place / "out")
            except DeskError as error:
                # Who sent it knows nothing of the folders here, and need not.
                told = error.message.replace(f"{place}/", "")
                raise DeskError(error.status, error.code, told, error.remedy, error.after) from error

    def by_path(self, images: str, masks: str) -> bytes:
        """The same of folders that lie in one of the roots.

        Raises:
            DeskError: They do not, or hold links that lead elsewhere.
        """
        place, beside = self._allowed(images), self._allowed(masks)
        name = hashlib.sha256(f"{place}\0{beside}".encode(errors="surrogateescape")).hexdigest()[:24]
        with self._lock:
            return self._score(place, beside, self._folder / f"path-{name}" / "out")

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _allowed(self, text: str) -> Path:
        try:
            place = Path(text).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise _outside() from error
        if not any(place == root or root in place.parents for root in self._roots) or not place.is_dir():
            raise _outside()
        for number, path in enumerate(place.rglob("*")):
            if number >= _MOST_FILES:
                raise DeskError(422, "too_many", f"more than {_MOST_FILES} files", "score them by `medfm-rl score`")
            # A header may name files anywhere for its pixels.
            for part in [path, *(pixel_files(path) if path.is_file() else ())]:
                inside = part.resolve()
                if not any(root in inside.parents for root in self._roots):
                    raise _outside()
        return place

    def _score(self, images: Path, masks: Path, out: Path) -> bytes:
        """What `score` writes; for one request at a time, since the same one has the same folder."""
        answer = self._ask(json.dumps({"images": str(images), "masks": str(masks), "out": str(out)}))
        if "storage" in answer:
            raise StorageError(answer["storage"])
        if "error" in answer:
            raise DeskError(422, "score", answer["error"], "correct what it names, and send it again")
        return (out / SCORES_FILE).read_bytes()

    def _ask(self, line: str) -> dict[str, str]:
        for attempt in range(2):
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if answer:
                found: dict[str, str] = json.loads(answer)
                return found
            self._end()
            if attempt:
                break
        raise DeskError(
            503, "scorer", "the process that scores has ended", f"see {self._folder / 'log.txt'}, and try again", 10
        )

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / "README.txt", "What programs had the desk score, and the results.\n")
            with (self._folder / "log.txt").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "medfm_rl.service.score_process", str(self._run)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            # Waits for it, and closes what led to it.
            self._process.communicate()
            self._process = None


def _outside() -> DeskError:
    """The same for what is not there and for what may not be seen: it must not tell which files there are."""
    return DeskError(
        403, "outside", "the folder is in none of those that may be scored", "open the desk with it as --root"
    )
