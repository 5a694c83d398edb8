"""Checkpoints as `.safetensors`: tensors, and metadata that names their convention. Needs no torch.

Layout of a safetensors file: 8 bytes header length (little-endian), that many bytes of JSON (name → dtype,
shape, data_offsets; `__metadata__`: text → text), then the tensors' bytes. It is parsed here because the
safetensors library's NumPy side reads no bfloat16, and because every refusal is to name the file and the key;
that library says "invalid type: integer, line 1 column 126".

Metadata written: satclip_format, L, convention, harmonics, w0_first, w0_hidden, hyper_parameters (JSON),
provenance (JSON), tensors_sha256, and weights_sha256 of all that decides what is computed: by it rasters name
their weights. Read as well: files without the latter, and files with the simpler metadata L,
basis, harmonics, w0_first, w0_hidden.

The same weights are the same bytes: the library writes metadata in another order in every process.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from satclip_engine.errors import WeightsError, one_line
from satclip_engine.weights.conventions import folds_published
from satclip_engine.weights.network_keys import pick_network
from satclip_engine.weights.schema import (
    FORMAT_VERSION,
    PUBLISHED_W0,
    Convention,
    Harmonics,
    Stored,
    check_architecture,
    check_hyper_parameters,
    check_version,
    convention_of,
    harmonics_of,
    parse_json,
    plain,
    shape_text,
    shown,
    w0_of,
)
from satclip_engine.weights.statement import agreed_modes

_TENSOR_DTYPES: Final = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_STATEMENT_DTYPE: Final = "U8"
_MAX_HEADER_BYTES: Final = 8_000_000  # a thousand tensors take 0.1 MB; parsing takes a second
_MAX_DIMENSIONS: Final = 8
_MAX_ITEMS: Final = 1 << 31  # along a dimension
_MAX_KEY_LETTERS: Final = 200  # of a key in a message
_ALIGNMENT: Final = 8  # of the first tensor's bytes
_DTYPE_NAMES: Final = {2: "F16", 4: "F32", 8: "F64"}  # by bytes of an item
_OUR_METADATA: Final = ("satclip_format", "L", "convention", "basis", "harmonics", "w0_first", "w0_hidden")


def read_safetensors(path: Path, where: str) -> Stored:
    """Read and check a checkpoint, its hash included if it states one; messages name `where`."""
    with path.open("rb") as file:
        header, start = _read_header(file, path.stat().st_size, where)
        metadata = header.pop("__metadata__", {})
        _check_metadata(metadata, where)
        _check_entries(header, where)
        data_size = path.stat().st_size - start
        spans = _Spans(data_size, where)

        def fetch(key: str) -> np.ndarray:
            entry = _TensorEntry.of(header[key], data_size, f"{where}: {key}")
            spans.add(entry)
            return entry.read(file, start)

        check_version(metadata.get("satclip_format", FORMAT_VERSION), where)
        parameters = _json_entry(metadata, "hyper_parameters", where)
        check_architecture(parameters, where)
        tensors, statement = pick_network(header, where, fetch)
    check_hyper_parameters(parameters, tensors, where)
    _check_degrees(metadata, tensors, where)
    provenance = _json_entry(metadata, "provenance", where)
    w0 = w0_of(parameters | metadata, where, PUBLISHED_W0 if statement is None else statement.w0)
    convention, harmonics = agreed_modes(
        statement,
        _convention(metadata, parameters, where),
        harmonics_of(metadata.get("harmonics"), f"{where}: metadata harmonics"),
        w0,
        where,
    )
    stored = Stored(
        tensors=tensors,
        convention=convention,
        harmonics=harmonics,
        w0=w0,
        hyper_parameters=parameters,
        extras=provenance
        or plain({key: value for key, value in metadata.items() if key not in _OUR_METADATA}, where),
    )
    _check_hashes(metadata, stored, where)
    return stored


def encode_safetensors(stored: Stored) -> bytes:
    """Bytes of a `.safetensors` file that read_safetensors gives back bit by bit."""
    tensors = {name: np.ascontiguousarray(value) for name, value in stored.tensors.items()}
    convention: Convention = stored.convention or "analytic"
    metadata = {
        "satclip_format": str(FORMAT_VERSION),
        "L": str(math.isqrt(tensors["layers.0.weight"].shape[1])),
        "convention": convention,
        "w0_first": repr(stored.w0[0]),
        "w0_hidden": repr(stored.w0[1]),
        "hyper_parameters": json.dumps(plain(stored.hyper_parameters)),
        "provenance": json.dumps(plain(stored.extras)),
        "tensors_sha256": tensors_sha256(tensors),
        "weights_sha256": weights_sha256(tensors, convention, stored.harmonics, stored.w0),
    }
    if stored.harmonics:
        metadata["harmonics"] = stored.harmonics
    return _file_bytes(tensors, metadata)


def _file_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Lay a file out as the library does, wide items first, with metadata in order of name."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    blocks, begin = [], 0
    for name in names:
        dtype = _DTYPE_NAMES[tensors[name].dtype.itemsize]
        blocks.append(tensors[name].astype(_TENSOR_DTYPES[dtype], copy=False).tobytes())
        end = begin + len(blocks[-1])
        header[name] = {"dtype": dtype, "shape": tensors[name].shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def weights_sha256(
    tensors: Mapping[str, np.ndarray],
    convention: Convention | None,
    harmonics: Harmonics | None,
    w0: tuple[float, float],
) -> str:
    """Hash of the function: tensors, convention, sine frequencies and, where it matters, harmonics."""
    degrees = math.isqrt(tensors["layers.0.weight"].shape[1])
    rest = json.dumps([convention, folds_published(degrees, convention, harmonics), *map(float, w0)])
    return hashlib.sha256(f"{tensors_sha256(tensors)} {rest}".encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash of names, dtypes, shapes and values, in order of name; independent of the file's layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{value.dtype.str}:{shape_text(value.shape)};".encode())
        digest.update(value.data)
    return digest.hexdigest()


def _read_header(file: BinaryIO, size: int, where: str) -> tuple[dict[str, Any], int]:
    """Read the JSON header, and the offset at which the tensors' bytes begin."""
    if size < 8:
        raise WeightsError(f"{where}: damaged: expected a safetensors header, found {size} bytes")
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise WeightsError(f"{where}: damaged: its header claims {length} bytes, the file has {size}")
    if length > _MAX_HEADER_BYTES:
        raise WeightsError(
            f"{where}: refused: its header has {length} bytes, at most {_MAX_HEADER_BYTES} are read"
        )
    try:
        header = parse_json(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: damaged: its header is not JSON ({one_line(error)})") from error
    if not isinstance(header, dict):
        raise WeightsError(
            f"{where}: damaged: expected a dictionary as header, found {type(header).__name__}"
        )
    return header, 8 + length


def _check_metadata(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict):
        raise WeightsError(f"{where}: __metadata__: expected a dictionary, found {type(metadata).__name__}")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise WeightsError(f"{where}: metadata {name}: expected text, found {shown(value)}")


def _check_entries(header: Mapping[str, Any], where: str) -> None:
    """Refuse a header that holds anything but tensors: metadata under a damaged name would be lost."""
    for key, entry in header.items():
        if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
            raise WeightsError(
                f"{where}: {key[:_MAX_KEY_LETTERS]}: damaged: expected dtype, shape and data_offsets, "
                f"found {shown(entry)}"
            )


@dataclass(frozen=True)
class _TensorEntry:
    """A tensor as the header claims it, checked before any memory is allocated."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the first tensor's on
    end: int
    key: str

    @classmethod
    def of(cls, content: Any, data_size: int, key: str) -> _TensorEntry:
        try:
            dtype, shape, (begin, end) = content["dtype"], tuple(content["shape"]), content["data_offsets"]
            sound = isinstance(dtype, str) and all(map(_is_count, (*shape, begin, end)))
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound:
            raise WeightsError(
                f"{key}: damaged: expected dtype, shape and data_offsets, found {shown(content)}"
            )
        if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > _MAX_ITEMS:
            raise WeightsError(f"{key}: damaged: no tensor has the shape {shown(shape)}")
        if dtype not in _TENSOR_DTYPES and dtype != _STATEMENT_DTYPE:
            raise WeightsError(
                f"{key}: expected one of {', '.join(_TENSOR_DTYPES)}, "
                f"found {dtype[:20]} of shape {shape_text(shape)}"
            )
        needed = math.prod(shape) * _numpy_dtype(dtype).itemsize
        if end - begin != needed or end > data_size:
            raise WeightsError(
                f"{key}: truncated or damaged: shape {shape_text(shape)} of {dtype} needs {needed} bytes, "
                f"the header gives bytes {begin} to {end} of {data_size}"
            )
        return cls(dtype, shape, begin, end, key)

    def read(self, file: BinaryIO, start: int) -> np.ndarray:
        file.seek(start + self.begin)
        values = np.frombuffer(file.read(self.end - self.begin), _numpy_dtype(self.dtype))
        try:
            values = values.reshape(self.shape)
        except ValueError as error:  # empty, but too large for NumPy; or the file has become shorter
            raise WeightsError(f"{self.key}: damaged: {one_line(error)}") from error
        if self.dtype == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        return values


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype("u1" if name == _STATEMENT_DTYPE else _TENSOR_DTYPES[name])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


class _Spans:
    """Bytes of tensors, which no two share: a small file could else claim any amount of memory."""

    def __init__(self, data_size: int, where: str) -> None:
        self._data_size, self._where, self._ends = data_size, where, {0: 0}  # by begin
        self._begins = [0]

    def add(self, entry: _TensorEntry) -> None:
        if entry.begin == entry.end:
            return
        index = bisect.bisect_right(self._begins, entry.begin)
        before = self._ends[self._begins[index - 1]]
        after = self._begins[index] if index < len(self._begins) else self._data_size
        if entry.begin < before or entry.end > after:
            raise WeightsError(
                f"{self._where}: damaged: bytes {entry.begin} to {entry.end} belong to two tensors"
            )
        if entry.begin not in self._ends:
            self._begins.insert(index, entry.begin)
        self._ends[entry.begin] = entry.end


def _json_entry(metadata: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(metadata.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: metadata {name}: expected JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: metadata {name}: expected a dictionary, found {type(value).__name__}")
    checked: dict[str, Any] = plain(value, f"{where}: metadata {name}")
    return checked


def _convention(metadata: Mapping[str, Any], parameters: Mapping[str, Any], where: str) -> Convention | None:
    """Convention by `convention`, else the first word of `basis`, else the hyper-parameters."""
    if "convention" in metadata:
        return convention_of(metadata["convention"], f"{where}: metadata convention")
    if "basis" in metadata:
        word = str(metadata["basis"]).split(" ")[0].rstrip(",;:")
        return convention_of(word, f"{where}: metadata basis")
    return convention_of(
        parameters.get("harmonics_calculation"), f"{where}: hyper_parameters.harmonics_calculation"
    )


def _check_degrees(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str) -> None:
    degrees = math.isqrt(tensors["layers.0.weight"].shape[1])
    if metadata.get("L", str(degrees)) != str(degrees):
        raise WeightsError(
            f"{where}: layers.0.weight: expected L = {shown(metadata['L'])[1:-1]} as the metadata says, "
            f"found shape {shape_text(tensors['layers.0.weight'].shape)}, which is L = {degrees}"
        )


def _check_hashes(metadata: Mapping[str, Any], stored: Stored, where: str) -> None:
    actual = tensors_sha256(stored.tensors)
    if metadata.get("tensors_sha256", actual) != actual:
        raise WeightsError(
            f"{where}: damaged: its tensors have sha256 {actual}, "
            f"expected {shown(metadata['tensors_sha256'])}"
        )
    actual = weights_sha256(stored.tensors, stored.convention, stored.harmonics, stored.w0)
    if metadata.get("weights_sha256", actual) != actual:
        raise WeightsError(
            f"{where}: damaged: its tensors with their convention, harmonics and w0 have sha256 {actual}, "
            f"expected {shown(metadata['weights_sha256'])}"
        )
