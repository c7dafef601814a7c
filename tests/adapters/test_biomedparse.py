"""BiomedParse v2 by a checkout with the interface of the real one: words in, exclusive logits out, and back."""

from __future__ import annotations

import copy
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from support.biomedparse_checkout import make_case, write_checkout, write_segmenter
from torch.nn import functional as F

from medfm_rl.adapters import BiomedParseAdapter
from medfm_rl.adapters.loading import load_segmenter, recognise
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.policies import DensePPO
from medfm_rl.settings import BiomedParseSettings, PPOHyperparameters, TextPrompts
from medfm_rl.types import Case, Geometry, Prompts
from medfm_rl.workflows.inspection import inspect_model

pytestmark = pytest.mark.biomedparse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("biomedparse")
    return write_segmenter(root / "segmenter", write_checkout(root / "checkout"))


@pytest.fixture
def adapter(folder: Path) -> BiomedParseAdapter:
    return BiomedParseAdapter.load(folder)


def calls(adapter: BiomedParseAdapter, part: str) -> list[object]:
    """What was asked of the fake backbone or language encoder, of whatever copy."""
    module = adapter.module.backbone if part == "backbone" else adapter.module.sem_seg_head.predictor.language_encoder
    return module.calls  # type: ignore[no-any-return, union-attr]


def test_a_pixel_is_a_structures_where_the_tool_says_so(adapter: BiomedParseAdapter) -> None:
    """The tool: mask logit above 0 and the structure there; for one structure that is its whole mask."""
    case = make_case((512, 512))
    sample = adapter.preprocess(case)
    texts = [["left heart ventricle[SEP]left atrium"]]
    masks, there = adapter.module(torch.from_numpy(case.image)[None], *texts)
    z = F.interpolate(masks[:, None], size=(512, 512), mode="bicubic", align_corners=False)[:, 0]
    logits = adapter(sample.image[None])[0]
    torch.testing.assert_close(logits[1:], torch.minimum(z, there[:, None, None]), atol=1e-4, rtol=1e-4)
    assert (logits[0] == 0).all()
    expected = ((z > 0) & (there > 0)[:, None, None]).any(dim=0).numpy()
    assert ((adapter.segment(case) > 0) == expected).mean() > 0.999
    assert 0.05 < expected.mean() < 0.95


def test_a_structure_that_is_not_there_has_no_pixel(adapter: BiomedParseAdapter) -> None:
    with torch.no_grad():
        adapter.module.sem_seg_head.predictor.classifier.weight.zero_()  # type: ignore[union-attr]
        adapter.module.sem_seg_head.predictor.classifier.bias.fill_(-1)  # type: ignore[union-attr]
    assert (adapter.segment(make_case()) == 0).all()


def test_nothing_is_drawn_at_random(adapter: BiomedParseAdapter) -> None:
    image = adapter.preprocess(make_case()).image[None]
    assert torch.equal(adapter(image), adapter(image))


def test_other_grey_values_are_scaled_as_the_tool_prepares_them(adapter: BiomedParseAdapter) -> None:
    plain = adapter.preprocess(make_case()).image
    scaled = adapter.preprocess(make_case(scale=4000.0)).image
    assert abs(float(scaled.max() - plain.max())) < 0.1
    assert float(F.mse_loss(scaled, plain).sqrt()) < 0.05


def test_a_frozen_backbone_runs_once_for_an_image_and_words_are_encoded_once(adapter: BiomedParseAdapter) -> None:
    image = adapter.preprocess(make_case()).image[None]
    adapter.requires_grad_(False)
    for parameter in adapter.trainable("decoder").values():
        parameter.requires_grad_(True)
    calls(adapter, "backbone").clear()
    calls(adapter, "language").clear()
    first = adapter(image)
    again = adapter(torch.cat([image, image + 0.1]))
    assert calls(adapter, "backbone") == [1, 1]
    assert calls(adapter, "language") == ["left heart ventricle", "left atrium"]
    torch.testing.assert_close(again[:1], first)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.trainable("decoder").values())


