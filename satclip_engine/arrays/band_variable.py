"""Variable whose attributes along the band (names, scales, offsets) follow every selection of bands.

rioxarray writes band names from a tuple in the attribute `long_name`, and scales and offsets from tuples in
the encoding. xarray passes attributes on unchanged, so that a selection of bands would meet the names and
scales of others. Scales lie in the encoding because arithmetic drops it: values that are no codes any more
keep none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import numpy as np
import xarray
from xarray.core import indexing

BAND: Final = "band"
_NAMES: Final = "long_name"
_SCALES: Final = ("scales", "offsets")
GENERAL_NAME: Final = "location embedding"  # of an array whose bands have been mixed


class BandVariable(xarray.Variable):
    """An embedding, (band, …); `long_name` and the encoding's scales and offsets have an entry a band."""

    __slots__ = ()

    @xarray.Variable.encoding.setter  # type: ignore[attr-defined]
    def encoding(self, value: Any) -> None:
        # reindex gives a selection the encoding of the whole.
        own = {name: entries for name, entries in (self._encoding or {}).items() if name in _SCALES}
        value = dict(value)
        self._encoding = {**value, **{name: own[name] for name in own if name in value}}

    def __getitem__(self, key: Any) -> BandVariable:
        result: BandVariable = super().__getitem__(key)
        return self._follow(result, self._bands(key))

    def roll(self, shifts: Any = None, **shifts_kwargs: Any) -> Any:
        """Roll along dimensions; bands that move keep their entries."""
        result = super().roll(shifts, **shifts_kwargs)
        count = {**(shifts or {}), **shifts_kwargs}.get(BAND, 0)
        return self._follow(result, np.roll(np.arange(self.sizes[BAND]), count)) if count else result

    def shift(self, shifts: Any = None, fill_value: Any = xarray.core.dtypes.NA, **shifts_kwargs: Any) -> Any:
        """Shift along dimensions; shifted bands leave gaps that no entry describes."""
        result = super().shift(shifts, fill_value, **shifts_kwargs)
        return self._follow(result, None) if {**(shifts or {}), **shifts_kwargs}.get(BAND, 0) else result

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Reduce along dimensions; a mean of bands is none of them."""
        result = super().reduce(*args, **kwargs)
        if not _fit(names := result.attrs.get(_NAMES), result) and isinstance(names, (tuple, list)):
            result.attrs[_NAMES] = GENERAL_NAME
        return result

    def _binary_op(self, other: Any, f: Any, reflexive: bool = False) -> Any:
        """Sums, products, … of an embedding's bands are still theirs."""
        result = _of_bands(super()._binary_op(other, f, reflexive))
        names = self.attrs.get(_NAMES)
        if isinstance(result, BandVariable) and result.attrs and _fit(names, result):
            result.attrs.setdefault(_NAMES, names)  # lost where the other side, such as a norm, has another
        return result

    def __array_wrap__(self, obj: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return BandVariable(self.dims, obj)  # of -x and abs(x)

    def _getitem_with_mask(self, key: Any, fill_value: Any = xarray.core.dtypes.NA) -> Any:
        """Index as `reindex` does, which has bands that were not there."""
        return self._follow(super()._getitem_with_mask(key, fill_value=fill_value), None)

    def _follow(self, result: BandVariable, bands: np.ndarray | None) -> BandVariable:
        """Select the entries of the bands that `result` has; all go when these are not known."""
        for content, name in ((result.attrs, _NAMES), *((result.encoding, name) for name in _SCALES)):
            entries = content.get(name)
            if not isinstance(entries, (tuple, list)):
                continue
            if bands is None or len(entries) != self.sizes[BAND]:
                content[name] = GENERAL_NAME if name == _NAMES else None
            elif bands.ndim == 0 and name == _NAMES:
                content[name] = entries[int(bands)]
            else:
                content[name] = tuple(entries[band] for band in np.atleast_1d(bands))
        return result

    def _bands(self, key: Any) -> np.ndarray | None:
        """The bands that a key selects, () or (n,); None where they no longer vary along the band alone."""
        if key is None or BAND not in self.dims:
            return None
        keys = indexing.expanded_indexer(self._item_key_to_tuple(key), self.ndim)
        index = keys[self.dims.index(BAND)]
        bands = xarray.Variable(BAND, np.arange(self.sizes[BAND]))[index]
        return bands.values if bands.dims in ((), (BAND,)) else None


def _fit(entries: Any, variable: xarray.Variable) -> bool:
    """True for entries that a variable's bands have one each."""
    return isinstance(entries, (tuple, list)) and variable.sizes.get(BAND) == len(entries)


def _of_bands(result: Any) -> Any:
    if not isinstance(result, xarray.Variable):  # of an operation that the other side must carry out
        return result
    return BandVariable(result.dims, result._data, result.attrs, result.encoding, fastpath=True)


def named_array(
    variable: xarray.Variable,
    coords: Any,
    names: Sequence[str],
    scale_offset: tuple[np.ndarray, np.ndarray] | None = None,
) -> xarray.DataArray:
    """A DataArray "embedding" of a variable (band, …) whose names, and scales of codes, follow its bands."""
    attrs: dict[Hashable, Any] = {**variable.attrs, _NAMES: tuple(names)}
    of_bands = BandVariable(variable.dims, variable._data, attrs, fastpath=True)
    # A DataArray's constructor would make a plain Variable of it.
    array = xarray.Dataset({"embedding": of_bands}, coords=coords)["embedding"]
    if scale_offset is not None:
        array.encoding |= {
            name: tuple(numbers.tolist()) for name, numbers in zip(_SCALES, scale_offset, strict=True)
        }
    return array
