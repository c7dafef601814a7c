"""A finding: something suspicious in a data set, in words, and the cases that it concerns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SHOWN = 3
_OF_ONE = {
    "are": "is",
    "differ": "differs",
    "have": "has",
    "hold": "holds",
    "lack": "lacks",
    "look": "looks",
    "share": "shares",
    "state": "states",
}
"""What the verb that a finding begins with is of one case alone."""


@dataclass(frozen=True)
class Finding:
    """Something suspicious.

    Attributes:
        kind: Its code, which stays the same in every version, such as `other-spacing`.
        what: It in words, as it goes on after "N of M images", beginning with a verb.
        rule: When it is said, and why it matters.
        cases: What is odd in each case that it concerns; an empty text where nothing is to be added.
        of: How many cases were asked.
        noun: What they are: images, or masks.
        also: What else is to be said, where it concerns no cases by name.
    """

    kind: str
    what: str
    rule: str
    cases: Mapping[str, str] = field(default_factory=dict)
    of: int = 0
    noun: str = "images"
    also: str = ""

    @property
    def title(self) -> str:
        """How many cases it concerns and what it is."""
        if not self.of:
            return self.what
        what = self.of_one if len(self.cases) == 1 else self.what
        return f"{len(self.cases)} of {self.of} {self.noun} {what}"

    def of_case(self, case_id: str) -> str:
        """What is odd in one of the cases, in words."""
        what = f"mask {self.of_one}" if self.noun == "masks" else self.of_one
        return f"{what}: {self.cases[case_id]}" if self.cases[case_id] else what

    @property
    def of_one(self) -> str:
        """What it is in words of one case alone."""
        verb, _, rest = self.what.partition(" ")
        return f"{_OF_ONE.get(verb, verb)} {rest}"

    def first(self, shown: int = _SHOWN) -> str:
        """The first cases that it concerns, each with what is odd, or what else is to be said."""
        if not self.cases:
            return self.also
        named = [f"{case} ({remark})" if remark else case for case, remark in list(self.cases.items())[:shown]]
        more = len(self.cases) - shown
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def notices(where: str, findings: Sequence[Finding]) -> list[str]:
    """A line for each finding, for commands whose business is another one.

    Args:
        where: The data set, as the beginning of a line.
        findings: The findings.
    """
    return [f"{where}: {item.title}{f': {item.first()}' if item.first() else ''}" for item in findings]
