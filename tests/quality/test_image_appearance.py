from __future__ import annotations

import torch

from medfm_rl.quality.appearance import _decile_ranks, appearance


def test_the_numbers_by_hand() -> None:
    """The left half is 1 and the right half 3: -1 and 1 after normalisation, in columns of two pixels a cell."""
    image = torch.ones(1, 1, 16, 16)
    image[..., 8:] = 3
    found = appearance(image)[0]
    assert found.shape == (64 + 11 + 4,)
    assert torch.equal(found[:64].view(8, 8), torch.tensor([-1.0] * 4 + [1.0] * 4).double().expand(8, 8))
    assert found[64:75].tolist() == [-1] * 5 + [1] * 6 or found[64:75].tolist() == [-1] * 6 + [1] * 5
    # The halves meet in one cell only in the fourth octave, where both differ from their mean by 1.
    expected = torch.tensor([1e-3, 1e-3, 1e-3, 1.0]).log().double()
    torch.testing.assert_close(found[75:], expected)


def test_brightness_and_contrast_are_no_matter_and_batch_mates_neither() -> None:
    images = torch.rand(3, 2, 20, 17, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(appearance(images * 40 + 7), appearance(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(appearance(images[1:2])[0], appearance(images)[1])


def test_noise_has_more_fine_detail_than_what_is_smooth() -> None:
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    assert float(appearance(noise)[0, 75]) > float(appearance(smooth)[0, 75]) + 1


def test_volumes_and_flat_images_have_numbers_too() -> None:
    volume = torch.rand(2, 1, 1, 9, 8, generator=torch.Generator().manual_seed(0))
    assert appearance(volume).shape == (2, 64 + 11 + 4)
    assert bool(torch.isfinite(appearance(torch.zeros(1, 1, 8, 8))).all())


def test_images_of_all_sizes_have_as_many_numbers() -> None:
    """Volumes of few and of many slices are compared with one another."""
    volumes = [torch.rand(1, 1, depth, 18, 16, generator=torch.Generator().manual_seed(0)) for depth in (1, 4, 6, 40)]
    assert {appearance(volume).shape for volume in volumes} == {(1, 64 + 11 + 4)}
    # The detail within slices is told also where there is one slice only.
    slice_alone = appearance(volumes[0][:, :, 0])[0, 75:]
    torch.testing.assert_close(appearance(volumes[0])[0, 75:], slice_alone)


def test_the_deciles_of_a_large_volume_are_within_it() -> None:
    # 2^24 is as far as single precision counts.
    for count in (1, 11, 2**24 + 4, 200 * 320 * 320):
        ranks = _decile_ranks(count)
        assert ranks[0] == 0
        assert ranks[-1] == count - 1
        assert ranks.diff().min() >= 0
    assert _decile_ranks(101).tolist() == list(range(0, 101, 10))
