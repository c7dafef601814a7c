from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.clips import segmented_frames
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.correction import Verifier
from medfm_rl.correction.corrector import Neighbour
from medfm_rl.correction.methods import make_corrector
from medfm_rl.correction.neighbours import NeighbourVote
from medfm_rl.data.clips.motion import neighbours_of
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import CorrectionSettings, NetworkSettings, PreprocessingSettings, RewardSettings
from medfm_rl.types import Clip, Geometry, LabelSchema

LV = LabelSchema(("background", "LV"), (0, 1))
TINY = NetworkSettings(channels=(4, 8), residual_units=0)


class DarkIsVentricle(nn.Module):
    """Segments what is darker than the rest; it is not sure of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([130.0, 20.0]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return -(((images - self.values[None, :, None, None]) / 100) ** 2)


def corrector() -> NeighbourVote:
    adapter = TorchModuleAdapter(DarkIsVentricle(), LV, PreprocessingSettings(size=(32, 32), intensity="none")).eval()
    settings = CorrectionSettings(method="neighbours", views=2)
    verifier = Verifier(RewardNet(TINY, 2), load_anatomy("generic", LV), settings)
    made = make_corrector(adapter, RewardEnsemble([RewardNet(TINY, 2)], RewardSettings()), verifier, lambda: None)  # type: ignore[arg-type, return-value]
    assert isinstance(made, NeighbourVote)
    return made


def clip() -> Clip:
    """A dark disc in front of texture; in the middle frame a bright bar lies over it."""
    noise = np.random.default_rng(0).integers(115, 145, (32, 32))
    rows, columns = np.mgrid[:32, :32]
    frame = np.where((rows - 16) ** 2 + (columns - 16) ** 2 <= 64, 20, noise)
    frames = np.repeat(frame[None], 5, axis=0)
    frames[2, :, 18:22] = noise[:, 18:22]
    return Clip("c", "p", frames[:, None].astype(np.float32), None, Geometry.unknown(2))


def near_the_middle() -> list[tuple[int, float]]:
    return neighbours_of(2, 5)


def test_neighbours_outvote_a_frame_that_lost_a_part() -> None:
    made, seen = corrector(), clip()
    masks = [made.adapter.segment(seen.frame(index)) for index in range(5)]
    case = seen.frame(2)
    near = [Neighbour(seen.frame(place), masks[place], weight) for place, weight in near_the_middle()]
    result = made.correct(case, neighbours=near)
    assert result.before[16, 20] == 0
    assert result.after[16, 20] == 1
    # 2 |A and B| / (|A| + |B|) with the disc.
    assert 2 * (result.after & masks[0]).sum() / (result.after.sum() + masks[0].sum()) > 0.93
    assert result.views == 4
    assert result.verification is not None


def test_masks_in_doubt_say_nothing_and_the_segmenter_speaks_in_their_place() -> None:
    """Every mask that is given is empty: what is proposed is the segmenter's own average over time."""
    made, seen = corrector(), clip()
    case, empty = seen.frame(2), np.zeros((32, 32), np.uint8)
    near = [Neighbour(seen.frame(place), None, weight) for place, weight in near_the_middle()]
    result = made.correct(case, original=empty, neighbours=near)
    assert not result.before.any()
    frames = segmented_frames(made.adapter, seen, over_time=True)
    averaged = next(frame for frame in frames if frame.index == 2)
    expected = clean_up(made.adapter.restore(averaged.logits, averaged.sample), made.verifier.anatomy)
    assert np.array_equal(result.after, expected)
    assert expected[16, 20] == 1


def test_where_whole_clips_are_segmented_the_mask_of_the_frame_has_its_say_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a neighbour of little weight the mask of the frame decides, and not what the network makes of it alone."""
    made, seen = corrector(), clip()
    case, everywhere = seen.frame(2), np.ones((32, 32), np.uint8)
    near = [Neighbour(seen.frame(1), np.zeros((32, 32), np.uint8), 0.1)]
    alone = made.correct(case, original=everywhere, neighbours=near).after
    monkeypatch.setattr(type(made.adapter), "segments_clips", True)
    assert made.correct(case, original=everywhere, neighbours=near).after.all()
    assert not alone.all()


def test_an_image_that_is_of_no_clip_stays_as_it_is() -> None:
    result = corrector().correct(clip().frame(2))
    assert not result.accepted
    assert result.reasons == ("nothing better than the original was found",)
