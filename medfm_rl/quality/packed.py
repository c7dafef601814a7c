"""Reports of very many masks in little memory: packed, and unpacked one by one when somebody looks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from medfm_rl.quality.reports import QualityReport

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class InTurn(Sequence[T_co]):
    """A sequence whose items are made when they are asked for, and not kept.

    Attributes:
        length: How many there are.
        item: Makes the one of an index from 0 on.
    """

    length: int
    item: Callable[[int], T_co]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        places = range(self.length)[index]
        return self.item(places) if isinstance(places, int) else [self.item(place) for place in places]

    def __iter__(self) -> Iterator[T_co]:
        return map(self.item, range(self.length))


class PackedReports(MutableMapping[str, QualityReport]):
    """Reports by case, without their reward maps.

    A report takes ten kilobytes or more, most of it words that all of them have: they are packed with the first as a
    dictionary.
    """

    def __init__(self, reports: Iterable[QualityReport] = ()) -> None:
        self._packed: dict[str, bytes] = {}
        self._first = b""
        for report in reports:
            self[report.case_id] = report

    def __setitem__(self, case_id: str, report: QualityReport) -> None:
        text = json.dumps(report.to_json()).encode()
        self._first = self._first or text
        packer = zlib.compressobj(1, zdict=self._first)
        self._packed[case_id] = packer.compress(text) + packer.flush()

    def __getitem__(self, case_id: str) -> QualityReport:
        content: dict[str, Any] = json.loads(zlib.decompressobj(zdict=self._first).decompress(self._packed[case_id]))
        return QualityReport.from_json(content)

    def __delitem__(self, case_id: str) -> None:
        del self._packed[case_id]

    def __contains__(self, case_id: object) -> bool:
        return case_id in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def in_order(self, case_ids: Iterable[str] | None = None) -> Sequence[QualityReport]:
        """Those of some cases, in their order; of all where None."""
        names = list(self._packed if case_ids is None else case_ids)
        return InTurn(len(names), lambda index: self[names[index]])


def packed(reports: Iterable[QualityReport]) -> Sequence[QualityReport]:
    """Reports of different cases in their order, without their maps."""
    return PackedReports(reports).in_order()
