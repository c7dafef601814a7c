"""The queue: what is asked, in which order, of whom; leases, second readings and disagreements."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.desk import PLANE, SCHEMA, SIZE, DeskFolder
from support.desk_client import (
    client_of,
    decide,
    item_of,
    items,
    logged_in,
    make_users,
    open_desk,
    pixels,
    send_labels,
)

from medfm_rl.data.images import write_labels
from medfm_rl.data.labels import read_labels
from medfm_rl.errors import UserError
from medfm_rl.feedback import FeedbackStore
from medfm_rl.runs.stream_history import read_stream
from medfm_rl.runs.stream_state import add_reviews
from medfm_rl.service import leases
from medfm_rl.service.desk import Desk
from medfm_rl.types import LabelSchema


def test_the_audit_sample_comes_first_and_each_item_says_why(desk: Desk) -> None:
    found = items(client_of(desk))
    kinds = [each["kind"] for each in found]
    assert kinds == ["audit", "refer", "compare", "compare", "correct", "correct", "correct", "correct"]
    assert found[0]["reason"] == "drawn at random from the accepted masks of its stream"
    assert found[1]["reason"] == "predicted mean Dice 0.42; LV has 2 parts"
    scores = [each["score"] for each in found[4:]]
    assert scores == sorted(scores)


def test_filters_leave_what_they_say(desk: Desk) -> None:
    client = client_of(desk)
    assert {each["kind"] for each in items(client, kind="correct")} == {"correct"}
    assert [each["name"] for each in items(client, text="SHORT")] == ["v01_short"]
    answer = client.get("/api/v1/queue", params={"offset": 2, "limit": 3}).json()
    assert (len(answer["items"]), answer["total"]) == (3, 8)
    assert answer["left"] == {"audit": 1, "refer": 1, "correct": 4, "compare": 2}


def test_proposals_are_an_audit_sample_and_cases_to_learn_from(folder: DeskFolder, tmp_path: Path) -> None:
    def patient(number: int) -> dict[str, object]:
        name = f"p{number:04d}_4CH"
        case = {
            "case": name,
            "image_files": [str(folder.images / f"{name}.nii.gz")],
            "mask_file": str(folder.scores / "masks" / f"{name}.nii.gz"),
        }
        return {"patient": f"p{number:04d}", "why": f"reason {number}", "cases": [case]}

    content = {
        "run": {"model_hash": "c" * 64},
        "audit": {"patients": [patient(1)]},
        "informative": {"patients": [patient(4), patient(2)]},
    }
    (tmp_path / "proposals.json").write_text(json.dumps(content))
    only = {"scores": (), "corrections": (), "streams": (), "structures": SCHEMA, "proposals": (tmp_path,)}
    for more in ({"proposals": (tmp_path,)}, only):
        client = client_of(open_desk(folder, **more))
        found = {each["name"]: (each["kind"], each["reason"]) for each in items(client)}
        assert found["p0001_4CH"] == ("audit", "reason 1")
        assert [name for name, (kind, _) in found.items() if kind == "learn"] == ["p0004_4CH", "p0002_4CH"]
        assert client.get(f"/api/v1/cases/{item_of(client, 'learn')}/masks/given").status_code == 200
    decide(client, item_of(client, "learn"), {"kind": "verdict", "value": "accept"})
    with FeedbackStore.open(folder.store) as store:
        (entry,) = store.entries()
    assert (entry.drawn, entry.model_hash) == ("informative", "c" * 64)
    with pytest.raises(UserError, match="nothing says which structures"):
        open_desk(folder, **{**only, "structures": None})
    (tmp_path / "proposals.json").write_text(json.dumps({**content, "structures": dict(SCHEMA.integers)}))
    client = client_of(open_desk(folder, **{**only, "structures": None}))
    assert client.get(f"/api/v1/cases/{item_of(client, 'audit')}/masks/given").status_code == 200
    (tmp_path / "proposals.json").write_text(json.dumps({**content, "structures": ["LV"]}))
    with pytest.raises(UserError, match=r"proposals\.json: .*structures: Input should be a valid dictionary"):
        open_desk(folder, **{**only, "structures": None})


def test_of_an_image_that_cannot_be_read_it_can_be_said_that_it_is_unfit(folder: DeskFolder, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    (copied.images / "p0003_4CH.nii.gz").unlink()
    client = client_of(open_desk(copied))
    item = item_of(client, "refer")
    assert client.get(f"/api/v1/cases/{item}").status_code == 409
    assert decide(client, item, {"kind": "verdict", "value": "accept"}).status_code == 409
    assert decide(client, item, {"kind": "unfit"}).status_code == 201


def test_accepted_masks_are_shown_on_request(folder: DeskFolder) -> None:
    assert [item.kind for item in open_desk(folder, streams=(), accepted=True).catalogue.items.values()][
        -1
    ] == "accepted"
    assert "accepted" not in {item.kind for item in open_desk(folder, streams=()).catalogue.items.values()}


def test_a_case_belongs_to_who_opened_it_until_he_gives_it_back(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer")
    one, other = logged_in(desk, "chief"), logged_in(desk, "r07")
    first = one.post("/api/v1/queue/next", json={}).json()
    second = other.post("/api/v1/queue/next", json={}).json()
    assert first["item"] != second["item"]
    refused = other.post(f"/api/v1/items/{first['item']}/lease")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "leased")
    assert next(each for each in items(other) if each["item"] == first["item"])["leased_by"] == "chief"
    lost = decide(other, first["item"], {"kind": "cannot_tell"})
    assert (lost.status_code, lost.json()["error"]["code"]) == (409, "lease_lost")
    assert other.delete(f"/api/v1/leases/{first['lease']}").status_code == 204
    assert other.post(f"/api/v1/items/{first['item']}/lease").status_code == 409
    assert one.delete(f"/api/v1/leases/{first['lease']}").status_code == 204
    assert other.post(f"/api/v1/items/{first['item']}/lease").status_code == 200


def test_a_lease_that_ran_out_is_taken_by_the_next(folder: DeskFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer")
    one, other = logged_in(desk, "chief"), logged_in(desk, "r07")
    taken = one.post("/api/v1/queue/next", json={}).json()
    later = "2999-01-01T00:00:00.000000+00:00"
    monkeypatch.setattr(leases, "_now", lambda: later)
    assert other.post("/api/v1/queue/next", json={}).json()["item"] == taken["item"]
    monkeypatch.undo()
    assert one.post(f"/api/v1/leases/{taken['lease']}/renew").status_code == 404
    # Once it is free again, what a slow connection had kept back is taken too.
    lease = other.post(f"/api/v1/items/{taken['item']}/lease").json()["lease"]
    assert decide(one, taken["item"], {"kind": "cannot_tell"}).status_code == 409
    other.delete(f"/api/v1/leases/{lease}")
    assert decide(one, taken["item"], {"kind": "cannot_tell"}).status_code == 201


def test_next_goes_on_behind_an_item_and_ends(desk: Desk) -> None:
    client = client_of(desk)
    order = [each["item"] for each in items(client)]
    assert client.post("/api/v1/queue/next", json={"after": order[2]}).json()["item"] == order[3]
    assert client.post("/api/v1/queue/next", json={"after": order[-1]}).status_code == 204
    assert client.post("/api/v1/queue/next", json={"kinds": ["refer"]}).json()["item"] == order[1]
    for item in order:
        assert decide(client, item, {"kind": "cannot_tell"}).status_code == 201
    assert client.post("/api/v1/queue/next").status_code == 204
    answer = client.get("/api/v1/queue").json()
    assert (answer["left"], answer["done"], answer["median_seconds"]) == ({}, 8, 2.0)


def test_a_second_reading_is_asked_of_another_and_a_disagreement_of_a_third(folder: DeskFolder) -> None:
    desk = open_desk(folder, second_share=1.0)
    make_users(desk, chief="administrator", r07="reviewer", r08="reviewer")
    first, second, third = (logged_in(desk, name) for name in ("r07", "r08", "chief"))
    item = item_of(first, "refer")
    decide(first, item, {"kind": "verdict", "value": "accept"})
    assert items(first, kind="second") == []
    (again,) = items(second, kind="second")
    assert "r07" not in json.dumps(second.get(f"/api/v1/cases/{again['item']}").json())
    decide(second, again["item"], {"kind": "verdict", "value": "reject"})
    assert items(first, kind="disagreement") == items(second, kind="disagreement") == []
    (apart,) = items(third, kind="disagreement")
    assert apart["reason"] == "r07 said accept; r08 said reject"
    standing = third.get("/api/v1/readings").json()
    assert standing == {"asked": 1, "answered": 1, "agreeing": 0, "disagreements": 1}
    decide(third, apart["item"], {"kind": "verdict", "value": "reject"})
    assert third.get("/api/v1/readings").json()["disagreements"] == 0
    with FeedbackStore.open(folder.store) as store:
        # Two decisions are two entries, and so is the third.
        assert {entry.reviewer for entry in store.entries()} == {"r07", "r08", "chief"}


def test_two_who_decided_the_same_item_and_differ_are_a_disagreement_too(folder: DeskFolder) -> None:
    """Without any second reading: the lease of one ran out, and his decision came after that of the other."""
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer", r08="reviewer")
    for name, value in (("r07", "accept"), ("r08", "reject")):
        client = logged_in(desk, name)
        decide(client, item_of(client, "refer"), {"kind": "verdict", "value": value})
    chief = logged_in(desk, "chief")
    (apart,) = items(chief, kind="disagreement")
    assert apart["reason"] == "r07 said accept; r08 said reject"
    assert chief.get(f"/api/v1/cases/{apart['item']}").status_code == 200
    assert decide(chief, apart["item"], {"kind": "verdict", "value": "reject"}).status_code == 201


def test_what_was_decided_a_moment_ago_is_not_handed_out_again(
    desk: Desk, folder: DeskFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has decided the first item, and this one hears of it only after it has taken the lease."""
    client = client_of(desk)
    first, second = (each["item"] for each in items(client)[:2])
    take_first = desk.leases.take_first

    def late(names: Iterable[str], reviewer: str) -> leases.Lease | None:
        taken = take_first(names, reviewer)
        if taken is not None and taken.item == first:
            decide(client_of(open_desk(folder)), first, {"kind": "cannot_tell"})
        return taken

    monkeypatch.setattr(type(desk.leases), "take_first", lambda self, *names: late(*names))
    assert client.post("/api/v1/queue/next").json()["item"] == second


