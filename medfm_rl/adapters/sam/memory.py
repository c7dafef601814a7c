"""SAM 2's memory over a clip: the boxes of one frame, carried to the others by transformers' network of videos.

The network of videos is that of images and a memory. Only the memory is made here; encoders and decoder are those of
the image network, the very same parameters, so that what adaptation has changed counts here too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from medfm_rl.adapters.checkpoints import NO_CHECKPOINT, first_line, refuse_misfit
from medfm_rl.adapters.sam.checkpoints import SAM2_MEMORY, SamCheckpoint, backwards, renamed
from medfm_rl.adapters.sam.prompts import BoxSource
from medfm_rl.errors import DataError, ModelError
from medfm_rl.types import Clip, frame_id

_CORNERS: Final = (2, 3)
"""Labels of the two points that a box is, in SAM's prompt encoder."""
_DOWNSAMPLER: Final = "memory_encoder.mask_downsampler.encoder.12.weight"
_REMEDY: Final = (
    "take the file as its authors wrote it (MedSAM2_latest.pt), or a folder that Sam2VideoModel.save_pretrained wrote; "
    "or set memory: false, which segments each frame by itself"
)


@final
class ClipMemory(nn.Module):
    """The memory of SAM 2: what transformers' network of videos has besides that of images. It does not learn.

    Args:
        config: `Sam2VideoConfig` of the network of videos.
        network: `Sam2Model`, the network of images.
    """

    def __init__(self, config: Any, network: nn.Module) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            video = _network_of_videos(config)
        for name, part in video.named_children():
            if not hasattr(network, name):
                self.add_module(name, part)
        for name, value in video.named_parameters(recurse=False):
            if not hasattr(network, name):
                self.register_parameter(name, value)
        self.requires_grad_(False)

    def with_network(self, network: nn.Module) -> Any:
        """`Sam2VideoModel` of this memory and of encoders and decoder of the network of images; nothing is copied."""
        with torch.device("meta"):
            video = _network_of_videos(self.config)
        for owner in (network, self):
            for name, part in owner.named_children():
                setattr(video, name, part)
            for name, value in owner.named_parameters(recurse=False):
                setattr(video, name, value)
        video.training = False
        return video