def test_the_encoder_of_the_words_never_learns(adapter: BiomedParseAdapter) -> None:
    for scope in ("all", "norm", "decoder"):
        found = adapter.trainable(scope)  # type: ignore[arg-type]
        assert found
        assert not [name for name in found if "language_encoder" in name or "class_embed" in name]
    assert all(".predictor." in name for name in adapter.trainable("decoder"))


def test_words_of_a_call_take_the_place_of_the_segmenters(adapter: BiomedParseAdapter) -> None:
    image = adapter.preprocess(make_case()).image[None]
    own, swapped = adapter(image), adapter(image, Prompts(texts=("left atrium", "left heart ventricle")))
    torch.testing.assert_close(swapped[:, [0, 2, 1]], own)
    with pytest.raises(ModelError, match="1 texts for 2 structures"):
        adapter(image, Prompts(texts=("left atrium",)))
    with pytest.raises(ModelError, match="takes words"):
        adapter(image, Prompts(boxes=np.zeros((1, 2, 4), np.float32)))


def test_a_structure_without_words_is_asked_for_by_its_name(folder: Path) -> None:
    adapter = BiomedParseAdapter.load(folder, TextPrompts(texts={"LA": "left atrium"}))
    assert adapter.texts == ("LV", "left atrium")


def test_an_update_of_ppo_leaves_in_a_checkpoint_that_gives_the_same_masks(
    adapter: BiomedParseAdapter, folder: Path, tmp_path: Path
) -> None:
    images = torch.stack([adapter.preprocess(make_case(shape)).image for shape in ((60, 90), (80, 80))])
    parameters = list(adapter.trainable("decoder").values())
    adapter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    env = SegmentationVecEnv(images.numpy(), lambda _, actions: (actions > 0).float(), 3, n_envs=2)
    before = copy.deepcopy(adapter.state_dict())
    settings = PPOHyperparameters(kl_coef=0.0, n_epochs=1, learning_rate=1e-2)
    DensePPO(env, adapter, settings, trainable=parameters, device="cpu").learn(2)
    changed = {name for name, value in adapter.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".predictor." in name for name in changed)
    adapter.export(tmp_path / "out")
    state = torch.load(tmp_path / "out" / "biomedparse.ckpt", weights_only=True)["state_dict"]
    original = torch.load(folder / "biomedparse_v2.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == original.keys() - {"loss_function.cls_loss_fn.pos_weight"}
    again = load_segmenter(recognise(tmp_path / "out"))
    assert isinstance(again, BiomedParseAdapter)
    assert (again.segment(make_case()) == adapter.eval().segment(make_case())).all()


def test_a_structure_that_takes_in_others_ends_where_they_begin(folder: Path, tmp_path: Path) -> None:
    nested = write_segmenter(tmp_path / "nested", write_checkout(tmp_path / "checkout"), contains={"LV": ["LA"]})
    image = BiomedParseAdapter.load(folder).preprocess(make_case()).image[None]
    plain, inner = (BiomedParseAdapter.load(path)(image) for path in (folder, nested))
    torch.testing.assert_close(inner[:, 1], torch.minimum(plain[:, 1], -plain[:, 2]))


def test_loading_leaves_no_modules_and_no_path_behind(folder: Path) -> None:
    path = list(sys.path)
    BiomedParseAdapter.load(folder)
    assert sys.path == path
    assert not [name for name in sys.modules if name.partition(".")[0] in ("src", "utils")]


def test_modules_of_another_project_are_not_taken_for_the_checkouts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "utils", types.ModuleType("utils"))
    with pytest.raises(ModelError, match="names of others that are loaded \\(utils\\)"):
        BiomedParseAdapter.load(folder)