def test_who_accepts_agrees_with_who_changed_hardly_anything(folder: DeskFolder) -> None:
    desk = open_desk(folder, second_share=1.0)
    make_users(desk, chief="administrator", r07="reviewer", r08="reviewer", r09="reviewer")
    names = ("r07", "r08")
    first, second = (logged_in(desk, name) for name in names)
    chosen = [each["item"] for each in items(first, kind="correct") if each["name"].startswith("p")]
    regions = (np.s_[0, 24, 30:32], np.s_[0, :26])
    for item, region in zip(chosen, regions, strict=True):
        decide(first, item, {"kind": "verdict", "value": "accept"})
        again = next(each for each in items(second, kind="second") if each["state"] == "open")["item"]
        labels = pixels(second, f"/api/v1/cases/{again}/masks/given").copy()
        labels[region] = 0
        decide(second, again, {"kind": "mask", "mask": send_labels(second, again, labels)})
    (apart,) = items(logged_in(desk, "r09"), kind="disagreement")
    case = logged_in(desk, "r09").get(f"/api/v1/cases/{apart['item']}").json()
    assert {mask["role"] for mask in case["masks"]} == {"a", "b"}


def test_what_was_said_without_the_desk_is_done_there(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    client = client_of(desk)
    decide(client, item_of(client, "refer"), {"kind": "verdict", "value": "reject"})
    with FeedbackStore.open(folder.store) as store:
        (entry,) = store.entries()
        mask = store.mask(entry.mask_sha256)  # type: ignore[attr-defined]
    other = folder.store.with_name("other.sqlite")
    with FeedbackStore.create(other) as store:
        store.add([entry], [mask])
    elsewhere = open_desk(DeskFolder(**{**vars(folder), "store": other}))
    (found,) = items(client_of(elsewhere), kind="refer")
    assert (found["state"], found["by_me"]) == ("done", False)


def test_a_mask_is_not_asked_about_again_once_its_stream_has_the_review(folder: DeskFolder, tmp_path: Path) -> None:
    client = client_of(open_desk(folder, accepted=True))
    audit = items(client, kind="audit")[0]["name"]
    decided = decide(client, item_of(client, "audit"), {"kind": "verdict", "value": "accept"}).json()["decision"]
    client.post(f"/api/v1/decisions/{decided}/undo")
    decided = decide(client, item_of(client, "audit"), {"kind": "cannot_tell"}).json()["decision"]
    reviewed = shutil.copy(folder.stream, tmp_path / "reviewed.jsonl")
    (drawn,) = read_stream(reviewed).open_audits
    assert drawn.case == audit
    add_reviews(reviewed, {drawn.key: 0.9})
    again = client_of(open_desk(folder, streams=(reviewed,), accepted=True))
    (found,) = items(again, text=audit)
    assert (found["kind"] != "audit", found["state"], found["by_me"]) == (True, "done", True)
    again.post(f"/api/v1/decisions/{decided}/undo")
    assert items(again, text=audit)[0]["state"] == "open"


def test_what_was_said_by_the_way_is_no_audit(folder: DeskFolder, tmp_path: Path) -> None:
    head = folder.stream.read_text().splitlines()[0]
    audit = items(client_of(open_desk(folder)), kind="audit")[0]["name"]
    (tmp_path / "early.jsonl").write_text(f"{head}\n")
    early = client_of(open_desk(folder, streams=(tmp_path / "early.jsonl",), accepted=True))
    decide(early, items(early, text=audit)[0]["item"], {"kind": "cannot_tell"})
    assert items(client_of(open_desk(folder)), kind="audit")[0]["state"] == "open"


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("image_moved", "image_missing"),
        ("image_changed", "image_changed"),
        ("mask_changed", "mask_changed"),
        ("mask_gone", "mask_missing"),
    ],
)
def test_files_that_changed_since_they_were_scored_are_named(
    folder: DeskFolder, tmp_path: Path, damage: str, code: str
) -> None:
    copied = copy_of(folder, tmp_path)
    image, other = (copied.images / f"p000{number}_4CH.nii.gz" for number in (3, 4))
    mask, wrong = (copied.scores / "masks" / path.name for path in (image, other))
    {
        "image_moved": lambda: image.unlink(),
        "image_changed": lambda: shutil.copy(other, image),
        "mask_changed": lambda: shutil.copy(wrong, mask),
        "mask_gone": lambda: mask.unlink(),
    }[damage]()
    client = client_of(open_desk(copied))
    answer = client.get(f"/api/v1/cases/{item_of(client, 'refer')}/masks/given")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)
    assert str(image if "image" in damage else mask) in answer.json()["error"]["message"]


