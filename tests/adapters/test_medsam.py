"""MedSAM and MedSAM2: tiny networks of the real classes, through the code that reads the real weights."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.on_cuda import assert_the_gpu_gives_the_masks_of_the_cpu
from support.sam_models import (
    MEMORY,
    echo_like,
    inside,
    tiny_sam,
    tiny_sam2,
    write_file_checkpoint,
    write_folder,
    write_hub_checkpoint,
)
from torch import Tensor, nn
from typer.testing import CliRunner

from medfm_rl.adapters import MedSAM2Adapter, MedSAMAdapter, PromptableAdapter
from medfm_rl.adapters.sam.checkpoints import SAM, SAM2, backwards, renamed
from medfm_rl.adapters.sam.prompts import boxes_of
from medfm_rl.cli import app
from medfm_rl.data.images import read_image, write_image, write_labels
from medfm_rl.errors import DataError, MissingExtraError, ModelError
from medfm_rl.types import Case, LabelSchema
from medfm_rl.workflows.inspection import inspect_model

transformers = pytest.importorskip("transformers", reason="needs transformers (extra medsam)")
pytestmark = pytest.mark.medsam

PROMPTABLE: dict[str, type[PromptableAdapter]] = {"medsam": MedSAMAdapter, "medsam2": MedSAM2Adapter}
KINDS = tuple(PROMPTABLE)
FORMS = ("file", "folder")


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {"medsam": tiny_sam(), "medsam2": tiny_sam2()}


@pytest.fixture(scope="module")
def folders(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A segmenter folder of each kind with a checkpoint of each form."""
    found = {}
    for kind, adapter in PROMPTABLE.items():
        root = tmp_path_factory.mktemp(kind)
        found[kind, "folder"] = write_hub_checkpoint(root / "folder", kind, networks[kind])
        found[kind, "file"] = write_file_checkpoint(
            root / "file", kind, networks[kind], adapter.load(found[kind, "folder"])
        )
    return found


def load(folders: dict[tuple[str, str], Path], kind: str, form: str = "file") -> Any:
    return PROMPTABLE[kind].load(folders[kind, form])


def batch(adapter: PromptableAdapter) -> Tensor:
    return adapter.preprocess(echo_like()).image[None]


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_masks_of_the_cpu(folders: dict[tuple[str, str], Path], kind: str) -> None:
    assert_the_gpu_gives_the_masks_of_the_cpu(load(folders, kind), echo_like())


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_of_a_checkpoint_give_the_logits_of_transformers(
    folders: dict[tuple[str, str], Path], networks: dict[str, Any], kind: str
) -> None:
    file, hub = load(folders, kind, "file"), load(folders, kind, "folder")
    images = batch(file)
    boxes, _ = boxes_of(images[:, 1:])
    pixels = images[:, :1].expand(-1, 3, -1, -1)
    if kind == "medsam2":
        pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
    model = networks[kind].train()  # in training Sam2Model, too, answers with the first mask
    with torch.no_grad():
        answer = model(pixel_values=pixels, input_boxes=boxes, multimask_output=False)
        model.eval()
        masks, estimates = answer.pred_masks[:, :, 0], answer.iou_scores[:, :, 0]
        expected = nn.functional.interpolate(masks, size=(128, 128), mode="bilinear", align_corners=False)
        of_folder, of_file = hub(images), file(images)
        own_estimates = hub.decode(hub.encode(images[:, :1]), boxes)[1]
    assert masks.shape == (1, 2, 32, 32)
    assert masks.std() > 1e-3
    assert torch.allclose(of_folder[:, 1:], expected, atol=1e-6)
    assert torch.allclose(own_estimates, estimates, atol=1e-6)
    # The layer norms of the decoder have the epsilon of each side.
    assert torch.allclose(of_file, of_folder, atol=1e-3 * float(of_folder.abs().max()))


