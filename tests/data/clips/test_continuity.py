from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clip_files import COUNT, greys

from medfm_rl.data.clips.continuity import cuts_after, interruptions, missing_after
from medfm_rl.types import Clip, Geometry


def clip(frames: np.ndarray, times: tuple[float, ...] | None) -> Clip:
    return Clip("c", "p", frames.astype(np.float32)[:, None], times, Geometry.unknown(2))


def drifting(count: int, seed: int) -> np.ndarray:
    """Frames `(T, H, W)` of one texture that moves on by a pixel a frame."""
    noise = np.random.default_rng(seed).normal(size=(40, 40 + count))
    smooth = sum(np.roll(noise, (dy, dx), (0, 1)) for dy in range(-4, 5) for dx in range(-4, 5))
    return np.stack([smooth[:, index : index + 40] for index in range(count)])


def test_a_clip_without_a_break_is_not_interrupted() -> None:
    assert interruptions(clip(drifting(12, 0), tuple(0.03 * np.arange(12)))) == ()
    assert interruptions(clip(drifting(12, 0), None)) == ()
    assert interruptions(clip(greys(), None)) == ()


def test_frames_that_were_left_out_show_in_the_times() -> None:
    times = tuple(np.concatenate([0.04 * np.arange(8), 0.04 * np.arange(11, 15)]))
    assert missing_after(times) == [7]
    (said,) = interruptions(clip(drifting(12, 0), times))
    assert said == "frames are missing after frame 7, by their times"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(4, 20))
def test_a_rate_that_varies_by_a_half_is_no_break(seed: int, count: int) -> None:
    steps = 0.03 * np.random.default_rng(seed).uniform(1.0, 1.5, count)
    assert missing_after(tuple(np.cumsum(steps))) == []


def test_another_view_in_the_same_file_is_a_cut() -> None:
    frames = np.concatenate([drifting(8, 0), drifting(8, 1)])
    assert cuts_after(frames[:, None]) == [7]
    (said,) = interruptions(clip(frames, None))
    assert said.startswith("the picture changes at once after frame 7")


def test_frames_that_are_shown_several_times_are_no_cuts() -> None:
    noise = np.random.default_rng(0).normal(size=(10, 40, 40))
    frames = np.repeat(drifting(10, 0) + 3 * noise, 3, axis=0)
    assert np.corrcoef(frames[2].ravel(), frames[3].ravel())[0, 1] < 0.9
    assert cuts_after(frames[:, None]) == []


def test_a_clip_that_stands_still_has_no_cut_and_few_frames_have_no_usual_change() -> None:
    still = np.repeat(drifting(1, 0), COUNT, axis=0)
    assert cuts_after(still[:, None]) == []
    assert cuts_after(np.zeros((5, 1, 8, 8))) == []
    other = np.repeat(drifting(1, 1), COUNT, axis=0)
    assert cuts_after(np.concatenate([still, other])[:, None]) == [COUNT - 1]
    assert cuts_after(np.concatenate([drifting(1, 0), drifting(1, 1)])[:, None]) == []
