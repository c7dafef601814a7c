"""What one image of a run needs, measured on one patch: the base of what is said of memory and disk beforehand."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from medfm_rl.activations import Activations, measure_activations
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.packing import pack
from medfm_rl.errors import ConfigError
from medfm_rl.networks import argmax_masks
from medfm_rl.progress import Progress, silent
from medfm_rl.reward.network import RewardNet
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.checks import split_target
from medfm_rl.workflows.training_images import load_images
from medfm_rl.workflows.untrained_reward import untrained_reward

_STAGE: Final = "measuring what one image needs"
_CASES: Final = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes of one image of the patch size, and of the networks.

    Attributes:
        resident: Of the process as it is, with the segmenter; 0 on a GPU.
        policy: What the segmenter keeps for the gradient of one image.
        reward: What a reward network keeps.
        policy_weights: Of the segmenter.
        reward_weights: Of a reward network.
        grid: `(*S)` of a patch.
        channels: C.
        classes: K.
        packed_image: Of an image on the disk, in single and in half precision.
        packed_mask: Of a mask on the disk.
        patches: Of the target to learn on, of the target to compare on, and of the source.
        on_gpu: Whether the networks run on a GPU.
    """

    resident: int
    policy: Activations
    reward: Activations
    policy_weights: int
    reward_weights: int
    grid: tuple[int, ...]
    channels: int
    classes: int
    packed_image: tuple[int, int]
    packed_mask: int
    patches: tuple[int, int, int]
    on_gpu: bool

    @property
    def pixels(self) -> int:
        """Of one patch."""
        found = 1
        for side in self.grid:
            found *= side
        return found


def measure_footprint(config: AdaptConfig, segmenter: SegmenterAdapter, progress: Progress) -> Footprint:
    """Runs segmenter and reward network once on one patch; nothing is written, and no generator of the process moves.

    Args:
        config: Settings and data that have been checked.
        segmenter: That of the settings, on its device and in evaluation mode.
        progress: Told how far it is.

    Raises:
        UserError: A case cannot be read.
        ConfigError: One patch does not fit into the memory of the GPU.
    """
    device = segmenter.device
    progress(_STAGE, 0, 1)
    learning, selecting = split_target(config)
    sources = [] if config.source is None else find_cases(config.source)
    few = learning[:: max(1, len(learning) // _CASES)][:_CASES]
    shown = load_images(few, segmenter, silent, "")
    per_case = len(shown) / len(few)
    image = shown.images[[len(shown) // 2]].to(device)
    reward = untrained_reward(config.reward.network, segmenter).to(device)
    try:
        with torch.no_grad():
            mask = argmax_masks(segmenter, image)
        resident = 0 if device.type == "cuda" else resident_memory()
        kept = measure_activations(segmenter, image)
        kept_by_reward = measure_activations(_Judging(reward, mask), image)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the gradient of one patch of shape {tuple(image.shape)} does not fit into the memory of {device}; take a "
            "GPU with more memory, device: cpu, or a segmenter with smaller patches"
        ) from error
    plain = image[0].float().cpu().numpy()
    found = Footprint(
        resident,
        kept,
        kept_by_reward,
        _bytes_of(segmenter),
        _bytes_of(reward),
        tuple(image.shape[2:]),
        image.shape[1],
        segmenter.schema.num_classes,
        (len(pack(plain)), len(pack(plain.astype("float16")))),
        len(pack(mask[0].to("cpu", torch.uint8).numpy())),
        (round(per_case * len(learning)), round(per_case * len(selecting)), round(per_case * len(sources))),
        device.type == "cuda",
    )
    progress(_STAGE, 1, 1)
    return found


def available_memory(device: torch.device) -> int | None:
    """Bytes that the process may take beside what it has, of the GPU where it runs there; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_of_container()]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        # No Linux: then the system is not asked.
        return None
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def free_disk(path: Path) -> int:
    """Bytes that are free where a folder lies or will lie."""
    there = path.resolve()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def resident_memory() -> int:
    """Bytes of memory that the process has now; 0 where the system does not say."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError, ImportError):
        return 0


def _of_container() -> int | None:
    """What the limit of a container leaves (cgroup version 2, then 1)."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most = Path(limit).read_text().strip()
            if most.isdigit():
                return max(0, int(most) - int(Path(used).read_text()) + _evictable(Path(used).with_name("memory.stat")))
        except (OSError, ValueError):
            continue
    return None


def _evictable(path: Path) -> int:
    """Files that the system keeps in memory as long as nobody needs it; they count as used."""
    values = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
    return int(values.get("inactive_file", values.get("total_inactive_file", 0)))


def _bytes_of(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


class _Judging(torch.nn.Module):
    """A reward network on one action, as a network of images alone."""

    def __init__(self, net: RewardNet, action: torch.Tensor) -> None:
        super().__init__()
        self.net = net
        self.action = action

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(images, self.action)
        return found
