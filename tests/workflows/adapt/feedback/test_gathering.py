from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from support.tiny_runs import tiny_config

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import DataError, ModelError
from medfm_rl.feedback import CorrectedMask, FeedbackStore, Grade, Mask, Measurement, Preference, Removal, Verdict
from medfm_rl.feedback.entries import Drawn, Entry
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.runs.learned_feedback import LearnedFeedback
from medfm_rl.settings import DataSettings, FeedbackSettings, FineTuningSettings
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.adapt.checks import split_target
from medfm_rl.workflows.adapt.choosing.cross_fit import CrossFit
from medfm_rl.workflows.adapt.choosing.selection import Selection
from medfm_rl.workflows.adapt.context import RunContext
from medfm_rl.workflows.adapt.continuing import Continuation, learned_before
from medfm_rl.workflows.adapt.feedback.gathering import gather
from medfm_rl.workflows.adapt.feedback.judged_images import load_judged
from medfm_rl.workflows.adapt.feedback.reported import goals_of_cases
from medfm_rl.workflows.adapt.loop import adapt

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})


def quiet(stage: str, done: int, total: int) -> None:
    """No progress."""


def target_of(echo: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=echo / "b"))


def mask_of(file: CaseFile) -> Mask:
    labelled = file.read_labelled(SCHEMA)
    return Mask.of(labelled.ground_truth, SCHEMA.names, labelled.case.geometry)


def drawn_by(file: CaseFile, mask: Mask, reviewer: str = "r1", drawn: Drawn = "other") -> CorrectedMask:
    return CorrectedMask(
        reviewer=reviewer,
        patient=file.patient_id,
        case=file.case_id,
        image_sha256=file.hash_images(),
        mask_sha256=mask.sha256,
        drawn=drawn,
    )


def store_with(path: Path, entries: list[Entry], masks: list[Mask]) -> str:
    with FeedbackStore.create(path) as store:
        store.add(entries, masks)
    return str(path)


def reviewed_store(path: Path, files: list[CaseFile], drawn: Drawn = "other") -> str:
    masks = [mask_of(file) for file in files]
    return store_with(path, [drawn_by(file, mask, drawn=drawn) for file, mask in zip(files, masks, strict=True)], masks)


def patients(files: list[CaseFile]) -> list[str]:
    return sorted({file.patient_id for file in files})


def test_images_are_found_by_content_and_not_by_name(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)
    mask = mask_of(files[0])
    entry = drawn_by(files[0], mask)
    renamed = CorrectedMask(
        reviewer="r1", patient="x", case="y", image_sha256=entry.image_sha256, mask_sha256=mask.sha256
    )
    learned = gather(FeedbackSettings(store=store_with(tmp_path / "s.sqlite", [renamed], [mask])), files, 0, quiet)
    assert [each.case_id for each in learned.reviewed] == [files[0].case_id]
    assert learned.reviewed[0].patient_id == files[0].patient_id
    assert learned.reviewed[0].trust == 1.0


def test_patients_of_an_audit_draw_never_teach_unless_told(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)
    audited = patients(files)[:2]
    store = tmp_path / "s.sqlite"
    reviewed_store(store, [file for file in files if file.patient_id in audited], drawn="audit")
    reviewed_store(store, [file for file in files if file.patient_id in patients(files)[2:4]])
    learned = gather(FeedbackSettings(store=str(store)), files, 0, quiet)
    assert learned.kept == tuple(audited)
    assert learned.teaching_patients == tuple(patients(files)[2:4])
    told = gather(FeedbackSettings(store=str(store), learn_from_audit=True), files, 0, quiet)
    assert (told.kept, told.teaching_patients) == ((), tuple(patients(files)[:4]))


def test_a_share_of_the_patients_is_kept_for_promises(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)
    store = reviewed_store(tmp_path / "s.sqlite", files)
    learned = gather(FeedbackSettings(store=store, calibration_share=0.5), files, 0, quiet)
    assert 0 < len(learned.kept) < 6
    assert set(learned.kept) | set(learned.teaching_patients) == set(patients(files))
    assert not set(learned.kept) & set(learned.teaching_patients)
    # With fewer in the store, the same of these.
    first = set(patients(files)[:3])
    fewer = reviewed_store(tmp_path / "fewer.sqlite", [file for file in files if file.patient_id in first])
    before = gather(FeedbackSettings(store=fewer, calibration_share=0.5), files, 0, quiet)
    assert set(before.kept) == first & set(learned.kept)


