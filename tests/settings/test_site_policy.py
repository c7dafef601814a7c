from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medfm_rl.errors import ConfigError
from medfm_rl.settings import CLINIC, RESEARCH, SitePolicy
from medfm_rl.settings.files import commented_config, load_config, load_policy


def test_a_clinic_uses_what_is_proven_alone_and_research_every_accept() -> None:
    assert load_policy("clinic") is CLINIC
    assert load_policy("research") is RESEARCH
    assert (CLINIC.unproven, CLINIC.suspended) == ("refer", "refer")
    assert (RESEARCH.unproven, RESEARCH.suspended) == ("accept", "accept")


def test_a_policy_that_gives_itself_no_name_has_that_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "echo-lab.yaml"
    path.write_text(yaml.safe_dump({"limits": {"LV": 0.9, "mean": 0.85}, "suspended": "refer"}))
    assert load_policy(str(path)) == SitePolicy(
        name="echo-lab", limits={"LV": 0.9, "mean": 0.85}, suspended="refer", audit_share=0.05
    )
    path.write_text("name: ours\n")
    assert load_policy(str(path)).name == "ours"


def test_the_commented_file_of_a_policy_says_what_holds_by_default(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(commented_config(SitePolicy, {}))
    assert load_config(path, SitePolicy) == SitePolicy()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"limits": {"LV": 1.2}}, "limits.LV: .*less than 1"),
        ({"alpha": 0.7}, "alpha: .*less than 0.5"),
        ({"unproven": "use"}, "unproven: .*'accept' or 'refer'"),
        ({"limit": {"LV": 0.9}}, "limit: there is no such field"),
        ({"audit_share": 2}, "audit_share"),
        ({"unproven": "refer"}, "suspended: accept and unproven: refer contradict each other"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, content: dict[str, object], message: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_policy(str(path))
    assert str(caught.value).startswith(str(path))
