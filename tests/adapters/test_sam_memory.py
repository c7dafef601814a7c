"""MedSAM2's memory over clips, against transformers' own network of videos: a tiny one of the real class."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sam_models import moving_echo, tiny_sam2, tiny_sam2_video, write_folder
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from medfm_rl.adapters import MedSAM2Adapter, check_adapter
from medfm_rl.adapters.clips import segment_frames
from medfm_rl.adapters.loading import open_to_learning
from medfm_rl.adapters.lora import add_low_rank
from medfm_rl.adapters.sam.checkpoints import SAM2_MEMORY, backwards, renamed
from medfm_rl.adapters.sam.memory import Tracker
from medfm_rl.adapters.sam.prompts import boxes_of
from medfm_rl.cli import app
from medfm_rl.data.clips.sequences import read_sequence, write_sequence
from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import LoRASettings, MedSAM2Settings
from medfm_rl.types import Clip, LabelMap
from medfm_rl.workflows.inspection import inspect_model

transformers = pytest.importorskip("transformers", reason="needs transformers (extra medsam)")
pytestmark = pytest.mark.medsam

COUNT, START = 7, 3
BOXES = {"LV": [40, 25, 72, 65], "MYO": [30, 18, 82, 72]}
FORMS = ("file", "folder")


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_sam2_video()


@pytest.fixture(scope="module")
def folders(network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A segmenter folder for each form of the checkpoint, with boxes of one frame of a clip and the memory on."""
    root = tmp_path_factory.mktemp("memory")
    boxes = write_boxes(root / "boxes.json", {START: BOXES})
    said = {"memory": True, "prompts": {"kind": "from_file", "path": str(boxes)}}
    hub = write_folder(root / "folder", kind="medsam2", checkpoint="hub", size=128, **said)
    network.save_pretrained(hub / "hub")
    file = write_folder(root / "file", kind="medsam2", checkpoint="original.pth", size=128, **said)
    torch.save({"model": file_state(network, MedSAM2Adapter.load(hub))}, file / "original.pth")
    return {"folder": hub, "file": file}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> MedSAM2Adapter:
    return MedSAM2Adapter.load(folders["folder"])


@pytest.fixture
def adapter(loaded: MedSAM2Adapter) -> MedSAM2Adapter:
    return copy.deepcopy(loaded)


def write_boxes(path: Path, of_frames: dict[int, dict[str, list[int]]]) -> Path:
    path.write_text(json.dumps({f"p1_4CH_frame{index:03d}": boxes for index, boxes in of_frames.items()}))
    return path


def file_state(network: Any, adapter: MedSAM2Adapter) -> dict[str, Tensor]:
    """The state of a network of videos under the names of the authors."""
    assert adapter.memory is not None
    memory = {renamed(name, backwards(SAM2_MEMORY)): value for name, value in adapter.memory.state_dict().items()}
    images = {name: value for name, value in network.state_dict().items() if name not in adapter.memory.state_dict()}
    del images["shared_image_embedding.positional_embedding"]
    return {**adapter.to_file(images), **memory}