def test_an_audit_draw_stays_one_when_the_same_is_said_again(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)
    store = tmp_path / "s.sqlite"
    reviewed_store(store, files[:1], drawn="audit")
    reviewed_store(store, files[:1])
    reviewed_store(store, [file for file in files if file.patient_id == patients(files)[1]])
    kept = gather(FeedbackSettings(store=str(store)), files, 0, quiet).kept
    assert kept == (files[0].patient_id,)
    with FeedbackStore.open(store) as opened:
        entry = next(entry for entry in opened.history() if isinstance(entry, CorrectedMask) and entry.drawn == "audit")
        opened.add([Removal(reviewer="r1", removes=entry.id, reason="it was not drawn at random")])
    assert gather(FeedbackSettings(store=str(store)), files, 0, quiet).kept == ()


def test_whoever_taught_a_run_teaches_those_that_go_on_from_it(
    simulated_echo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = target_of(simulated_echo)
    taught, late, new = patients(files)[:3]
    store = tmp_path / "s.sqlite"
    reviewed_store(store, [file for file in files if file.patient_id == taught])
    reviewed_store(store, [file for file in files if file.patient_id in (late, new)], drawn="audit")
    settings = FeedbackSettings(store=str(store), calibration_share=0.99)
    learned = gather(settings, files, 0, quiet, [taught, late, "p-of-old"])
    assert (learned.kept, learned.teaching_patients) == ((new,), (taught, late))
    assert learned.taught_before == ("p-of-old", taught, late)
    assert f"go on teaching: {late}." in caplog.text
    learned.write(tmp_path / "feedback.json")
    assert LearnedFeedback.read(tmp_path / "feedback.json") == learned
    after = learned.without_teachers()
    assert (after.teaching_patients, after.ever_taught, after.kept) == ((), ("p-of-old", taught, late), (new,))


def test_an_accepted_mask_teaches_less_and_not_beside_a_corrected_one(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)[:2]
    masks = [mask_of(file) for file in files]
    accepted = [
        Verdict(
            reviewer="r2",
            patient=file.patient_id,
            case=file.case_id,
            image_sha256=file.hash_images(),
            mask_sha256=mask.sha256,
            decision="accept",
        )
        for file, mask in zip(files, masks, strict=True)
    ]
    store = store_with(tmp_path / "s.sqlite", [*accepted, drawn_by(files[0], masks[0])], masks)
    learned = gather(FeedbackSettings(store=store, accepted_trust=0.3), target_of(simulated_echo), 0, quiet)
    assert {each.case_id: each.trust for each in learned.reviewed} == {files[0].case_id: 1.0, files[1].case_id: 0.3}
    alone = gather(FeedbackSettings(store=store, kinds=("masks",)), target_of(simulated_echo), 0, quiet)
    assert [each.case_id for each in alone.reviewed] == [files[0].case_id]


def test_a_store_of_other_images_is_refused_by_name(simulated_echo: Path, tmp_path: Path) -> None:
    source = find_cases(DataSettings(path=simulated_echo / "a"))
    store = reviewed_store(tmp_path / "others.sqlite", source[:1])
    with pytest.raises(DataError, match=r"others\.sqlite says nothing of the 24 cases of the target.*1 entries"):
        gather(FeedbackSettings(store=store), target_of(simulated_echo), 0, quiet)


def test_a_record_comes_back_as_it_was_written(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)
    store = tmp_path / "s.sqlite"
    reviewed_store(store, files[:3])
    report = Measurement(reviewer="report", patient=files[0].patient_id, name="EF", value=55.0, unit="%")
    store_with(store, [report], [])
    learned = gather(FeedbackSettings(store=str(store)), files, 0, quiet)
    learned.write(tmp_path / "feedback.json")
    assert LearnedFeedback.read(tmp_path / "feedback.json") == learned
    assert learned.reported[0].value == 55.0
    with FeedbackStore.open(store) as opened:
        assert learned.state_hash == opened.state_hash()


def test_a_run_learns_from_reviewed_patients_and_says_so(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    """D_R has actions on their images, and the choice heard them."""
    files = target_of(simulated_echo)
    taught = patients(files)[:4]
    store = reviewed_store(tmp_path / "s.sqlite", [file for file in files if file.patient_id in taught])
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = tiny_config(
        simulated_echo,
        source_model,
        tmp_path / "run",
        iterations=1,
        fine_tuning=FineTuningSettings(steps=4, batch_size=6),
        feedback=FeedbackSettings(store=store),
        anatomy=str(lenient),
        selection={"target_fraction": 0.5},
    )
    run = adapt(config, False, quiet)
    dataset = ActionDataset(run.actions)
    by_source: dict[str, set[str]] = {}
    for key in dataset.shards():
        by_source.setdefault(key.source, set()).update(origin.patient_id for origin in dataset.read(key).origins)
    assert by_source["reviewed"] == set(taught)
    evidence = CrossFit.read(run.cross_fit)
    assert evidence.patients == tuple(taught)
    selection = Selection.read(run.selection(0))
    assert selection.patients_gain == pytest.approx(evidence.typical_gain)
    assert selection.patients_p_value == pytest.approx(evidence.p_value)
    assert json.loads(run.feedback.read_text())["state_hash"] == LearnedFeedback.read(run.feedback).state_hash


def test_reviewed_patients_are_in_no_unlabelled_part_unless_too_few_are_left(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    config = tiny_config(simulated_echo, source_model, tmp_path / "run")
    everybody = set(patients(target_of(simulated_echo)))
    first = sorted(everybody)[0]
    for taught, left in (([first], everybody - {first}), (sorted(everybody)[:3], everybody)):
        parts = split_target(config, taught)
        assert {file.patient_id for part in parts for file in part} == left


def test_a_run_goes_on_with_what_was_said_when_it_started(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    files = target_of(simulated_echo)
    store = tmp_path / "s.sqlite"
    reviewed_store(store, files[:1])
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = tiny_config(
        simulated_echo,
        source_model,
        tmp_path / "run",
        iterations=1,
        feedback=FeedbackSettings(store=str(store)),
        anatomy=str(lenient),
    )

    class StoppedError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("collecting"):
            raise StoppedError

    with pytest.raises(StoppedError):
        adapt(config, False, stop)
    before = LearnedFeedback.read(tmp_path / "run" / "feedback.json")
    reviewed_store(store, files[:2])
    adapt(config, True, quiet)
    assert LearnedFeedback.read(tmp_path / "run" / "feedback.json") == before


def test_a_run_goes_on_from_another_with_its_actions_rewards_and_result(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    """The second iteration follows the first in D_R, and what the other run returned competes."""
    files = target_of(simulated_echo)
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = tiny_config(simulated_echo, source_model, tmp_path / "first", iterations=1, anatomy=str(lenient))
    first = adapt(config, False, quiet)
    store = reviewed_store(tmp_path / "s.sqlite", files[:2])
    later = config.model_copy(
        update={
            "output": tmp_path / "second",
            "continues": first.path,
            "feedback": FeedbackSettings(store=store),
        }
    )
    second = adapt(later, False, quiet)
    before, after = ActionDataset(first.actions), ActionDataset(second.actions)
    assert after.shards(0) == before.shards(0)
    assert {key.source for key in after.shards(1)} == {"source", "reviewed", "target"}
    taken = Continuation.read(second.continued)
    assert (taken.iterations, taken.actions_hash) == (1, before.content_hash())
    assert second.iterations == [0, 1]
    names = [candidate.name for candidate in Selection.read(second.last_selection).candidates]
    assert names[:2] == (
        ["source", "previous"] if Selection.read(first.last_selection).chosen != "source" else names[:2]
    )
    assert names[-1].startswith("iteration-01/candidates/")
    # Repeated, it is finished.
    adapt(later, True, quiet)
    # Whoever taught the second is known to a third.
    before = learned_before(later.model_copy(update={"continues": second.path}))
    assert before is not None
    assert before.ever_taught == (files[0].patient_id,)
    other = tiny_config(simulated_echo, source_model, tmp_path / "third", iterations=1, continues=tmp_path / "nothing")
    with pytest.raises(ModelError, match="nothing"):
        adapt(other, False, quiet)


def test_reports_become_goals_of_the_frames_of_a_view(
    simulated_echo: Path, source_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = target_of(simulated_echo)
    first = patients(files)[0]
    own = [file for file in files if file.patient_id == first]
    views = {file.case_id.rpartition("_")[0] for file in own}
    entries: list[Entry] = [
        Measurement(reviewer="report", patient=first, name="EF", value=55.0, unit="%", uncertainty=4.0),
        Measurement(reviewer="report", patient=first, name="diameter", value=50.0, unit="mm", structure="LV"),
    ]
    learned = gather(FeedbackSettings(store=store_with(tmp_path / "s.sqlite", entries, [])), files, 0, quiet)
    goals = goals_of_cases(learned.reported, files, TorchModuleAdapter.load(source_model))
    pairs = [view for view in views if sum(file.case_id.startswith(f"{view}_") for file in own) == 2]
    assert len(goals) == 2 * len(pairs)
    assert f"1 values of diameter ({first}) teach nothing" in caplog.text
    caplog.clear()
    others = [file for file in files if file.patient_id != first]
    with caplog.at_level("INFO"):
        assert goals_of_cases(learned.reported, others, TorchModuleAdapter.load(source_model)) == {}
    assert "2 of 2 values of reports teach nothing: they are of patients on whose images candidates" in caplog.text
    assert "EF needs two frames" not in caplog.text


def test_an_area_is_brought_to_the_grid_of_the_network(tmp_path: Path) -> None:
    """64 x 64 pixels of .5 x .5 mm seen as 32 x 32: 4 native pixels, 1 mm2, for each of the network."""
    import torch

    from medfm_rl.data.images import write_image
    from medfm_rl.runs.learned_feedback import Reported
    from medfm_rl.settings import NetworkSettings, PreprocessingSettings
    from medfm_rl.types import Geometry

    schema = LabelSchema.from_structures({"LV": 1})
    torch.manual_seed(0)
    adapter = TorchModuleAdapter.build_unet(
        NetworkSettings(channels=(4, 8), residual_units=0), schema, PreprocessingSettings(size=(32, 32)), 1
    ).eval()
    image = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    write_image(tmp_path / "images" / "p1_a.mha", image, Geometry((0.5, 0.5), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)))
    files = find_cases(DataSettings(path=tmp_path))
    sample = adapter.preprocess(files[0].read())
    with torch.no_grad():
        logits = adapter(sample.image[None])[0]
    pixels = int((logits.argmax(dim=0) == 1).sum())
    native = int((adapter.restore(logits, sample) == 1).sum())
    reported = Reported("p1", "p1_a", "area", "LV", 200.0, 20.0)
    goals = goals_of_cases([reported], files, adapter)
    assert pixels > 0
    # Of the mask's own contour, resampled, and so near 1 mm2 a pixel and not exactly.
    size_of_pixel = 0.25 * native / pixels
    assert size_of_pixel == pytest.approx(1.0, abs=0.2)
    goal = goals["p1_a"][0]
    mask = torch.zeros(32, 32, dtype=torch.int64)
    mask.view(-1)[: round(180 / size_of_pixel)] = 1
    assert goal.shortfall(mask) == pytest.approx(1.0, abs=0.1)


def others_of(mask: Mask, count: int) -> list[Mask]:
    """The same mask moved to the right, further each time."""
    return [Mask.of(np.roll(mask.labels, 3 * (step + 1), axis=1), mask.names, mask.geometry) for step in range(count)]


def judged_store(path: Path, files: list[CaseFile], drawn: Drawn = "other") -> str:
    """Of each case four grades, two verdicts and a preference: the true mask is the best, and further ones worse."""
    entries: list[Entry] = []
    masks: list[Mask] = []
    for file in files:
        truth = mask_of(file)
        tried = [truth, *others_of(truth, 3)]
        masks.extend(tried)
        about: dict[str, object] = {
            "reviewer": "r1",
            "patient": file.patient_id,
            "case": file.case_id,
            "image_sha256": file.hash_images(),
            "drawn": drawn,
        }
        entries.extend(
            Grade(**about, mask_sha256=mask.sha256, grade=4 - row, structure="LV")  # type: ignore[arg-type]
            for row, mask in enumerate(tried)
        )
        entries.append(Verdict(**about, mask_sha256=tried[0].sha256, decision="accept"))  # type: ignore[arg-type]
        entries.append(Verdict(**about, mask_sha256=tried[3].sha256, decision="reject"))  # type: ignore[arg-type]
        entries.append(Preference(**about, better_sha256=tried[0].sha256, worse_sha256=tried[2].sha256))  # type: ignore[arg-type]
    return store_with(path, entries, masks)


def test_judgements_are_gathered_by_kind_with_their_trust(simulated_echo: Path, tmp_path: Path) -> None:
    """And those of patients who are kept for promises are not."""
    files = target_of(simulated_echo)
    store = tmp_path / "s.sqlite"
    taught = next(file for file in files if file.patient_id == patients(files)[0])
    judged_store(store, [taught])
    judged_store(store, [next(file for file in files if file.patient_id == patients(files)[1])], drawn="audit")
    settings = FeedbackSettings(store=str(store), verdict_trust=0.25, grade_trust=0.75, preference_trust=0.5)
    learned = gather(settings, files, 0, quiet)
    assert learned.judged_patients == learned.teaching_patients == (taught.patient_id,)
    said = sorted((each.scale, each.structure, each.value, each.trust) for each in learned.judged if each.structure)
    assert said == [("grade", "LV", grade / 4, 0.75) for grade in (1, 2, 3, 4)]
    assert [(each.value, each.trust) for each in learned.judged if each.scale == "verdict"].count((0.0, 0.25)) == 1
    assert [each.trust for each in learned.preferred] == [0.5]
    # An accepted mask is a reference too.
    assert [each.trust for each in learned.reviewed] == [0.5]
    learned.write(tmp_path / "feedback.json")
    assert LearnedFeedback.read(tmp_path / "feedback.json") == learned
    only = gather(FeedbackSettings(store=str(store), kinds=("preferences",)), files, 0, quiet)
    assert (only.judged, only.reviewed, len(only.preferred)) == ((), (), 1)


def test_a_record_of_a_version_without_judgements_is_read(simulated_echo: Path, tmp_path: Path) -> None:
    files = target_of(simulated_echo)
    learned = gather(FeedbackSettings(store=reviewed_store(tmp_path / "s.sqlite", files[:1])), files, 0, quiet)
    learned.write(tmp_path / "feedback.json")
    content = json.loads((tmp_path / "feedback.json").read_text())
    former = {name: value for name, value in content.items() if name not in ("judged", "preferred")}
    (tmp_path / "feedback.json").write_text(json.dumps({**former, "format": 1}))
    assert LearnedFeedback.read(tmp_path / "feedback.json") == learned


def test_judged_patients_are_learned_on_while_others_are_left_to_compare_candidates_on(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    config = tiny_config(simulated_echo, source_model, tmp_path / "run", selection={"target_fraction": 0.5})
    everybody = patients(target_of(simulated_echo))
    learning, selecting = split_target(config, judged=everybody[:2])
    assert set(everybody[:2]) <= set(patients(learning))
    assert not set(everybody[:2]) & set(patients(selecting))
    assert set(patients(learning)) | set(patients(selecting)) == set(everybody)
    # All were judged: as if nobody had been.
    assert split_target(config, judged=everybody) == split_target(config)


def test_a_run_learns_from_grades_and_preferences(
    simulated_echo: Path, source_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No reward network learns from patients whose images candidates are compared on, and the two kinds share none."""
    files = target_of(simulated_echo)
    store = judged_store(tmp_path / "s.sqlite", [file for file in files if file.case_id.endswith("_ED")])
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: [{kind: present, structure: background}]")
    config = tiny_config(
        simulated_echo,
        source_model,
        tmp_path / "run",
        iterations=1,
        feedback=FeedbackSettings(store=store, kinds=("grades", "preferences")),
        anatomy=str(lenient),
        selection={"target_fraction": 0.5},
    )
    with caplog.at_level(logging.INFO):
        run = adapt(config, False, quiet)
    learned = LearnedFeedback.read(run.feedback)
    assert (learned.reviewed, len(learned.judged)) == ((), 4 * len(learned.preferred))
    told = [record.getMessage() for record in caplog.records if "judgements of whole masks" in record.getMessage()]
    assert told
    _, selecting = split_target(config, judged=learned.judged_patients)
    domains = RunContext.of_run(config, run, quiet).load_domains()
    assert domains.judged is not None
    assert domains.judged.patients == set(learned.judged_patients) - set(patients(selecting))
    assert domains.judged.masks[0].actions.shape == (1, 32, 32)


def test_what_cannot_teach_is_refused_before_a_run_is_started_by_case_and_entry(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    files = target_of(simulated_echo)
    first, second, third = (next(file for file in files if file.patient_id == name) for name in patients(files)[:3])
    about = {"reviewer": "report", "patient": first.patient_id, "case": first.case_id}
    area = Measurement(**about, image_sha256=first.hash_images(), name="area", value=900.0, unit="mm2", structure="LVX")  # type: ignore[arg-type]
    fits = Measurement(reviewer="report", patient=first.patient_id, name="EF", value=55.0, unit="%")
    truth = mask_of(second)
    small = Mask.of(truth.labels[:-1], truth.names, truth.geometry)
    strange = Mask.of(mask_of(third).labels, ("background", "RV", "PA", "RA"), truth.geometry)
    entries: list[Entry] = [
        area,
        fits,
        drawn_by(second, truth),
        drawn_by(second, small, "r2"),
        drawn_by(third, strange),
    ]
    store = store_with(tmp_path / "s.sqlite", entries, [truth, small, strange])
    settings = FeedbackSettings(store=store)
    with pytest.raises(DataError, match=r"3 entries of .*s\.sqlite cannot teach this segmenter") as caught:
        gather(settings, files, 0, quiet, schema=SCHEMA)
    said = str(caught.value)
    assert f"case {first.case_id}, entry {area.id}: the value of area is of the structure 'LVX'" in said
    assert f"case {second.case_id}, entry {entries[2].id}: its mask and that of case" in said
    assert f"entry {entries[4].id}: mask {strange.sha256}: has RV, PA, RA" in said
    assert "feedback remove" in said
    config = tiny_config(simulated_echo, source_model, tmp_path / "run", iterations=1, feedback=settings)
    with pytest.raises(DataError, match="3 entries"):
        adapt(config, False, quiet)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert len(gather(FeedbackSettings(store=store, kinds=("accepted",)), files, 0, quiet, schema=SCHEMA).reviewed) == 0


def test_values_of_patients_who_are_not_in_the_target_are_named(
    simulated_echo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = target_of(simulated_echo)
    entries: list[Entry] = [
        Measurement(reviewer="report", patient=name, name="EF", value=55.0, unit="%")
        for name in (files[0].patient_id, *(f"x{number}" for number in range(7)))
    ]
    learned = gather(FeedbackSettings(store=store_with(tmp_path / "s.sqlite", entries, [])), files, 0, quiet)
    assert len(learned.reported) == 1
    assert "7 values of reports are of patients of whom the target has no image" in caplog.text
    assert "x0, x1, x2, x3, x4, 2 more. Give their images as target too" in caplog.text


def test_a_judgement_of_a_structure_that_the_segmenter_lacks_is_refused_by_name(
    simulated_echo: Path, source_model: Path, tmp_path: Path
) -> None:
    files = target_of(simulated_echo)
    labelled = files[0].read_labelled(SCHEMA)
    mask = Mask.of(labelled.ground_truth, (*SCHEMA.names, "RV"), labelled.case.geometry)
    grade = Grade(
        reviewer="r1",
        patient=files[0].patient_id,
        case=files[0].case_id,
        image_sha256=files[0].hash_images(),
        mask_sha256=mask.sha256,
        grade=1,
        structure="RV",
    )
    settings = FeedbackSettings(store=store_with(tmp_path / "s.sqlite", [grade], [mask]))
    learned = gather(settings, files, 0, quiet)
    with pytest.raises(DataError, match=rf"structure 'RV' of case {files[0].case_id}.*LV, MYO, LA.*feedback\.kinds"):
        load_judged(settings, learned, files, TorchModuleAdapter.load(source_model), (), quiet)