def test_images_that_were_moved_are_found_again_by_name_and_hash(folder: DeskFolder, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path)
    now = tmp_path / "archive" / "2026"
    now.parent.mkdir()
    copied.images.rename(now)
    client = client_of(open_desk(copied, images=now.parent))
    assert client.get(f"/api/v1/cases/{item_of(client, 'refer')}/image").status_code == 200


def test_paths_are_those_of_the_folder_that_the_scores_were_made_in(folder: DeskFolder, tmp_path: Path) -> None:
    """`score runs/a --images images/` leaves such paths, and the desk is opened from elsewhere."""
    copied = copy_of(folder, tmp_path)
    path = copied.scores / "scores.json"
    path.write_text(path.read_text().replace(f"{copied.images.parent}{os.sep}", ""))
    client = client_of(open_desk(copied))
    assert client.get(f"/api/v1/cases/{item_of(client, 'refer')}/masks/given").status_code == 200


def test_the_integers_of_masks_are_found_out_by_the_hash_of_what_was_assessed(
    folder: DeskFolder, tmp_path: Path
) -> None:
    copied = copy_of(folder, tmp_path)
    other = LabelSchema.from_structures({"LV": 7, "MYO": 3})
    for path in (copied.scores / "masks").glob("p*.nii.gz"):
        labels = read_labels(path, SCHEMA, SIZE, PLANE)
        write_labels(path, labels, PLANE, other)
    client, before = client_of(open_desk(copied)), client_of(open_desk(folder))
    for kind in ("refer", "audit"):
        shown = pixels(client, f"/api/v1/cases/{item_of(client, kind)}/masks/given")
        assert np.array_equal(shown, pixels(before, f"/api/v1/cases/{item_of(before, kind)}/masks/given"))


