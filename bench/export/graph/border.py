"""Numbers that are added to a layer's output, which differ near the border of a map."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class BorderMap:
    """Numbers that are added to a layer's output, by channel and position.

    Near the border a kernel reads zeros instead of values, and zero need not be the value of a code. Positions of which
    the kernel has the same rows and columns in the input are of one class, and have the same numbers.

    Attributes:
        values: Numbers by channel, class of the row, and class of the column.
        rows, columns: Class of each row and column of the output.
    """

    values: NDArray[np.float64]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    @property
    def uniform(self) -> bool:
        """Whether all positions have the same numbers."""
        return self.values.shape[1:] == (1, 1)

    @property
    def whole(self) -> NDArray[np.float64]:
        """The numbers by channel, row and column; of height and width 1 if all positions have the same."""
        return self.values if self.uniform else self.values[:, self.rows][:, :, self.columns]