def test_logits_are_those_of_the_original_class(tmp_path: Path) -> None:
    segment_anything = pytest.importorskip("segment_anything.modeling", reason="needs segment-anything")
    torch.manual_seed(0)
    original = segment_anything.Sam(
        image_encoder=segment_anything.ImageEncoderViT(
            img_size=128, patch_size=16, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=3, global_attn_indexes=(2,),
        ),
        prompt_encoder=segment_anything.PromptEncoder(
            embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16
        ),
        mask_decoder=segment_anything.MaskDecoder(
            transformer_dim=32, iou_head_hidden_dim=16,
            transformer=segment_anything.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=48, num_heads=8),
        ),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = original.state_dict()
    torch.save(state, tmp_path / "original.pth")
    adapter = MedSAMAdapter.load(write_folder(tmp_path, kind="medsam", checkpoint="original.pth"))
    images = batch(adapter)
    boxes, _ = boxes_of(images[:, 1:])
    with torch.no_grad():
        embeddings = original.image_encoder(images[:, :1].expand(-1, 3, -1, -1))
        sparse, dense = original.prompt_encoder(points=None, boxes=boxes[0][:, None], masks=None)
        theirs, _ = original.mask_decoder(
            image_embeddings=embeddings,
            image_pe=original.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        ours = adapter.decode(adapter.encode(images[:, :1]), boxes)[0][0]
    assert theirs.std() > 1e-2
    assert torch.allclose(ours, theirs[:, 0], atol=1e-5)
    assert list(adapter.original_state()) == list(state)


@pytest.mark.parametrize(
    ("prefixes", "original", "in_transformers"),
    [
        (SAM, "image_encoder.blocks.11.norm2.bias", "vision_encoder.layers.11.layer_norm2.bias"),
        (SAM, "image_encoder.blocks.0.attn.rel_pos_h", "vision_encoder.layers.0.attn.rel_pos_h"),
        (SAM, "image_encoder.neck.2.weight", "vision_encoder.neck.conv2.weight"),
        (SAM, "prompt_encoder.mask_downscaling.6.bias", "prompt_encoder.mask_embed.conv3.bias"),
        (SAM, "prompt_encoder.point_embeddings.3.weight", "prompt_encoder.point_embed.3.weight"),
        (SAM, "mask_decoder.iou_prediction_head.layers.1.bias", "mask_decoder.iou_prediction_head.layers.0.bias"),
        (
            SAM,
            "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
            "mask_decoder.output_hypernetworks_mlps.3.proj_out.weight",
        ),
        (
            SAM,
            "mask_decoder.transformer.layers.1.norm4.weight",
            "mask_decoder.transformer.layers.1.layer_norm4.weight",
        ),
        (SAM, "mask_decoder.transformer.layers.1.mlp.lin1.weight", "mask_decoder.transformer.layers.1.mlp.lin1.weight"),
        (
            SAM2,
            "image_encoder.trunk.blocks.10.mlp.layers.1.weight",
            "vision_encoder.backbone.blocks.10.mlp.proj_out.weight",
        ),
        (SAM2, "image_encoder.trunk.pos_embed_window", "vision_encoder.backbone.pos_embed_window"),
        (SAM2, "image_encoder.neck.convs.2.conv.bias", "vision_encoder.neck.convs.2.bias"),
        (
            SAM2,
            "sam_mask_decoder.transformer.layers.0.cross_attn_token_to_image.out_proj.weight",
            "mask_decoder.transformer.layers.0.cross_attn_token_to_image.o_proj.weight",
        ),
        (
            SAM2,
            "sam_mask_decoder.transformer.norm_final_attn.bias",
            "mask_decoder.transformer.layer_norm_final_attn.bias",
        ),
        (
            SAM2,
            "sam_mask_decoder.pred_obj_score_head.layers.2.weight",
            "mask_decoder.pred_obj_score_head.proj_out.weight",
        ),
        (SAM2, "sam_mask_decoder.conv_s0.weight", "mask_decoder.conv_s0.weight"),
        (SAM2, "no_mem_embed", "no_memory_embedding"),
    ],
)
def test_names_are_translated_both_ways(prefixes: Any, original: str, in_transformers: str) -> None:
    assert renamed(original, prefixes) == in_transformers
    assert renamed(in_transformers, backwards(prefixes)) == original


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_leave_in_the_form_they_came_in(
    folders: dict[tuple[str, str], Path], networks: dict[str, Any], kind: str, form: str, tmp_path: Path
) -> None:
    adapter = load(folders, kind, form)
    with torch.no_grad():
        next(iter(adapter.trainable("decoder").values())).add_(0.5)
    adapter.export(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(PROMPTABLE[kind].load(tmp_path / "out")(batch(adapter)), adapter(batch(adapter)))
    if form == "folder":
        again = type(networks[kind]).from_pretrained(tmp_path / "out" / "hub").state_dict()
        assert all(torch.equal(again[name], value) for name, value in adapter.module.state_dict().items())
        return
    before = torch.load(folders[kind, form] / "original.pth", weights_only=True)
    after = torch.load(tmp_path / "out" / "original.pth", weights_only=True)
    if kind == "medsam2":
        assert list(after) == ["model"]
        before, after = before["model"], after["model"]
        assert all(torch.equal(after[name], value) for name, value in MEMORY.items())
    assert list(after) == list(before)
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        f"{'sam_' if kind == 'medsam2' else ''}mask_decoder.iou_token.weight"
    ]


def test_a_folder_of_the_video_model_serves_for_images(
    folders: dict[tuple[str, str], Path], networks: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, kind="medsam2", checkpoint="hub")
    networks["medsam2"].save_pretrained(folder / "hub")
    content = json.loads((folder / "hub" / "config.json").read_text(encoding="utf-8"))
    content |= {"model_type": "sam2_video", "num_maskmem": 7}
    (folder / "hub" / "config.json").write_text(json.dumps(content), encoding="utf-8")
    adapter = MedSAM2Adapter.load(folder)
    with torch.no_grad():
        assert torch.equal(adapter(batch(adapter)), load(folders, "medsam2", "folder")(batch(adapter)))
    adapter.export(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "hub" / "config.json").read_text(encoding="utf-8")) == content