def test_packages_without_an_init_file_are_found_in_the_checkout_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = write_checkout(tmp_path / "checkout")
    for folder in ("src", "src/model"):
        (checkout / folder / "__init__.py").unlink()
    other = tmp_path / "another-project" / "src"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('of another project')")
    monkeypatch.syspath_prepend(other.parent)
    meta_path = list(sys.meta_path)
    BiomedParseAdapter.load(write_segmenter(tmp_path / "segmenter", checkout))
    assert sys.meta_path == meta_path
    (checkout / "utils.py").unlink()
    with pytest.raises(ModelError, match="there is no module utils in"):
        BiomedParseAdapter.load(tmp_path / "segmenter")


def test_it_is_recognised_and_inspected(folder: Path) -> None:
    assert recognise(folder) == BiomedParseSettings(kind="biomedparse", folder=folder)
    summary = inspect_model(folder, torch.device("cpu"), lambda *_: None)
    assert summary.rows["structures"] == "background 0, LV 1, LA 2"
    assert summary.obstacles == ()


class TestBadInput:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_segmenter(tmp_path / "segmenter", write_checkout(tmp_path / "checkout"))
        return tmp_path

    def refused(self, root: Path, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            BiomedParseAdapter.load(root / "segmenter")

    def test_no_checkout(self, root: Path) -> None:
        (root / "checkout").rename(root / "elsewhere")
        self.refused(root, "not a checkout of BiomedParse v2")

    def test_a_checkout_of_v1(self, root: Path) -> None:
        for path in (root / "checkout" / "configs" / "model").iterdir():
            path.unlink()
        (root / "checkout" / "modeling").mkdir()
        (root / "checkout" / "modeling" / "BaseModel.py").touch()
        self.refused(root, "BiomedParse v1, which needs Python 3.9")

    def test_a_package_that_the_checkout_needs(self, root: Path) -> None:
        code = root / "checkout" / "src" / "model" / "network.py"
        code.write_text("import a_package_that_is_not_there\n" + code.read_text())
        self.refused(root, "a_package_that_is_not_there")

    def test_no_tokenizer(self, root: Path) -> None:
        (root / "tokenizer" / "vocabulary.txt").unlink()
        self.refused(root, 'name its folder as "tokenizer"')

    def test_nothing_is_downloaded_where_no_tokenizer_is_named(self, root: Path) -> None:
        path = root / "segmenter" / "segmenter.json"
        content = json.loads(path.read_text())
        del content["tokenizer"]
        path.write_text(json.dumps(content))
        self.refused(root, "cannot find somewhere/on-the-hub in the cached files")

    def test_a_checkpoint_of_another_network(self, root: Path) -> None:
        torch.save({"state_dict": {"model.encoder.weight": torch.zeros(2)}}, root / "segmenter" / "biomedparse_v2.ckpt")
        self.refused(root, "misses .* tensors, the first backbone")

    def test_a_checkpoint_with_a_tensor_missing(self, root: Path) -> None:
        path = root / "segmenter" / "biomedparse_v2.ckpt"
        state = torch.load(path, weights_only=True)["state_dict"]
        del state["model.sem_seg_head.predictor.queries.weight"]
        torch.save({"state_dict": state}, path)
        self.refused(root, "misses 1 tensors, the first sem_seg_head.predictor.queries.weight")

    def test_a_truncated_checkpoint(self, root: Path) -> None:
        path = root / "segmenter" / "biomedparse_v2.ckpt"
        path.write_bytes(path.read_bytes()[:1000])
        self.refused(root, "damaged or truncated")

    def test_words_for_a_structure_that_is_not_there(self, root: Path) -> None:
        with pytest.raises(ConfigError, match="no structure RV; the segmenter has LV, LA"):
            BiomedParseAdapter.load(root / "segmenter", TextPrompts(texts={"RV": "right heart ventricle"}))

    def test_two_prompts_in_one(self) -> None:
        with pytest.raises(ValueError, match=r"without \[SEP\]"):
            TextPrompts(texts={"LV": "left[SEP]right"})

    def test_a_volume(self, root: Path) -> None:
        case = Case("v", "v", np.zeros((1, 4, 8, 8), np.float32), Geometry.unknown(3))
        with pytest.raises(DataError, match="3-D and the segmenter 2-D"):
            BiomedParseAdapter.load(root / "segmenter").preprocess(case)