def pixels_of(adapter: MedSAM2Adapter, clip: Clip) -> Tensor:
    """Frames `(T, 3, 128, 128)` as the network of videos takes them."""
    frames = torch.from_numpy(clip.frames / 255)
    shown = F.interpolate(frames, size=(128, 128), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    return (shown - adapter.mean) / adapter.deviation


def followed_by_transformers(network: Any, pixels: Tensor, boxes: Tensor, start: int) -> Tensor:
    """Binary logits `(T, N, h, w)` of transformers' own sessions: forwards, and with another one backwards."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    network = copy.deepcopy(network)
    network.mask_decoder.dynamic_multimask_via_stability = False
    found: dict[int, Tensor] = {}
    for reverse in (False, True):
        session = Sam2VideoInferenceSession(pixels, 128, 128, dtype=torch.float32)
        for number, box in enumerate(boxes):
            prompt = {
                "point_coords": box.reshape(1, 1, 2, 2),
                "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32),
            }
            session.add_point_inputs(session.obj_id_to_idx(number), start, prompt)
        session.obj_with_new_inputs = list(range(len(boxes)))
        for out in network.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            found[out.frame_idx] = out.pred_masks[:, 0]
    return torch.stack([found[index] for index in range(len(pixels))])


def classes_of(z: Tensor) -> Tensor:
    """Logits `(T, K, 128, 128)` of classes from those of the objects."""
    z = F.interpolate(z, size=(128, 128), mode="bilinear", align_corners=False)
    return torch.cat([torch.zeros_like(z[:, :1]), z], dim=1)


def logits_of(adapter: MedSAM2Adapter, clip: Clip) -> Tensor:
    """Logits `(T, K, 128, 128)` of every frame, each of which comes once."""
    found = {frame.index: frame.logits for frame in adapter.segment_clip(clip)}
    assert sorted(found) == list(range(len(clip.frames)))
    return torch.stack([found[index] for index in sorted(found)])


def boxes_at(adapter: MedSAM2Adapter, clip: Clip, start: int) -> Tensor:
    return boxes_of(adapter.preprocess(clip.frame(start)).image[None, 1:])[0][0]


@pytest.mark.parametrize("form", FORMS)
def test_frames_have_the_logits_of_transformers_in_both_directions(
    folders: dict[str, Path], network: Any, form: str
) -> None:
    adapter, clip = MedSAM2Adapter.load(folders[form]), moving_echo(COUNT)
    expected = classes_of(
        followed_by_transformers(network, pixels_of(adapter, clip), boxes_at(adapter, clip, START), START)
    )
    found = logits_of(adapter, clip)
    spread = float(expected[:, 1:].std())
    assert spread > 1e-2
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    # The memory matters: by themselves, with the same boxes, frames have other logits.
    alone = adapter.predict_logits(adapter.sample_with(clip.frame(0), np.array([BOXES["LV"], BOXES["MYO"]], float)))
    assert not torch.allclose(found[0], alone, atol=1e-2 * spread)


def test_the_frame_with_the_boxes_has_the_mask_that_it_has_by_itself(adapter: MedSAM2Adapter) -> None:
    clip = moving_echo(COUNT)
    alone = adapter.segment(clip.frame(START))
    assert np.array_equal(segment_frames(adapter, clip)[START], alone)


@pytest.mark.parametrize("start", [0, 1])
def test_a_clip_of_two_frames_is_followed_from_either(
    folders: dict[str, Path], network: Any, tmp_path: Path, start: int
) -> None:
    clip = moving_echo(2)
    adapter = with_prompts(folders, write_boxes(tmp_path / "boxes.json", {start: BOXES}))
    boxes = boxes_at(adapter, clip, start)
    pixels = pixels_of(adapter, clip)
    found = logits_of(adapter, clip)
    expected = classes_of(followed_by_transformers(network, pixels, boxes, start))
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_folder_may_say_that_the_first_mask_is_taken_in_every_frame(network: Any, tmp_path: Path) -> None:
    boxes = write_boxes(tmp_path / "boxes.json", {0: BOXES})
    prompts = {"kind": "from_file", "path": str(boxes)}
    hub = write_folder(tmp_path, kind="medsam2", checkpoint="hub", size=128, memory=True, prompts=prompts)
    first = copy.deepcopy(network)
    first.config.multimask_output_for_tracking = False
    first.save_pretrained(hub / "hub")
    adapter, clip = MedSAM2Adapter.load(hub), moving_echo(3)
    pixels, boxes_of_clip = pixels_of(adapter, clip), boxes_at(adapter, clip, 0)
    expected, others = (
        classes_of(followed_by_transformers(each, pixels, boxes_of_clip, 0)) for each in (first, network)
    )
    found = logits_of(adapter, clip)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found[1:], others[1:], atol=1e-3)


def with_prompts(folders: dict[str, Path], path: Path, **described: Any) -> MedSAM2Adapter:
    kind = {"kind": "from_masks"} if path.is_dir() else {"kind": "from_file"}
    settings = MedSAM2Settings.model_validate({"folder": folders["folder"], "prompts": {**kind, "path": path}})
    return MedSAM2Adapter.load(settings.folder, settings.prompts, described)


def test_without_memory_every_frame_is_segmented_by_itself_bit_for_bit(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    boxes = write_boxes(tmp_path / "boxes.json", dict.fromkeys(range(COUNT), BOXES))
    adapter, clip = with_prompts(folders, boxes, memory=False), moving_echo(COUNT)
    assert not adapter.segments_clips
    assert not any(name.startswith("memory") for name in adapter.state_dict())
    masks = segment_frames(adapter, clip)
    assert all(np.array_equal(masks[index], adapter.segment(clip.frame(index))) for index in range(COUNT))
    assert not {"memory", "prompted_frame"} & adapter.inference_settings().keys()
    adapter.export(tmp_path / "out")
    assert "memory" not in json.loads((tmp_path / "out" / "segmenter.json").read_text(encoding="utf-8"))


def test_a_clip_has_the_same_masks_whatever_is_segmented_before_and_between(adapter: MedSAM2Adapter) -> None:
    clip, longer = moving_echo(COUNT), moving_echo(COUNT + 3)
    first = logits_of(adapter, clip)
    one, other = adapter.segment_clip(clip), adapter.segment_clip(longer)
    found = {}
    for frame in one:
        next(other)
        found[frame.index] = frame.logits
    assert all(torch.equal(first[index], found[index]) for index in found)


def test_the_memory_looks_through_the_adapted_weights(adapter: MedSAM2Adapter, network: Any) -> None:
    clip = moving_echo(4 + START)
    before = logits_of(adapter, clip)
    twin, adapted = copy.deepcopy(adapter), copy.deepcopy(network)
    for decoder in (adapter.module.mask_decoder, adapted.mask_decoder):
        with torch.no_grad():
            for parameter in decoder.transformer.parameters():
                parameter.add_(0.1)
    pixels, boxes = pixels_of(adapter, clip), boxes_at(adapter, clip, START)
    expected = classes_of(followed_by_transformers(adapted, pixels, boxes, START))
    found = logits_of(adapter, clip)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found[0], before[0], atol=1e-3)
    # A copy is a segmenter of its own.
    assert torch.equal(logits_of(twin, clip), before)


def test_low_rank_parts_count_in_the_memory_and_it_gets_none(adapter: MedSAM2Adapter) -> None:
    clip = moving_echo(START + 2)
    before = logits_of(adapter, clip)
    generator = torch.Generator().manual_seed(0)
    add_low_rank(adapter, adapter.trainable("all"), LoRASettings(), generator)
    parts = adapter.trainable("lora")
    assert parts
    assert not any(name.startswith("memory.") for name in parts)
    assert torch.allclose(logits_of(adapter, clip), before, atol=1e-5)
    with torch.no_grad():
        for parameter in parts.values():
            parameter.add_(0.05)
    assert not torch.allclose(logits_of(adapter, clip)[0], before[0], atol=1e-3)


def test_the_memory_is_frozen_and_the_rest_learns_after_a_clip_as_before(
    adapter: MedSAM2Adapter, folders: dict[str, Path]
) -> None:
    learning = open_to_learning(adapter, MedSAM2Settings(folder=folders["folder"], train="all"), seed=0)
    assert not any(name.startswith("memory.") for name in learning)
    assert adapter.memory is not None
    assert not any(parameter.requires_grad for parameter in adapter.memory.parameters())
    segment_frames(adapter, moving_echo(START + 2))
    adapter.train()(adapter.preprocess(moving_echo(COUNT).frame(START)).image[None])[:, 1:].sum().backward()
    assert all(parameter.grad is not None for parameter in learning.values())


def test_a_negative_object_score_hides_the_structure_and_not_where_its_box_is(
    adapter: MedSAM2Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    clip = moving_echo(COUNT)
    seen = adapter.segment(clip.frame(START))
    with torch.no_grad():
        adapter.module.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-100.0)
    masks = segment_frames(adapter, clip)
    assert np.array_equal(masks[START], seen)
    assert seen.any()
    assert not np.delete(masks, START, axis=0).any()
    assert f"clip {clip.clip_id}: the network does not see LV, MYO in frame {START}, where its box is" in caplog.text


def test_a_structure_without_a_box_is_in_no_frame(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = with_prompts(folders, write_boxes(tmp_path / "boxes.json", {START: {"MYO": BOXES["MYO"]}}))
    logits = logits_of(adapter, moving_echo(COUNT))
    assert (logits[:, 1] == -20).all()
    assert logits[:, 2].std() > 0


def starts(adapter: MedSAM2Adapter, clip: Clip) -> int:
    """The first frame that is segmented, which is the one with the boxes."""
    return next(iter(adapter.segment_clip(clip))).index


def test_the_first_frame_with_a_box_of_every_structure_is_taken_unless_another_is_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    clip, myocardium = moving_echo(COUNT), {"MYO": BOXES["MYO"]}
    several = write_boxes(tmp_path / "boxes.json", {1: myocardium, 2: BOXES, 4: BOXES, 5: myocardium})
    assert starts(with_prompts(folders, several), clip) == 2
    assert starts(with_prompts(folders, several, prompted_frame=5), clip) == 5
    fewer = write_boxes(tmp_path / "fewer.json", {1: myocardium, 5: myocardium})
    assert starts(with_prompts(folders, fewer), clip) == 1
    with pytest.raises(DataError, match=r"boxes.json: there is no box on frame 3, the prompted_frame of clip p1_4CH"):
        starts(with_prompts(folders, several, prompted_frame=3), clip)
    with pytest.raises(DataError, match="prompted_frame is 7, and its 7 frames are counted from 0"):
        starts(with_prompts(folders, several, prompted_frame=7), clip)


def test_a_clip_without_any_box_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"p2_4CH_frame000": BOXES, "p1_4CH_frame001": {}}))
    adapter = with_prompts(folders, tmp_path / "boxes.json")
    message = "there is no box on any frame of clip p1_4CH; .* under its name (such as p1_4CH_frame000)"
    with pytest.raises(DataError, match=re.escape(message).replace(r"\.\*", ".*")):
        segment_frames(adapter, moving_echo(COUNT))
    with pytest.raises(DataError, match="nothing on any of the 2 frames p3_frame000 to p3_frame001"):
        adapter.prompt_hash_of_clip(["p3_frame000", "p3_frame001"])


def test_prompts_of_a_clip_are_known_by_all_that_there_is_on_its_frames(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    names = [f"p1_4CH_frame{index:03d}" for index in range(COUNT)]
    one = write_boxes(tmp_path / "one.json", {START: BOXES})
    same = write_boxes(tmp_path / "same.json", {START: BOXES})
    other = write_boxes(tmp_path / "other.json", {START: BOXES, 5: BOXES})
    found = [with_prompts(folders, path).prompt_hash_of_clip(names) for path in (one, same, other)]
    assert found[0] == found[1] != found[2]


def test_of_a_long_clip_only_what_the_memory_looks_at_is_kept(
    adapter: MedSAM2Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers: list[Tracker] = []
    made = Tracker.__init__

    def remember(self: Tracker, *arguments: Any) -> None:
        made(self, *arguments)
        trackers.append(self)

    monkeypatch.setattr(Tracker, "__init__", remember)
    encoded = []
    encode = type(adapter.module.vision_encoder).forward
    monkeypatch.setattr(
        type(adapter.module.vision_encoder),
        "forward",
        lambda self, *arguments, **named: encoded.append(1) or encode(self, *arguments, **named),
    )
    clip = moving_echo(14)
    for done, _ in enumerate(adapter.segment_clip(clip), 1):
        # Frames are encoded when it is their turn; the one with the boxes twice.
        assert len(encoded) == done + (done > 1)
        for tracker in trackers:
            for outputs in tracker.session.output_dict_per_obj.values():
                kept = [output for frames in outputs.values() for output in frames.values()]
                assert sum("maskmem_features" in output for output in kept) <= 1 + 3
                assert not any("high_res_masks" in output or "pred_masks" in output for output in kept)
            assert len(tracker.session.cache._vision_features) == 1


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_leaves_in_the_form_that_it_came_in(
    folders: dict[str, Path], network: Any, form: str, tmp_path: Path
) -> None:
    adapter, clip = MedSAM2Adapter.load(folders[form]), moving_echo(START + 2)
    with torch.no_grad():
        next(iter(adapter.trainable("decoder").values())).add_(0.5)
    adapter.export(tmp_path / "out")
    again = MedSAM2Adapter.load(tmp_path / "out")
    assert torch.equal(logits_of(again, clip), logits_of(adapter, clip))
    if form == "folder":
        video = transformers.Sam2VideoModel.from_pretrained(tmp_path / "out" / "hub")
        differing = [
            name for name, value in network.state_dict().items() if not torch.equal(video.state_dict()[name], value)
        ]
        assert differing == ["mask_decoder.iou_token.weight"]
        return
    before, after = (
        torch.load(path / "original.pth", weights_only=True)["model"] for path in (folders["file"], tmp_path / "out")
    )
    assert list(before) == list(after)
    differing = [name for name in before if not torch.equal(before[name], after[name])]
    assert differing == ["sam_mask_decoder.iou_token.weight"]


def of_the_authors(layers: int, fused: int) -> set[str]:
    """Names of the memory's weights in a file of sam2, without those of the image network."""

    def pair(name: str) -> set[str]:
        return {f"{name}.weight", f"{name}.bias"}

    names = {"maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"}
    names |= pair("mask_downsample") | pair("obj_ptr_tpos_proj") | pair("memory_attention.norm")
    names |= set().union(*(pair(f"obj_ptr_proj.layers.{index}") for index in range(3)))
    for layer in (f"memory_attention.layers.{index}" for index in range(layers)):
        for part in ("linear1", "linear2", "norm1", "norm2", "norm3"):
            names |= pair(f"{layer}.{part}")
        for attention in ("self_attn", "cross_attn_image"):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names |= pair(f"{layer}.{attention}.{part}")
    for index in (0, 1, 3, 4, 6, 7, 9, 10, 12):
        names |= pair(f"memory_encoder.mask_downsampler.encoder.{index}")
    names |= pair("memory_encoder.pix_feat_proj") | pair("memory_encoder.out_proj")
    for block in (f"memory_encoder.fuser.layers.{index}" for index in range(fused)):
        names |= {f"{block}.gamma"}
        for part in ("dwconv", "norm", "pwconv1", "pwconv2"):
            names |= pair(f"{block}.{part}")
    return names


def test_the_names_of_the_authors_are_those_of_transformers_one_by_one(adapter: MedSAM2Adapter) -> None:
    assert adapter.memory is not None
    theirs = of_the_authors(layers=2, fused=2)
    assert {renamed(name, SAM2_MEMORY) for name in theirs} == set(adapter.memory.state_dict())
    assert {renamed(name, backwards(SAM2_MEMORY)) for name in adapter.memory.state_dict()} == theirs
    assert renamed("memory_encoder.mask_downsampler.encoder.10.weight", SAM2_MEMORY) == (
        "memory_encoder.mask_downsampler.layers.3.layer_norm.weight"
    )


def test_a_checkpoint_without_memory_is_refused_with_a_remedy(folders: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(folders["file"] / "original.pth", weights_only=True)["model"]
    memory = of_the_authors(layers=2, fused=2)
    remedy = r"MedSAM2_latest.pt.*or set memory: false"

    def refused(message: str, missing: set[str], **content: Tensor) -> None:
        folder = write_folder(tmp_path, kind="medsam2", checkpoint="some.pth", size=128, memory=True)
        torch.save(
            {name: value for name, value in {**state, **content}.items() if name not in missing}, folder / "some.pth"
        )
        with pytest.raises(ModelError, match=f"some.pth: {message}.*{remedy}"):
            MedSAM2Adapter.load(folder)

    refused("memory is true, and the file has no weights of SAM 2's memory", memory)
    refused("memory is true, and the file lacks maskmem_tpos_enc of", {"maskmem_tpos_enc"})
    refused("does not fit the network: misses 1 tensors, the first mask_downsample.bias", {"mask_downsample.bias"})
    refused(
        "does not fit the network: has other shapes for 1 tensors, the first no_obj_ptr",
        set(),
        no_obj_ptr=torch.zeros(2),
    )
    hub = write_folder(tmp_path / "hub", kind="medsam2", checkpoint="images", size=128, memory=True)
    tiny_sam2().save_pretrained(hub / "images")
    with pytest.raises(ModelError, match=f"images: memory is true, and the folder has no weights.*{remedy}"):
        MedSAM2Adapter.load(hub)


def test_a_memory_for_images_of_another_size_is_refused(folders: dict[str, Path], network: Any, tmp_path: Path) -> None:
    hub = write_folder(tmp_path, kind="medsam2", checkpoint="hub", size=128, memory=True)
    network.save_pretrained(hub / "hub")
    path = hub / "hub" / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), "memory_attention_rope_feat_sizes": [64, 64]}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"config.json: memory_attention_rope_feat_sizes is \[64, 64\].*write \[8, 8\]"
    ):
        MedSAM2Adapter.load(hub)


