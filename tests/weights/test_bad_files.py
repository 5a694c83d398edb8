"""Weights files that are damaged, hostile or something else."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.weights import (
    SUFFIXES,
    as_state,
    attempt,
    make,
    refusal,
    save_ckpt,
    tensors,
    torch,
)
from safetensors import numpy as safetensors

from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.weights import LocationWeights, Provenance

# -- files that are hostile


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "whole"])
def test_a_hostile_pickle_is_refused_and_never_executed(tmp_path: Path, place: str, zipped: bool) -> None:
    proof, path = tmp_path / "proof", tmp_path / "w.ckpt"
    content: Any = {
        "state_dict": as_state(tensors()),
        "hyper_parameters": {"harmonics_calculation": "analytic"},
    }
    content = Bomb(proof) if place == "whole" else content | {place: Bomb(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "refused: its pickle asks for posix.mkdir" in refusal(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the file was indeed hostile


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "w.ckpt"
    path.write_bytes(pickle.dumps(Bomb(proof)))
    assert "refused" in refusal(path) or "damaged" in refusal(path)
    assert not proof.exists()


def test_a_harmless_class_in_the_hyper_parameters_is_named(tmp_path: Path) -> None:
    path = save_ckpt(
        tmp_path / "w.ckpt", as_state(tensors()), harmonics_calculation="analytic", args=Namespace(a=1)
    )
    assert "its pickle asks for argparse.Namespace, which is no tensor or plain value" in refusal(path)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(10_000_000))
    assert "refused: its parts unpack to 10000000 bytes" in refusal(path)


def test_a_tensor_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    state = as_state(tensors())
    state["model.location.nnet.layers.0.weight"] = torch.zeros(1).expand(10**6, 10**6)
    message = refusal(save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic"))
    assert "model.location.nnet.layers.0.weight: expected at most the file's" in message
    assert "found shape (1000000, 1000000) of torch.float32" in message


# -- files that are damaged or something else


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path: Path, suffix: str) -> None:
    assert refusal(tmp_path / f"absent{suffix}").endswith("no such file")
    (tmp_path / f"folder{suffix}").mkdir()
    assert refusal(tmp_path / f"folder{suffix}").endswith("expected a file, found a directory")
    (tmp_path / f"empty{suffix}").touch()
    assert refusal(tmp_path / f"empty{suffix}").endswith("the file is empty")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>...", "a web page"),
        (b"not a checkpoint at all, just text" * 10, "damaged"),
        (bytes(1000), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_wrong_suffix_is_told(tmp_path: Path) -> None:
    make().save(tmp_path / "a.ckpt")
    make().save(tmp_path / "b.safetensors")
    (tmp_path / "a.ckpt").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").rename(tmp_path / "b.ckpt")
    (tmp_path / "c.bin").write_bytes(b"abc")
    assert "rename it to .ckpt" in refusal(tmp_path / "a.safetensors")
    assert "rename it to .safetensors" in refusal(tmp_path / "b.ckpt")
    assert "expected a name ending in .ckpt or .safetensors, found '.bin'" in refusal(tmp_path / "c.bin")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    make("analytic").save(tmp_path / f"w{suffix}")
    content = (tmp_path / f"w{suffix}").read_bytes()
    for length in {
        1,
        7,
        8,
        9,
        100,
        len(content) // 3,
        len(content) // 2,
        len(content) - 100,
        len(content) - 1,
    }:
        path = tmp_path / f"short{suffix}"
        path.write_bytes(content[:length])
        assert refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_is_an_error_or_changes_no_weight(tmp_path: Path, suffix: str) -> None:
    """Both formats carry checksums; a flip in unused bytes or in notes may pass."""
    weights = make("analytic")
    weights.save(tmp_path / f"w{suffix}")
    content = (tmp_path / f"w{suffix}").read_bytes()
    path, refused = tmp_path / f"flipped{suffix}", 0
    for at in np.random.default_rng(0).integers(0, len(content), 150):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        found = attempt(path)
        if isinstance(found, str):
            assert "\n" not in found
            refused += 1
        else:
            assert all((found.tensors[name] == value).all() for name, value in weights.tensors.items())
    assert refused > 20


Change = Callable[[dict[str, np.ndarray]], object]

FLAWS: dict[str, tuple[Change, str]] = {
    "a missing weight": (lambda t: t.pop("layers.1.weight"), "layers.1.weight is missing"),
    "a missing bias": (lambda t: t.pop("last_layer.bias"), "last_layer.bias is missing"),
    "no hidden layer": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("layers")],
        "layers.0.weight is missing: expected at least one hidden layer",
    ),
    "a gap": (
        lambda t: t.update({"layers.7.weight": t.pop("layers.1.weight")}),
        "layers.1.weight is missing",
    ),
    "no square": (
        lambda t: t.update({"layers.0.weight": np.zeros((4, 8))}),
        "layers.0.weight: expected L² columns with L from 1 to 200, found shape (4, 8)",
    ),
    "too many degrees": (
        lambda t: t.update({"layers.0.weight": np.zeros((4, 201**2))}),
        "layers.0.weight: expected L² columns with L from 1 to 200, found shape (4, 40401)",
    ),
    "no feature": (lambda t: t.update({"layers.0.weight": np.zeros((4, 0))}), "expected L² columns"),
    "three dimensions": (
        lambda t: t.update({"layers.0.weight": np.zeros((4, 9, 1))}),
        "layers.0.weight: expected two dimensions, found shape (4, 9, 1)",
    ),
    "a bias of another length": (
        lambda t: t.update({"layers.0.bias": np.zeros(5)}),
        "layers.0.bias: expected shape (4,), found (5,)",
    ),
    "unequal widths": (
        lambda t: t.update({"layers.1.weight": np.zeros((6, 4)), "layers.1.bias": np.zeros(6)}),
        "layers.1.weight: expected shape (4, 4), found (6, 4)",
    ),
    "a last layer for another width": (
        lambda t: t.update({"last_layer.weight": np.zeros((3, 5))}),
        "last_layer.weight: expected shape (3, 4), found (3, 5)",
    ),
    "no output": (
        lambda t: t.update({"last_layer.weight": np.zeros((0, 4)), "last_layer.bias": np.zeros(0)}),
        "last_layer.weight: expected at least one value",
    ),
    "a NaN": (
        lambda t: t["layers.1.weight"].__setitem__((2, 3), np.nan),
        "layers.1.weight: expected finite values, found nan at [2, 3]",
    ),
    "an infinity": (
        lambda t: t["last_layer.bias"].__setitem__(1, np.inf),
        "last_layer.bias: expected finite values, found inf at [1]",
    ),
    "integers": (
        lambda t: t.update({"layers.0.bias": np.zeros(4, np.int64)}),
        "layers.0.bias: expected",
    ),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("flaw", FLAWS)
def test_a_network_that_does_not_fit_together_is_refused_by_key_and_shape(
    tmp_path: Path, suffix: str, flaw: str
) -> None:
    change, message = FLAWS[flaw]
    values = tensors()
    change(values)
    path = tmp_path / f"w{suffix}"
    if suffix == ".ckpt":
        save_ckpt(path, as_state(values), harmonics_calculation="analytic")
    else:
        safetensors.save_file(values, path, {"convention": "analytic"})
    found = refusal(path)
    assert message in found
    assert ("model.location.nnet." in found) == (suffix == ".ckpt")


def test_weights_made_in_memory_are_checked_too() -> None:
    with pytest.raises(WeightsError, match=r"memory: extra: expected only layers\.0\.weight"):
        LocationWeights(tensors() | {"extra": np.zeros(1)}, "orthonormal")
    with pytest.raises(UsageError, match="expected one of analytic, closed-form, orthonormal, got 'exact'"):
        LocationWeights(tensors(), "exact")  # type: ignore[arg-type]
    values = tensors()
    del values["layers.1.bias"]
    with pytest.raises(WeightsError, match=r"here: layers\.1\.bias is missing"):
        LocationWeights(values, "orthonormal", provenance=Provenance("here"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("le_type", "grid", "le_type: expected 'sphericalharmonics', found 'grid'"),
        ("pe_type", "fcnet", "pe_type: expected 'siren', found 'fcnet'"),
        (
            "harmonics_calculation",
            "discretized",
            "expected one of analytic, closed-form, orthonormal, found 'discretized'",
        ),
        ("num_hidden_layers", 0, "num_hidden_layers: expected at least 1, found 0"),
        ("num_hidden_layers", 3, "num_hidden_layers: expected 2 as the tensors' shapes say, found 3"),
        ("legendre_polys", 10, "legendre_polys: expected 3 as the tensors' shapes say, found 10"),
        ("capacity", 512, "capacity: expected 4"),
        ("embed_dim", 256, "embed_dim: expected 3"),
    ],
)
def test_another_encoder_or_hyper_parameters_that_contradict_the_tensors_are_refused(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    parameters = {"harmonics_calculation": "analytic", name: value}
    assert message in refusal(save_ckpt(tmp_path / "w.ckpt", as_state(tensors()), **parameters))
    safetensors.save_file(tensors(), tmp_path / "w.safetensors", {"hyper_parameters": json.dumps(parameters)})
    assert message in refusal(tmp_path / "w.safetensors")


def test_two_copies_that_differ_are_refused(tmp_path: Path) -> None:
    state = as_state(tensors()) | as_state(tensors(seed=1), "model.nnet.")
    message = refusal(save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic"))
    assert "model.location.nnet.last_layer.bias and model.nnet.last_layer.bias differ" in message
    state = as_state(tensors()) | as_state(tensors(hidden=1), "model.nnet.")
    assert "differ: expected two equal copies" in refusal(
        save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"visual.proj": 1}},
            "no location network: expected keys such as model.location.nnet.",
        ),
        ({"state_dict": {}}, "found none"),
        ({"state_dict": [1, 2]}, "state_dict: expected a dictionary, found list"),
        ({"state_dict": {}, "hyper_parameters": 3}, "hyper_parameters: expected a dictionary, found int"),
        ([1, 2, 3], "expected a dictionary, found list"),
        (
            {"layers.0.weight": 3, "layers.0.bias": 1, "last_layer.weight": 1, "last_layer.bias": 1},
            "expected a tensor",
        ),
        ({"state_dict": {}, "satclip_engine": {"format_version": 2}}, "format version 2: expected 1"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    assert message in refusal(tmp_path / "w.ckpt")


def header_of(values: Mapping[str, np.ndarray], **changes: Any) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file, with entries of layers.0.weight replaced."""
    content = safetensors.save(dict(values), {"convention": "orthonormal"})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["layers.0.weight"].update(changes)
    return header, content[8 + length :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_offsets": [0, 10**15]}, "truncated or damaged"),
        ({"data_offsets": [-288, 0]}, "expected dtype, shape and data_offsets"),
        ({"data_offsets": [288, 0]}, "truncated or damaged"),
        ({"data_offsets": [0]}, "expected dtype, shape and data_offsets"),
        ({"shape": [10**9, 10**9]}, "needs 8000000000000000000 bytes"),
        ({"shape": [-4, -9]}, "expected dtype, shape and data_offsets"),
        ({"shape": "49"}, "expected dtype, shape and data_offsets"),
        ({"dtype": "I64"}, "expected one of F16, F32, F64, BF16, found I64 of shape (4, 9)"),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    header, data = header_of(tensors(), **changes)
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = refusal(tmp_path / "w.safetensors")
    assert message in found
    assert "layers.0.weight" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            (2**62).to_bytes(8, "little") + bytes(100),
            "its header claims 4611686018427387904 bytes, the file has 108",
        ),
        ((50).to_bytes(8, "little") + b"{" * 50, "its header is not JSON"),
        ((4).to_bytes(8, "little") + b"[[]]", "expected a dictionary as header, found list"),
        (
            (20).to_bytes(8, "little") + b'{"__metadata__": 1} ',
            "__metadata__: expected a dictionary, found int",
        ),
        ((90000).to_bytes(8, "little") + b"[" * 90000, "its header is not JSON"),
        (b"abc", "found 3 bytes"),
    ],
)
def test_a_safetensors_file_with_an_impossible_header_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    assert message in refusal(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tensors_sha256": "0" * 64}, "damaged: its tensors have sha256"),
        ({"L": "40"}, "expected L = 40 as the metadata says, found shape (4, 9), which is L = 3"),
        ({"convention": "schmidt"}, "metadata convention: expected one of"),
        ({"basis": "legendre polynomials"}, "metadata basis: expected one of"),
        ({"harmonics": "rounded"}, "metadata harmonics: expected one of exact, published"),
        ({"w0_first": "thirty"}, "w0 of the first layer: expected a positive number, found 'thirty'"),
        ({"hyper_parameters": "{"}, "metadata hyper_parameters: expected JSON"),
        ({"provenance": "[]"}, "metadata provenance: expected a dictionary, found list"),
        ({"satclip_format": "9"}, "format version 9: expected 1"),
    ],
)
def test_metadata_that_cannot_be_right_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    safetensors.save_file(tensors(), tmp_path / "w.safetensors", metadata)
    assert message in refusal(tmp_path / "w.safetensors")


def test_our_files_are_files_of_the_safetensors_library(tmp_path: Path) -> None:
    weights = make(dtype=np.float32)
    weights.save(tmp_path / "w.safetensors")
    found = safetensors.load_file(tmp_path / "w.safetensors")
    assert found.keys() == weights.tensors.keys()
    for name, value in weights.tensors.items():
        np.testing.assert_array_equal(found[name], value)
    assert math.isqrt(found["layers.0.weight"].shape[1]) == weights.L
