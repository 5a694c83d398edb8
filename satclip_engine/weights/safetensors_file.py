"""Checkpoints as `.safetensors`: tensors, and metadata that names their convention. Needs no torch.

Layout of a safetensors file: 8 bytes header length (little-endian), that many bytes of JSON (name → dtype,
shape, data_offsets; `__metadata__`: text → text), then the tensors' bytes. It is parsed here because the
safetensors library's NumPy side reads no bfloat16, and because every refusal is to name the file and the key;
that library says "invalid type: integer, line 1 column 126".

Metadata written: satclip_format, L, convention, harmonics, w0_first, w0_hidden, hyper_parameters (JSON),
provenance (JSON), tensors_sha256. Read as well: files with the simpler metadata L, basis, harmonics,
w0_first, w0_hidden.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from satclip_engine.errors import WeightsError
from satclip_engine.weights.network_keys import pick_network
from satclip_engine.weights.schema import (
    FORMAT_VERSION,
    PUBLISHED_W0,
    Convention,
    Stored,
    check_architecture,
    check_hyper_parameters,
    check_version,
    convention_of,
    harmonics_of,
    plain,
    shape_text,
    w0_of,
)
from satclip_engine.weights.statement import agreed_modes

_TENSOR_DTYPES: Final = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}
_STATEMENT_DTYPE: Final = "U8"
_MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
_OUR_METADATA: Final = ("satclip_format", "L", "convention", "basis", "harmonics", "w0_first", "w0_hidden")


def read_safetensors(path: Path, where: str) -> Stored:
    """Read and check a checkpoint, its hash included if it states one; messages name `where`."""
    with path.open("rb") as file:
        header, start = _read_header(file, path.stat().st_size, where)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise WeightsError(
                f"{where}: __metadata__: expected a dictionary, found {type(metadata).__name__}"
            )
        data_size = path.stat().st_size - start

        def fetch(key: str) -> np.ndarray:
            return _read_tensor(file, start, data_size, header[key], f"{where}: {key}")

        check_version(metadata.get("satclip_format", FORMAT_VERSION), where)
        parameters = _json_entry(metadata, "hyper_parameters", where)
        check_architecture(parameters, where)
        tensors, statement = pick_network(header, where, fetch)
    check_hyper_parameters(parameters, tensors, where)
    _check_degrees(metadata, tensors, where)
    _check_hash(metadata, tensors, where)
    provenance = _json_entry(metadata, "provenance", where)
    w0 = w0_of(parameters | metadata, where, PUBLISHED_W0 if statement is None else statement.w0)
    convention, harmonics = agreed_modes(
        statement,
        _convention(metadata, parameters, where),
        harmonics_of(metadata.get("harmonics"), f"{where}: metadata harmonics"),
        w0,
        where,
    )
    return Stored(
        tensors=tensors,
        convention=convention,
        harmonics=harmonics,
        w0=w0,
        hyper_parameters=parameters,
        extras=provenance or {key: value for key, value in metadata.items() if key not in _OUR_METADATA},
    )


def encode_safetensors(stored: Stored) -> bytes:
    """Bytes of a `.safetensors` file that read_safetensors gives back bit by bit."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value) for name, value in stored.tensors.items()}
    metadata = {
        "satclip_format": str(FORMAT_VERSION),
        "L": str(math.isqrt(tensors["layers.0.weight"].shape[1])),
        "convention": stored.convention or "analytic",
        "w0_first": repr(stored.w0[0]),
        "w0_hidden": repr(stored.w0[1]),
        "hyper_parameters": json.dumps(plain(stored.hyper_parameters)),
        "provenance": json.dumps(plain(stored.extras)),
        "tensors_sha256": tensors_sha256(tensors),
    }
    if stored.harmonics:
        metadata["harmonics"] = stored.harmonics
    return save(tensors, metadata)


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
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise WeightsError(f"{where}: damaged: its header claims {length} bytes, the file has {size}")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: damaged: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise WeightsError(
            f"{where}: damaged: expected a dictionary as header, found {type(header).__name__}"
        )
    return header, 8 + length


def _read_tensor(file: BinaryIO, start: int, data_size: int, entry: Any, key: str) -> np.ndarray:
    """Read a tensor; the header's claims are checked before any memory is allocated."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = isinstance(dtype, str) and all(
            isinstance(number, int) and number >= 0 for number in (*shape, begin, end)
        )
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound or not isinstance(dtype, str):
        raise WeightsError(
            f"{key}: damaged: expected dtype, shape and data_offsets, found {str(entry)[:100]}"
        )
    numpy_dtype = "u1" if dtype == _STATEMENT_DTYPE else _TENSOR_DTYPES.get(dtype)
    if numpy_dtype is None:
        raise WeightsError(
            f"{key}: expected one of {', '.join(_TENSOR_DTYPES)}, found {dtype} of shape {shape_text(shape)}"
        )
    needed = math.prod(shape) * np.dtype(numpy_dtype).itemsize
    if end - begin != needed or end > data_size:
        raise WeightsError(
            f"{key}: truncated or damaged: shape {shape_text(shape)} of {dtype} needs {needed} bytes, "
            f"the header gives bytes {begin} to {end} of {data_size}"
        )
    file.seek(start + begin)
    values = np.frombuffer(file.read(needed), numpy_dtype).reshape(shape)
    if dtype == "BF16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return values


def _json_entry(metadata: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(name, "{}"))
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: metadata {name}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: metadata {name}: expected a dictionary, found {type(value).__name__}")
    return value


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
            f"{where}: layers.0.weight: expected L = {metadata['L']} as the metadata says, "
            f"found shape {shape_text(tensors['layers.0.weight'].shape)}, which is L = {degrees}"
        )


def _check_hash(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str) -> None:
    if "tensors_sha256" in metadata and metadata["tensors_sha256"] != tensors_sha256(tensors):
        raise WeightsError(
            f"{where}: damaged: its tensors have sha256 {tensors_sha256(tensors)}, "
            f"expected {metadata['tensors_sha256']}"
        )