def test_a_segmenter_of_another_kind_has_no_memory(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, kind="medsam", checkpoint="any.pth", memory=True)
    with pytest.raises(ModelError, match=r"segmenter.json: .*memory: a segmenter of kind medsam has none; medsam2 has"):
        MedSAM2Adapter.load(folder)


def test_it_is_a_sound_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    fixed = {"kind": "fixed", "boxes": {"LV": [0.3, 0.2, 0.6, 0.7], "MYO": [0.25, 0.1, 0.7, 0.8]}}
    settings = MedSAM2Settings.model_validate({"folder": folders["folder"], "prompts": fixed, "memory": True})
    adapter = MedSAM2Adapter.load(settings.folder, settings.prompts, settings.described)
    check_adapter(adapter, moving_echo(1).frame(0))


def test_inspect_says_that_frames_are_segmented_together(folders: dict[str, Path]) -> None:
    rows = inspect_model(folders["folder"], torch.device("cpu"), lambda *_: None).rows
    assert (rows["kind"], rows["clips"]) == ("medsam2", "frames are segmented together")


def test_frames_are_shown_for_assessment_with_the_boxes_of_their_masks(adapter: MedSAM2Adapter) -> None:
    clip = moving_echo(COUNT)
    mask: LabelMap = np.zeros(clip.frames.shape[2:], dtype=np.uint8)
    mask[10:51, 20:61] = 1
    boxes, there = boxes_of(adapter.preprocess_frame(clip.frame(0), mask).image[None, 1:])
    assert there.tolist() == [[True, False]]
    scale = np.array([128 / 120, 128 / 90] * 2)
    assert np.allclose(boxes[0, 0], np.array([20, 10, 60, 50]) * scale, atol=1)