@pytest.mark.parametrize(
    "damage", ["no_store", "newer_store", "newer_desk", "no_scores", "without_masks", "newer_scores"]
)
def test_a_desk_that_cannot_be_opened_says_what_to_do(folder: DeskFolder, tmp_path: Path, damage: str) -> None:
    copied = copy_of(folder, tmp_path)
    scores = copied.scores / "scores.json"
    content = json.loads(scores.read_text())
    if damage == "no_store":
        copied = replace(copied, store=tmp_path / "none.sqlite")
        message = "there is no store; `medfm-rl desk --new`"
    elif damage in ("newer_store", "newer_desk"):
        desk = open_desk(copied)
        table = "feedback_versions" if damage == "newer_store" else "desk_versions"
        with desk.database.writing() as connection:
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES (99, '2030', '9.0')")
        message = "update medfm-rl"
    elif damage == "no_scores":
        scores.unlink()
        message = "give the folder that `medfm-rl score` wrote"
    elif damage == "without_masks":
        for case in content["cases"]:
            case["mask_file"] = None
        scores.write_text(json.dumps(content))
        message = "does not say where the masks lie"
    else:
        scores.write_text(json.dumps({**content, "format": 99}))
        message = "newer version"
    with pytest.raises(UserError, match=message):
        open_desk(copied)