@final
class Tracker:
    """Objects of a clip, followed from the frame with their boxes through one frame after the other.

    It keeps what the memory looks at, and no more: features of the last few frames, and a vector of every frame for
    each object.

    Args:
        video: `Sam2VideoModel`, in evaluation mode.
        count: Frames of the clip.
        start: The frame with the boxes.
        pixels: That frame as the network takes it, `(3, H, W)`.
        boxes: One for each object, `(N, 4)`, (x_min, y_min, x_max, y_max) in input pixels.

    Attributes:
        unseen: Which objects the network itself does not see in the frame with their boxes, `(N,)` bool: the memory
            starts without them.
    """

    def __init__(self, video: Any, count: int, start: int, pixels: Tensor, boxes: Tensor) -> None:
        self.video = video
        self.frames = _FrameAtWork(count)
        device = pixels.device
        self.session = _tool().Sam2VideoInferenceSession(
            video_height=pixels.shape[-2],
            video_width=pixels.shape[-1],
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        self.session.processed_frames = self.frames
        labels = torch.tensor([[_CORNERS]], dtype=torch.int32, device=device)
        for number, box in enumerate(boxes):
            place = self.session.obj_id_to_idx(number)
            prompt = {"point_coords": box.reshape(1, 1, 2, 2), "point_labels": labels}
            self.session.add_point_inputs(place, start, prompt)
        self.session.obj_with_new_inputs = list(range(len(boxes)))
        self.unseen: Tensor = self._look(start, pixels, reverse=False).object_score_logits.flatten() <= 0

    def turn(self) -> None:
        """Forgets all but the frame with the boxes, from where objects can then be followed the other way.

        MedSAM2's own scripts begin anew for it, too.
        """
        for outputs in self.session.output_dict_per_obj.values():
            outputs["non_cond_frame_outputs"].clear()

    def follow(self, index: int, pixels: Tensor, reverse: bool) -> Tensor:
        """Binary logits `(N, h, w)` of the objects in the next frame, as SAM 2 gives them; -1024 where one is hidden.

        Args:
            index: Its place in the clip.
            pixels: As in the constructor.
            reverse: Whether time runs backwards.
        """
        masks: Tensor = self._look(index, pixels, reverse).pred_masks
        # Not of inference mode, in which nothing can be done with a tensor afterwards.
        return masks[:, 0].clone()

    def _look(self, index: int, pixels: Tensor, reverse: bool) -> Any:
        self.frames.show(index, pixels)
        found = self.video(self.session, frame_idx=index, reverse=reverse)
        seen = self.video.num_maskmem
        for outputs in self.session.output_dict_per_obj.values():
            for frames in outputs.values():
                for place, output in frames.items():
                    output.pop("high_res_masks", None)
                    output.pop("pred_masks", None)
                    if frames is outputs["non_cond_frame_outputs"] and abs(index - place) >= seen:
                        output.pop("maskmem_features", None)
                        output.pop("maskmem_pos_enc", None)
        return found


@final
class _FrameAtWork:
    """The frame that is looked at, in the place of all frames of a clip, whose number a session asks for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.shown: tuple[int, Tensor] | None = None

    def show(self, index: int, pixels: Tensor) -> None:
        self.shown = (index, pixels)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if self.shown is None or self.shown[0] != index:
            raise IndexError(f"frame {index} is not at work")
        return self.shown[1]


def prompted_frame(source: BoxSource, clip: Clip, wanted: int | None = None) -> int:
    """The frame of a clip whose boxes a memory carries to the others, counted from 0.

    Args:
        source: Where boxes come from; other frames need have none.
        clip: The clip.
        wanted: The frame to take; None: the first with a box of every structure, or else the first with the most.

    Raises:
        DataError: There is no box on any frame, or on the one that is wanted; or what there is cannot be used.
    """
    count = len(clip.frames)
    if wanted is not None and wanted >= count:
        raise DataError(
            f"clip {clip.clip_id}: prompted_frame is {wanted}, and its {count} frames are counted from 0; give another "
            "one, or null for the first that has boxes"
        )
    best, most = None, 0
    for index in range(count) if wanted is None else (wanted,):
        case = clip.frame(index)
        if not source.knows(case.case_id):
            continue
        boxes = source.boxes(case)
        found = int(np.isfinite(boxes).all(axis=1).sum())
        if found > most:
            best, most = index, found
        if most == len(boxes):
            break
    if best is None:
        which = "any frame" if wanted is None else f"frame {wanted}, the prompted_frame"
        raise DataError(
            f"{source.origin}: there is no box on {which} of clip {clip.clip_id}; the memory needs boxes of one frame: "
            f"give them, or a mask, under its name (such as {frame_id(clip.clip_id, wanted or 0)}), or a sequence of "
            f"masks named {clip.clip_id}"
        )
    return best


def load_memory(
    checkpoint: SamCheckpoint, config: Mapping[str, Any], network: nn.Module, pixels: int, grid: int
) -> ClipMemory:
    """The memory of a checkpoint.

    Args:
        checkpoint: Its tensors of the memory, under the names that they have there.
        config: What `config.json` says; of a file, what it would say of the network of images.
        network: `Sam2Model` with the weights of the checkpoint.
        pixels: Side of the input.
        grid: Side of the grid of features that the memory looks at.

    Raises:
        ModelError: The checkpoint has none, or not all of it, or one of another size.
    """
    if not checkpoint.state:
        what = "the file" if checkpoint.config is None else "the folder"
        raise ModelError(f"{checkpoint.path}: memory is true, and {what} has no weights of SAM 2's memory; {_REMEDY}")
    of_file = checkpoint.config is None
    if of_file:
        config = {**config, **_architecture(checkpoint, pixels, grid)}
    tool = importlib.import_module("transformers")
    try:
        memory = ClipMemory(tool.Sam2VideoConfig.from_dict(dict(config)), network)
    except (*NO_CHECKPOINT, importlib.import_module("huggingface_hub.errors").StrictDataclassError) as error:
        raise ModelError(
            f"{checkpoint.path}: not the architecture of a Sam2VideoModel ({first_line(error)}); {_REMEDY}"
        ) from error
    _refuse_other_grid(checkpoint, memory.config.memory_attention_rope_feat_sizes, grid)
    own = memory.state_dict()
    try:
        refuse_misfit(
            {renamed(name, backwards(SAM2_MEMORY)): value for name, value in own.items()} if of_file else own,
            checkpoint.state,
            checkpoint.weights,
        )
    except ModelError as error:
        raise ModelError(f"{error}. memory is true, and these are weights of SAM 2's memory: {_REMEDY}") from error
    given = checkpoint.state
    memory.load_state_dict({renamed(name, SAM2_MEMORY): value for name, value in given.items()} if of_file else given)
    return memory


def _architecture(checkpoint: SamCheckpoint, pixels: int, grid: int) -> dict[str, Any]:
    """What `config.json` would say of the memory, from the shapes in a file."""
    size, count = _sizes_in(checkpoint), checkpoint.count
    layer, fuser = "memory_attention.layers.0.", "memory_encoder.fuser.layers.0."
    width, kernel = size("memory_attention.norm.weight", 0), size(f"{fuser}dwconv.weight", 2)
    return {
        "image_size": pixels,
        "num_maskmem": size("maskmem_tpos_enc", 0),
        "enable_occlusion_spatial_embedding": "no_obj_embed_spatial" in checkpoint.state,
        "enable_temporal_pos_encoding_for_object_pointers": "obj_ptr_tpos_proj.weight" in checkpoint.state,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": count("memory_attention.layers."),
        "memory_attention_downsample_rate": width // size(f"{layer}self_attn.q_proj.weight", 0),
        "memory_attention_feed_forward_hidden_size": size(f"{layer}linear1.weight", 0),
        "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": size("memory_encoder.pix_feat_proj.weight", 0),
        "memory_encoder_output_channels": size("maskmem_tpos_enc", 3),
        "mask_downsampler_embed_dim": size(_DOWNSAMPLER, 0),
        "memory_fuser_num_layers": count("memory_encoder.fuser.layers."),
        "memory_fuser_embed_dim": size(f"{fuser}dwconv.weight", 0),
        "memory_fuser_intermediate_dim": size(f"{fuser}pwconv1.weight", 0),
        "memory_fuser_kernel_size": kernel,
        "memory_fuser_padding": kernel // 2,
    }


def _sizes_in(checkpoint: SamCheckpoint) -> Any:
    def size(name: str, axis: int) -> int:
        if name not in checkpoint.state:
            raise ModelError(
                f"{checkpoint.path}: memory is true, and the file lacks {name} of SAM 2's memory; {_REMEDY}"
            )
        return checkpoint.size(name, axis)

    return size


def _refuse_other_grid(checkpoint: SamCheckpoint, sides: Any, grid: int) -> None:
    if list(sides) != [grid, grid]:
        raise ModelError(
            f"{checkpoint.path / 'config.json'}: memory_attention_rope_feat_sizes is {list(sides)}, and images of this "
            f"size have features of {grid} x {grid}; write [{grid}, {grid}] there"
        )


def _network_of_videos(config: Any) -> Any:
    return importlib.import_module("transformers").Sam2VideoModel(config)


def _tool() -> Any:
    return importlib.import_module("transformers.models.sam2_video.modeling_sam2_video")
