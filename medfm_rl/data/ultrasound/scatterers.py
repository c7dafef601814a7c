"""Scatterers that move with the tissue, so that speckle does, as in a clip of a real scanner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medfm_rl.data.ultrasound.engine import SAMPLES, Array, ComplexArray, Sector

_PER_CELL = 2
"""Scatterers in a cell of the grid of scan lines; more would change little, since the pulse covers several cells."""
_SHARED = 4 / 9
"""Mean power that is left of a scatterer that four cells share linearly."""


@dataclass(frozen=True)
class Scatterers:
    """Points in a field of view, each with an echo of its own.

    Attributes:
        rows: In pixels of the image, `(N,)`.
        columns: Likewise.
        echoes: Circular complex Gaussian of mean power 1.
    """

    rows: Array
    columns: Array
    echoes: ComplexArray

    @classmethod
    def scattered(cls, sector: Sector, lines: int, rng: np.random.Generator) -> Scatterers:
        """Points that are spread evenly over samples and scan lines."""
        count = _PER_CELL * SAMPLES * lines
        depth, place = rng.uniform(0, 1, count), rng.uniform(-1, 1, count)
        rows, columns = sector.place(depth, place * sector.half_angle)
        echoes = (rng.standard_normal(count) + 1j * rng.standard_normal(count)) / np.sqrt(2)
        return cls(rows, columns, echoes)

    def moved(self, rows: Array, columns: Array) -> Scatterers:
        """The same at other places."""
        return Scatterers(rows, columns, self.echoes)

    def on_lines(self, sector: Sector, lines: int) -> ComplexArray:
        """The echo of each sample of each scan line, `(samples, lines)`, of mean power 1 where they are spread evenly.

        A point is shared between the four nearest places, so that it moves steadily from one to the next.
        """
        depth, angle = sector.polar_of(self.rows, self.columns)
        sample, line = depth * (SAMPLES - 1), (angle / sector.half_angle + 1) / 2 * (lines - 1)
        inside = (sample >= 0) & (sample < SAMPLES - 1) & (line >= 0) & (line < lines - 1)
        sample, line, echoes = sample[inside], line[inside], self.echoes[inside]
        low_sample, low_line = sample.astype(np.intp), line.astype(np.intp)
        of_sample, of_line = sample - low_sample, line - low_line
        found = np.zeros(SAMPLES * lines, np.complex128)
        for down in (0, 1):
            for across in (0, 1):
                weight = (of_sample if down else 1 - of_sample) * (of_line if across else 1 - of_line)
                place = (low_sample + down) * lines + low_line + across
                found += np.bincount(place, weight * echoes.real, len(found))
                found += 1j * np.bincount(place, weight * echoes.imag, len(found))
        echoes_of_lines: npt.NDArray[np.complex128] = found.reshape(SAMPLES, lines) / np.sqrt(_PER_CELL * _SHARED)
        return echoes_of_lines