def test_what_is_scored_and_drawn_while_a_desk_is_open_is_there_after_a_reload(
    folder: DeskFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = copy_of(folder, tmp_path)
    scores, stream = copied.scores / "scores.json", tmp_path / "stream.jsonl"
    content = json.loads(scores.read_text())
    new = content["cases"].pop(next(n for n, case in enumerate(content["cases"]) if case["action"] == "refer"))
    whole = scores.read_text()
    scores.write_text(json.dumps(content))
    head, study = folder.stream.read_text().splitlines()
    stream.write_text(f"{head}\n")
    client = client_of(open_desk(copied, streams=(stream,)))
    decide(client, item_of(client, "correct"), {"kind": "verdict", "value": "accept"})
    before = items(client)
    assert new["case_id"] not in [each["name"] for each in before]
    scores.write_text(whole)
    stream.write_text(f"{head}\n{study}\n")
    after = items(client)
    assert {(each["name"], each["kind"]) for each in after if each not in before} == {
        (new["case_id"], "refer"),
        (json.loads(study)["cases"][0]["case"], "audit"),
    }
    assert [each["state"] for each in after].count("done") == 1
    assert client.get(f"/api/v1/cases/{item_of(client, 'refer')}/masks/given").status_code == 200
    # `score` takes the file away while it works.
    scores.unlink()
    assert items(client) == after
    assert "the queue stays as it is" in caplog.text


def copy_of(folder: DeskFolder, tmp_path: Path) -> DeskFolder:
    """Images, scores and a store that a test may damage, under paths of their own."""
    place = tmp_path / "copy"
    shutil.copytree(folder.images, place / "images")
    shutil.copytree(folder.scores, place / "scores")
    path = place / "scores" / "scores.json"
    path.write_text(path.read_text().replace(str(folder.images.parent) + os.sep, str(place) + os.sep))
    return replace(folder, images=place / "images", scores=place / "scores")
