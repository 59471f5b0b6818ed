"""Tables of pandas, from columns and from rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdediff.extras import extra

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame


def frame(columns: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> DataFrame:
    """Return a table of columns ``(n,)`` by name, tensors of any device among them, or of rows.

    Raises:
        ValueError: if pandas is not installed; in one line, with the command that installs it.
    """
    with extra("frames"):
        from pandas import DataFrame

    if not isinstance(columns, Mapping):
        return DataFrame(list(columns))
    return DataFrame({name: _as_array(values) for name, values in columns.items()})


def _as_array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