def test_medsam_takes_each_image_to_the_unit_interval_whatever_its_aspect(
    folders: dict[tuple[str, str], Path],
) -> None:
    case = echo_like((90, 120))
    adapter = load(folders, "medsam")
    sample = adapter.preprocess(Case("ct", "ct", 3 * case.image - 1000, case.geometry))
    assert sample.image.shape == (3, 128, 128)
    assert torch.allclose(sample.image[0], adapter.preprocess(case).image[0], atol=1e-4)
    assert sample.image[0].min() >= 0
    assert sample.image[0].max() <= 1
    # The corners of a box are scaled by 128 / 120 across and 128 / 90 down.
    boxes, _ = boxes_of(sample.image[None, 1:])
    native = np.array([0.3 * 119, 0.2 * 89, 0.6 * 119, 0.7 * 89])
    assert np.allclose(boxes[0, 0], native * np.array([128 / 120, 128 / 90] * 2), atol=1e-3)
    with pytest.raises(DataError, match="one value only"):
        adapter.preprocess(Case("flat", "flat", np.ones_like(case.image), case.geometry))


def test_medsam2_divides_by_255_and_applies_the_statistics_of_imagenet(
    folders: dict[tuple[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, adapter = echo_like(), load(folders, "medsam2")
    grey = Case("grey", "grey", np.full_like(case.image, 51.0), case.geometry)
    seen = []
    original = adapter.module.get_image_features
    monkeypatch.setattr(
        adapter.module, "get_image_features", lambda pixels, **named: seen.append(pixels) or original(pixels, **named)
    )
    adapter.segment(grey)
    expected = torch.tensor([(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225])
    assert seen[0].shape == (1, 3, 128, 128)
    assert torch.allclose(seen[0], expected[None, :, None, None], atol=1e-5)
    with pytest.raises(DataError, match="minmax"):
        adapter.preprocess(Case("ct", "ct", case.image - 1000, case.geometry))


def test_a_negative_object_score_changes_no_logit_and_stops_no_gradient(
    folders: dict[tuple[str, str], Path],
) -> None:
    adapter = load(folders, "medsam2")
    absent = copy.deepcopy(adapter)
    with torch.no_grad():
        absent.module.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-100.0)
    images = batch(adapter)
    logits = absent(images)
    logits[:, 1].sum().backward()
    assert torch.equal(logits, adapter(images))
    assert all(parameter.grad.abs().sum() > 0 for parameter in absent.trainable("decoder").values())


def test_medsam2_answers_in_evaluation_as_in_training(folders: dict[tuple[str, str], Path]) -> None:
    adapter = load(folders, "medsam2")
    # No mask is as stable as this: where SAM 2 looks, it takes another.
    adapter.module.mask_decoder.dynamic_multimask_stability_thresh = 2.0
    images = batch(adapter)
    with torch.no_grad():
        assert torch.equal(adapter.train()(images), adapter.eval()(images))


@pytest.mark.parametrize("kind", KINDS)
def test_scopes_hold_what_they_say(folders: dict[tuple[str, str], Path], kind: str) -> None:
    adapter = load(folders, kind)
    decoder, everything = adapter.trainable("decoder").keys(), adapter.trainable("all").keys()
    assert decoder < everything
    assert not any("prompt_encoder" in name or "shared_image_embedding" in name for name in everything)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    for parameter in adapter.trainable("decoder").values():
        parameter.requires_grad_(True)
    # So the embeddings of an image may be kept.
    assert not adapter.encode(batch(adapter)[:, :1]).requires_grad
    assert any(".conv_s0." in name for name in everything) == (kind == "medsam2")


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = next(name for name in state if "neck" in name and name.endswith("bias"))
    match how:
        case "missing":
            return {key: value for key, value in state.items() if key != name}
        case "unknown":
            return {**state, "classifier.weight": torch.zeros(1)}
        case "nan":
            return {**state, name: torch.full_like(state[name], torch.nan)}
        case _:
            return {**state, name: torch.zeros(7)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"original.pth: does not fit the network: misses 1 tensors, the first image_encoder.neck"),
        ("unknown", r"has the unknown 1 tensors, the first classifier.weight"),
        ("shape", r"has other shapes for 1 tensors, the first image_encoder.neck"),
        ("nan", r"image_encoder.neck.* holds NaN"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    folders: dict[tuple[str, str], Path], kind: str, how: str, message: str, tmp_path: Path
) -> None:
    state = torch.load(folders[kind, "file"] / "original.pth", weights_only=True)
    folder = write_folder(tmp_path, kind=kind, checkpoint="original.pth", size=128)
    torch.save(broken(state.get("model", state), how), folder / "original.pth")
    with pytest.raises(ModelError, match=message):
        PROMPTABLE[kind].load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_of_the_other_kind_is_refused(
    folders: dict[tuple[str, str], Path], kind: str, tmp_path: Path
) -> None:
    other = next(name for name in KINDS if name != kind)
    file, hub = folders[other, "file"] / "original.pth", folders[other, "folder"] / "hub"
    with pytest.raises(ModelError, match=r"original.pth: not a checkpoint of this kind: image_encoder\..* is missing"):
        PROMPTABLE[kind].load(write_folder(tmp_path / "a", kind=kind, checkpoint=str(file)))
    with pytest.raises(ModelError, match=r"config.json: model_type is 'sam2?', sam2?.* is needed"):
        PROMPTABLE[kind].load(write_folder(tmp_path / "b", kind=kind, checkpoint=str(hub)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_checkpoint_is_refused(
    folders: dict[tuple[str, str], Path], kind: str, form: str, tmp_path: Path
) -> None:
    name = "original.pth" if form == "file" else "hub/model.safetensors"
    folder = write_folder(tmp_path, kind=kind, checkpoint=name.split("/")[0])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((folders[kind, form] / name).read_bytes()[:5000])
    if form == "folder":
        config = (folders[kind, form] / "hub" / "config.json").read_text(encoding="utf-8")
        (folder / "hub" / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelError, match=f"{name}: a damaged or truncated"):
        PROMPTABLE[kind].load(folder)


@pytest.mark.parametrize("change", [{"hidden_size": "many"}, {"num_attention_heads": 5}, {"patch_size": 0}])
def test_a_configuration_that_is_none_is_refused(
    folders: dict[tuple[str, str], Path], change: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, kind="medsam", checkpoint="hub")
    content = json.loads((folders["medsam", "folder"] / "hub" / "config.json").read_text(encoding="utf-8"))
    content["vision_config"] |= change
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text(json.dumps(content), encoding="utf-8")
    weights = (folders["medsam", "folder"] / "hub" / "model.safetensors").read_bytes()
    (folder / "hub" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="hub"):
        MedSAMAdapter.load(folder)


def test_another_hiera_is_refused(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    state = torch.load(folders["medsam2", "file"] / "original.pth", weights_only=True)["model"]
    shorter = {name: value for name, value in state.items() if ".blocks.9." not in name}
    for block in (10, 11):
        for name in [name for name in shorter if f".blocks.{block}." in name]:
            shorter[name.replace(f".blocks.{block}.", f".blocks.{block - 1}.")] = shorter.pop(name)
    torch.save({"model": shorter}, tmp_path / "small.pt")
    with pytest.raises(ModelError, match=r"small.pt: has \[1, 2, 6, 2\] blocks"):
        MedSAM2Adapter.load(write_folder(tmp_path, kind="medsam2", checkpoint="small.pt", size=128))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match='"checkpoint" is missing'):
        PROMPTABLE[kind].load(write_folder(tmp_path, kind=kind))
    with pytest.raises(ModelError, match=r"absent.pth: there is no such checkpoint"):
        PROMPTABLE[kind].load(write_folder(tmp_path, kind=kind, checkpoint="absent.pth"))
    (tmp_path / "hub").mkdir()
    with pytest.raises(ModelError, match=r"hub: not a folder of save_pretrained, there is no config.json"):
        PROMPTABLE[kind].load(write_folder(tmp_path, kind=kind, checkpoint="hub"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "any.pth")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"medfm-rl\[medsam\]"):
        PROMPTABLE[kind].load(write_folder(tmp_path, kind=kind, checkpoint="any.pth"))


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_and_predict_know_the_kind(folders: dict[tuple[str, str], Path], kind: str, tmp_path: Path) -> None:
    rows = inspect_model(folders[kind, "file"], torch.device("cpu"), lambda *_: None).rows
    assert (rows["kind"], rows["patch"], rows["structures"]) == (kind, "128 x 128", "background 0, LV 1, MYO 2")
    case = echo_like()
    schema = LabelSchema.from_structures({"LV": 1, "MYO": 2})
    write_image(tmp_path / "images" / "p1_a.png", case.image[0].astype(np.uint8), case.geometry)
    masks = inside(case.shape)
    write_labels(tmp_path / "masks" / "p1_a.png", (masks < 1.5) + (masks < 1).astype(np.uint8), case.geometry, schema)
    arguments = ["predict", str(folders[kind, "file"]), str(tmp_path / "images"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--prompts", str(tmp_path / "masks")])
    assert result.exit_code == 0, result.output
    labels = read_image(tmp_path / "out" / "labels" / "p1_a.nii.gz")[0][0]
    assert labels.shape == case.shape
    assert set(np.unique(labels)) <= {0, 1, 2}