def test_predict_carries_the_one_mask_of_a_coarse_sequence_through_the_clip(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    clip = moving_echo(COUNT)
    write_sequence(tmp_path / "images" / "p1_4CH.nii.gz", clip.frames[:, 0], clip.geometry, None)
    coarse = np.zeros((COUNT, *clip.frames.shape[2:]), dtype=np.uint8)
    coarse[START, 18:73, 30:83], coarse[START, 25:66, 40:73] = 2, 1
    write_sequence(tmp_path / "coarse" / "p1_4CH.nii.gz", coarse, clip.geometry, None)
    out = tmp_path / "out"
    arguments = ["predict", str(folders["folder"]), str(tmp_path / "images"), str(out)]

    def call() -> bytes:
        result = CliRunner().invoke(
            app, [*arguments, "--prompts", str(tmp_path / "coarse"), "--layout", "clips", "--device", "cpu"]
        )
        assert result.exit_code == 0, result.output
        return (out / "labels" / "p1_4CH.nii.gz").read_bytes()

    first = call()
    written = read_sequence(out / "labels" / "p1_4CH.nii.gz")[0][:, 0]
    adapter = with_prompts(folders, tmp_path / "coarse")
    assert np.array_equal(written, segment_frames(adapter, clip))
    assert call() == first
    assert len((out / "audit.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    # Another frame with the boxes makes other masks.
    coarse[0], coarse[START] = coarse[START], 0
    write_sequence(tmp_path / "coarse" / "p1_4CH.nii.gz", coarse, clip.geometry, None)
    assert call() != first
