"""Missing values: items that have them are left out, or training items filled; both are counted and said."""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.data.dataset import Items
from sdediff.data.reading import DROP, REFUSE
from sdediff.data.remarks import listed, warn
from sdediff.numerics import in_parts


def without_gaps(parts: tuple[Items, ...], how: str, where: str) -> tuple[Items, ...]:
    """Return the parts of a data set without missing values.

    Items of the first part, the training items, are left out or filled from those that have the value, entry by entry.
    Those of other parts are left out in any case, for the likelihood of a filled item is that of an invented one.

    Args:
        parts: training items and, if there are any, held-out items.
        how: a name of :data:`~sdediff.data.reading.MISSING`.
        where: name of the data.

    Raises:
        ValueError: if values are missing and that is refused, an entry has no value at all, or no item is left.
    """
    gaps = [_incomplete(part.x) for part in parts]
    items = sum(int(gap.sum()) for gap in gaps)
    if not items:
        return parts
    _refuse_empty(parts[0], where)
    values = sum(int(part.x[gap].isnan().sum()) for part, gap in zip(parts, gaps, strict=True))
    of = sum(part.x.numel() for part in parts)
    found = f"{where}: {values:,} of {of:,} values are missing, in {items:,} of {sum(map(len, gaps)):,} items"
    if how == REFUSE:
        fills = ", mean or median fills training items" * (len(parts) > 1)
        raise ValueError(f"{found}; --set data.missing=drop leaves those out{fills}")
    if how == DROP:
        first, done = _whole(parts[0], gaps[0], where), "those items are left out"
    else:
        first = parts[0]._replace(x=_filled(parts[0].x, how))
        rest = "; held-out items are left out" * any(bool(gap.any()) for gap in gaps[1:])
        done = f"they are filled with the {how} of the training items{rest}"
    others = (_whole(part, gap, where) for part, gap in zip(parts[1:], gaps[1:], strict=True))
    complete = (first, *others)
    warn(f"{found}; {done}")
    return complete


def _incomplete(x: Tensor) -> Tensor:
    """Return which items ``(n, ...)`` have missing values, ``(n,)``."""
    if not x.is_floating_point():
        return torch.zeros(len(x), dtype=torch.bool)
    return torch.cat([part.flatten(1).isnan().any(dim=1) for part in in_parts(x)])


def _refuse_empty(items: Items, where: str) -> None:
    """Refuse items that have an entry without any value, which neither leaving out nor filling cures."""
    empty = torch.stack([part.isnan().all(dim=0) for part in in_parts(items.x)]).all(dim=0).nonzero().tolist()
    if empty:
        named = listed(
            items.columns[place[0]] or "(unnamed)" if items.columns else ", ".join(map(str, place))
            for place in empty[:4]
        )
        what = "column" if items.columns else "entry"
        raise ValueError(f"{where}: {what} {named} of the items has no value at all; leave it out")


def _whole(items: Items, gaps: Tensor, where: str) -> Items:
    if bool(gaps.all()):
        raise ValueError(
            f"{where}: no item of a part is without missing values; data.missing=mean or median fills them"
        )
    return items.part((~gaps).nonzero()[:, 0]) if bool(gaps.any()) else items


def _filled(x: Tensor, how: str) -> Tensor:
    centre = x.double().nanmean(dim=0) if how == "mean" else x.double().nanmedian(dim=0).values
    return torch.where(x.isnan(), centre.to(x.dtype), x)
