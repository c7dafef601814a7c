"""What is decided at the desk stands in the feedback store, once, and can be taken back."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from support.desk import FRAMES, SCHEMA, DeskFolder
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

from medfm_rl.data.images import hash_image
from medfm_rl.feedback import CorrectedMask, FeedbackStore, Grade, Preference, Verdict
from medfm_rl.feedback.entries import Entry
from medfm_rl.service.desk import Desk


def entries(folder: DeskFolder) -> list[Entry]:
    with FeedbackStore.open(folder.store) as store:
        return list(store.entries())


def test_an_acceptance_is_a_verdict_on_the_mask_that_was_shown(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    item = item_of(client, "audit")
    answer = decide(client, item, {"kind": "verdict", "value": "accept"}, comment="good")
    assert answer.status_code == 201
    (entry,) = entries(folder)
    assert isinstance(entry, Verdict)
    assert entry.accepts_whole
    assert (entry.id, entry.drawn, entry.reviewer, entry.comment) == (
        answer.json()["entries"][0],
        "audit",
        "r1",
        "good",
    )
    assert entry.image_sha256 == hash_image(folder.images / f"{entry.case}.nii.gz")
    assert entry.model_hash == "b" * 64
    with FeedbackStore.open(folder.store) as store:
        mask = store.mask(entry.mask_sha256)
    assert np.array_equal(mask.labels, pixels(client, f"/api/v1/cases/{item}/masks/given")[0])
    assert item not in [each["item"] for each in items(client, state="open")]


def test_parts_by_structure_and_grades_are_entries_of_their_own(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    parts = (
        {"kind": "verdict", "value": "reject", "structure": "LV"},
        {"kind": "verdict", "value": "accept", "structure": "MYO"},
        {"kind": "grade", "value": 2},
    )
    assert decide(client, item_of(client, "refer"), *parts).status_code == 201
    found = {(type(entry), getattr(entry, "structure", None)) for entry in entries(folder)}
    assert found == {(Verdict, "LV"), (Verdict, "MYO"), (Grade, None)}


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"kind": "verdict", "value": "perhaps"}],
        [{"kind": "verdict", "value": "accept", "structure": "liver"}],
        [{"kind": "grade", "value": 5}],
        [{"kind": "preference", "value": "a"}],
        [{"kind": "mask", "mask": "0" * 64}],
        [{"kind": "verdict", "value": "accept"}, {"kind": "verdict", "value": "reject"}],
        [{"kind": "verdict", "value": "accept"}, {"kind": "verdict", "value": "reject", "structure": "LV"}],
        [{"kind": "verdict", "value": "accept", "mask": "b"}],
    ],
)
def test_what_means_nothing_is_refused_and_nothing_is_recorded(
    desk: Desk, folder: DeskFolder, parts: list[dict[str, object]]
) -> None:
    client = client_of(desk)
    answer = decide(client, item_of(client, "refer"), *parts)
    assert answer.status_code in (404, 422)
    assert {"code", "message", "remedy"} == answer.json()["error"].keys()
    assert entries(folder) == []
    assert client.get("/api/v1/queue").json()["done"] == 0


def test_i_cannot_tell_and_unfit_are_answers_that_close_the_item(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    for kind, said in (("refer", "cannot_tell"), ("correct", "unfit")):
        item = item_of(client, kind)
        answer = decide(client, item, {"kind": said})
        assert answer.json()["entries"] == [answer.json()["decision"]]
        assert next(each for each in items(client) if each["item"] == item)["state"] == "done"
    assert entries(folder) == []


def test_a_corrected_mask_comes_back_as_it_was_drawn(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    item = next(each["item"] for each in items(client, kind="correct") if each["name"] == "v01_short")
    labels = pixels(client, f"/api/v1/cases/{item}/masks/given").copy()
    labels[2, 10:14, 20:24] = 2
    sent = send_labels(client, item, labels)
    assert decide(client, item, {"kind": "mask", "mask": sent, "replaces": "given"}).status_code == 201
    (entry,) = entries(folder)
    assert isinstance(entry, CorrectedMask)
    assert entry.changed == ("MYO",)
    with FeedbackStore.open(folder.store) as store:
        mask = store.mask(entry.mask_sha256)
    assert np.array_equal(mask.labels, labels)
    assert mask.names == SCHEMA.names
    assert mask.geometry.spacing == pytest.approx((0.8, 0.6, 5.0))


def test_of_a_clip_each_frame_is_an_entry_and_those_left_alone_are_accepted(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    item = next(each["item"] for each in items(client, kind="correct") if each["name"] == "c01_loop")
    case = client.get(f"/api/v1/cases/{item}").json()
    assert (case["form"], case["shape"]) == ("clip", [64, 48, FRAMES])
    assert len(case["areas"]["LV"]) == FRAMES
    assert max(case["areas"]["LV"]) == case["areas"]["LV"][0]
    labels = pixels(client, f"/api/v1/cases/{item}/masks/given").copy()
    labels[3] = 0
    assert decide(client, item, {"kind": "mask", "mask": send_labels(client, item, labels)}).status_code == 201
    found = {entry.case: entry for entry in entries(folder)}  # type: ignore[attr-defined]
    assert len(found) == FRAMES
    assert isinstance(found["c01_loop_frame003"], CorrectedMask)
    assert sum(isinstance(entry, Verdict) for entry in found.values()) == FRAMES - 1
    assert len({entry.image_sha256 for entry in found.values()}) == FRAMES  # type: ignore[attr-defined]


def test_a_comparison_tells_nothing_and_its_answer_names_the_right_mask(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    for number, each in enumerate(items(client, kind="compare")):
        item = each["item"]
        case = client.get(f"/api/v1/cases/{item}").json()
        assert not {"scores", "verdict", "reasons", "rules", "worst"} & case.keys()
        assert (case["has_rewards"], each["score"]) == (False, None)
        shown = {mask["role"]: pixels(client, f"/api/v1/cases/{item}/masks/{mask['mask']}") for mask in case["masks"]}
        assert shown.keys() == {"a", "b"}
        decide(client, item, {"kind": "preference", "value": "ab"[number % 2]})
        entry = entries(folder)[-1]
        assert isinstance(entry, Preference)
        with FeedbackStore.open(folder.store) as store:
            better = store.mask(entry.better_sha256).labels
        assert np.array_equal(better, shown["ab"[number % 2]][0])


def test_the_order_of_a_comparison_is_drawn_and_stays_for_a_reviewer(folder: DeskFolder) -> None:
    """Whose mask is A: a coin for each reviewer and item that shows the same side each time."""
    desk = open_desk(folder)
    item = next(item for item in desk.catalogue.items.values() if item.kind == "compare")
    first = [desk.showing.masks(item, f"r{number}", [])[0].source for number in range(200)]
    again = [desk.showing.masks(item, f"r{number}", [])[0].source for number in range(200)]
    assert first == again
    assert 70 < first.count("given") < 130
    assert len({mask.id for number in range(200) for mask in desk.showing.masks(item, f"r{number}", [])}) == 400


def test_the_same_key_gives_the_same_answer_and_another_body_is_refused(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    item, key = item_of(client, "refer"), str(uuid.uuid4())
    first = decide(client, item, {"kind": "verdict", "value": "reject"}, key=key)
    # A service that starts again knows the key too.
    again = decide(client_of(open_desk(folder)), item, {"kind": "verdict", "value": "reject"}, key=key)
    assert first.json() == again.json()
    assert again.status_code == 201
    other = decide(client, item, {"kind": "verdict", "value": "accept"}, key=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "key_reused")
    assert len(entries(folder)) == 1
    assert desk.database.store.history() == entries(folder)


def test_undo_takes_back_all_of_a_decision_and_opens_the_item(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    item = item_of(client, "refer")
    made = decide(client, item, {"kind": "verdict", "value": "reject"}, {"kind": "grade", "value": 1}).json()
    undone = client.post(f"/api/v1/decisions/{made['entries'][1]}/undo")
    assert (undone.status_code, undone.json()["item"]) == (201, item)
    assert entries(folder) == []
    with FeedbackStore.open(folder.store) as store:
        assert [entry.kind for entry in store.history()] == ["verdict", "grade", "removal", "removal"]
    assert item in [each["item"] for each in items(client, state="open")]
    assert client.post(f"/api/v1/decisions/{made['entries'][0]}/undo").status_code == 409
    assert client.post(f"/api/v1/decisions/{uuid.uuid4()}/undo").status_code == 404


def test_only_who_decided_or_a_lead_takes_a_decision_back(folder: DeskFolder) -> None:
    desk = open_desk(folder)
    make_users(desk, chief="administrator", r07="reviewer", r08="reviewer", r09="lead")
    made = decide(logged_in(desk, "r07"), item_of(logged_in(desk, "r07"), "refer"), {"kind": "cannot_tell"}).json()
    assert logged_in(desk, "r08").post(f"/api/v1/decisions/{made['decision']}/undo").status_code == 403
    assert logged_in(desk, "r09").post(f"/api/v1/decisions/{made['decision']}/undo").status_code == 201


def test_saying_the_same_again_is_no_second_entry(desk: Desk, folder: DeskFolder) -> None:
    client = client_of(desk)
    item = item_of(client, "refer")
    first = decide(client, item, {"kind": "verdict", "value": "reject"}).json()
    second = decide(client, item, {"kind": "verdict", "value": "reject"}).json()
    assert first["entries"] == second["entries"]
    assert first["decision"] != second["decision"]
    assert len(entries(folder)) == 1
