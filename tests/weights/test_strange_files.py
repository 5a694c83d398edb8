"""Weights files from strangers: read right or refused in one line, in bounded time and memory."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.weights import as_state, attempt, make, refusal, save_ckpt, tensors, torch

import satclip_engine as se
from satclip_engine.errors import UsageError, WeightsError
from satclip_engine.weights import LocationWeights, read_weights
from satclip_engine.weights.safetensors_file import tensors_sha256

pytestmark = pytest.mark.filterwarnings("ignore:.*(nested tensors|quantize_per|TypedStorage)")
SECONDS, MEGABYTES = 20.0, 200  # of a refusal, on a busy machine


def bounded_refusal(path: Path) -> str:
    """The line with which a file is refused, in bounded time and memory of Python."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < SECONDS
    assert peak < MEGABYTES * 1e6
    assert message.isprintable()
    assert len(message) < 1000
    return message


def shared_pairs(depth: int) -> Any:
    value: Any = ["lol"]
    for _ in range(depth):
        value = [value, value]
    return value


def endless_list() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def shared_tuples(depth: int) -> Any:
    value: Any = ("lol",)
    for _ in range(depth):
        value = (value, value)
    return value


NOTES: dict[str, tuple[Callable[[], Any], str]] = {
    "shared references": (lambda: shared_pairs(25), "more than 100000 values"),
    "shared dictionaries": (
        lambda: {"a": shared_pairs(12), "b": [shared_pairs(12)] * 20},
        "more than 100000 values",
    ),
    "depth": (lambda: shared_pairs(40), "nested more than 32 deep"),
    "a list that holds itself": (endless_list, "nested more than 32 deep"),
    "an expanded tensor": (lambda: torch.zeros(1).expand(10**6, 10**6), "more than 100000 values"),
    "many large tensors": (lambda: [torch.zeros(90000)] * 5, "more than 100000 values"),
    "a sparse tensor": (lambda: torch.zeros(4, 4).to_sparse(), "without plain values"),
    "a nested tensor": (
        lambda: torch.nested.nested_tensor([torch.zeros(2)] * 3),
        "without plain",
    ),
    "a huge number": (lambda: 2**1500, "a number of 1501 bits"),
    "long text, often": (lambda: ["x" * 10000] * 100, "more than 500000 letters"),
}


@pytest.mark.parametrize("key", ["hyper_parameters", "satclip_engine"])
@pytest.mark.parametrize("note", NOTES)
def test_notes_without_bounds_are_refused(tmp_path: Path, key: str, note: str) -> None:
    value, message = NOTES[note]
    make("analytic").save(tmp_path / "w.ckpt")
    content = torch.load(tmp_path / "w.ckpt", weights_only=True)
    content[key]["x"] = value()
    torch.save(content, tmp_path / "w.ckpt")
    assert message in bounded_refusal(tmp_path / "w.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_tuples_that_take_for_ever_to_hash_are_refused(tmp_path: Path, zipped: bool) -> None:
    """As keys: what unpickles them would hash them."""

    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {}, "x": [shared_tuples(40)]}, path, _use_new_zipfile_serialization=zipped)
    assert "tuples within tuples without end" in bounded_refusal(path)


def as_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def as_number(number: int) -> bytes:
    return b"\x8a\x0b" + number.to_bytes(11, "little")


ALIKE = range(0, 30_000 * (2**61 - 1), 2**61 - 1)  # numbers of one hash
COPY = b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n"
# Pickles of torch's own reader that would take gigabytes, minutes, or both.
PICKLES = {
    "bytes by their number": (b"cbuiltins\nbytearray\n(" + as_number(10**11) + b"tR.", "bytes of something"),
    "the same through a subclass": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nctorch\nTensor\n("
        + as_number(10**11)
        + b"t}tR.",
        "bytes of something",
    ),
    "a quadratic encoding": (
        b"c_codecs\nencode\n(" + as_text("é" * 10**5) + as_text("punycode") + b"tR.",
        "bytes of something",
    ),
    "a copy of a tensor of one number": (COPY + b"(NtR.", "its pickle asks for torch._utils"),
    "tensors without a file": (b"ctorch\nTensor\n(" + as_number(10**9) + b"tR.", "asks for torch.Tensor"),
    "steps": (b"Nq\0" + b"q\0" * 600_000 + b".", "more than 500000 instructions"),
    "keys of one hash": (b"}(" + b"".join(as_number(n) + b"N" for n in ALIKE) + b"u.", "1000 keys"),
    "members of one hash": (
        b"cbuiltins\nset\n(](" + b"".join(map(as_number, ALIKE)) + b"etR.",
        "1000 members of sets",
    ),
    "sets of a list": (b"](" + b"N" * 500 + b"eq\0" + b"cbuiltins\nset\n(h\0tR0" * 200 + b"N.", "100 sets"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_that_ask_for_much_are_refused_before_torch_reads_them(tmp_path: Path, kind: str) -> None:
    content, message = PICKLES[kind]
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02" + content)
        archive.writestr("w/version", "3\n")
    assert message in bounded_refusal(tmp_path / "w.ckpt")


def test_values_that_checkpoints_hold_are_read(tmp_path: Path) -> None:
    """Sets, counters of schedulers, bytes, sizes, tensors with attributes, and more."""
    tensor = torch.nn.Parameter(torch.zeros(3))
    tensor.note = 1
    values = [{1, 2}, Counter([30, 60]), b"a\xff", bytearray(b"a\xff"), bytearray(), 1j, OrderedDict(a=1)]
    values += [torch.Size([3]), torch.device("cpu"), torch.float16, tensor, torch.zeros(3).half()]
    state = {**as_state(tensors()), "other": torch.zeros(2, dtype=torch.int64)}
    for zipped in (True, False):
        content = {"state_dict": state, "hyper_parameters": {"harmonics_calculation": "analytic"}}
        content["optimizer_states"] = [{"state": {0: values}, "param_groups": [{"params": [0]}]}]
        torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
        assert isinstance(attempt(tmp_path / "w.ckpt"), LocationWeights)


def test_notes_of_ordinary_size_are_read(tmp_path: Path) -> None:
    notes = {"bands": list(range(1000)), "mean": torch.zeros(13), "loss": float("nan"), "names": ["é"] * 100}
    path = save_ckpt(tmp_path / "w.ckpt", as_state(tensors()), harmonics_calculation="analytic", notes=notes)
    weights = attempt(path)
    assert isinstance(weights, LocationWeights)
    assert weights.provenance.hyper_parameters["notes"]["mean"] == [0.0] * 13


def test_unusual_tensors_are_read_right_or_refused(tmp_path: Path) -> None:
    state, key = as_state(tensors(dtype=np.float32)), "model.location.nnet.layers.0.weight"
    weight = state[key]
    for value, message in (
        (torch.nested.nested_tensor([torch.zeros(9)] * 4), "expected a dense tensor, found a nested tensor"),
        (weight.to_sparse(), "expected a dense tensor"),
        (torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "expected a dense tensor"),
        (weight.to(torch.complex64), "expected floating-point values"),
        (weight.to("meta"), "expected a dense tensor"),
    ):
        path = save_ckpt(tmp_path / "w.ckpt", {**state, key: value}, harmonics_calculation="analytic")
        assert message in bounded_refusal(path)
    negated = save_ckpt(
        tmp_path / "w.ckpt", {**state, key: torch._neg_view(weight)}, harmonics_calculation="analytic"
    )
    found = attempt(negated)
    assert isinstance(found, LocationWeights)
    np.testing.assert_array_equal(found.tensors["layers.0.weight"], -weight.numpy())


def test_layers_that_share_one_storage_take_no_more_memory_than_files_of_that_size(tmp_path: Path) -> None:
    shared = torch.zeros(1000, 1000)
    state = as_state(tensors(capacity=1000), "nnet.")
    for index in range(1, 200):
        state |= {f"nnet.layers.{index}.weight": shared, f"nnet.layers.{index}.bias": torch.zeros(1000)}
    path = save_ckpt(tmp_path / "w.ckpt", state, harmonics_calculation="analytic")
    assert "its tensors claim more than 16 times the file's" in bounded_refusal(path)


# -- archives


def rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], how: int = zipfile.ZIP_STORED
) -> Path:
    """The archive anew, with right checksums, parts changed, and its smallest one packed as told."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w") as write:
        for member in read.infolist():
            packed = member.filename.endswith("/version") and how
            write.writestr(member.filename, change(member.filename, read.read(member)), packed or None)
    return target


def test_entries_that_are_shorter_than_the_pickle_says_are_refused(tmp_path: Path) -> None:
    make("analytic", dtype=np.float32).save(tmp_path / "w.ckpt")

    def shortened(name: str, content: bytes) -> bytes:
        return content[:-4] if "/data/" in name and len(content) > 100 else content

    path = rewritten(tmp_path / "w.ckpt", tmp_path / "short.ckpt", shortened)
    assert "64 items of FloatStorage take 256 bytes" in bounded_refusal(path)
    same = rewritten(tmp_path / "w.ckpt", tmp_path / "same.ckpt", lambda _, content: content)
    assert isinstance(attempt(same), LocationWeights)


def test_archives_that_readers_understand_differently_are_refused(tmp_path: Path) -> None:
    make("analytic").save(tmp_path / "w.ckpt")
    content = (tmp_path / "w.ckpt").read_bytes()
    path = tmp_path / "x.ckpt"

    end = content.rfind(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 5)  # of an archive on five disks
    path.write_bytes(content[:end] + locator + content[end:])
    assert "damaged" in bounded_refusal(path)

    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data.pkl", b"other")
    assert "several parts named archive/data.pkl" in bounded_refusal(path)

    packed = rewritten(tmp_path / "w.ckpt", path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert "its part archive/version is compressed" in bounded_refusal(packed)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_pipes_and_devices_are_not_read(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert "found a device or pipe" in bounded_refusal(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    assert "found a device or pipe" in bounded_refusal(tmp_path / f"zero{suffix}")


# -- safetensors


def with_header(path: Path, change: Callable[[dict[str, Any]], object], **shape: Any) -> Path:
    """A file of ours with another header over the same data, written by nobody's library."""
    make("analytic", **shape).save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


def entry(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["layers.0.weight"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry(shape=[1] * 69 + [4, 9]), "no tensor has the shape (1, 1"),
        (entry(shape=[True, 36]), "expected dtype, shape and data_offsets"),
        (entry(shape=[2**63, 0], data_offsets=[0, 0]), "expected dtype, shape and data_offsets"),
        (entry(shape=[2**31, 2**31, 0], data_offsets=[0, 0]), "damaged"),
        (entry(shape=[4.0, 9]), "expected dtype, shape and data_offsets"),
        (entry(dtype=[]), "expected dtype, shape and data_offsets"),
        (entry(dtype={"F32": 1}), "expected dtype, shape and data_offsets"),
        (entry(dtype="\x1b]0;mine\x07"), "found \\x1b]0;mine\\x07 of shape (4, 9)"),
        (entry(data_offsets=[8, 296]), "belong to two tensors"),
        (lambda h: h["__metadata__"].update(L=3), "metadata L: expected text, found 3"),
        (lambda h: h["__metadata__"].update(provenance="[" * 10**6), "metadata provenance: expected JSON"),
        (lambda h: h["__metadata__"].update(provenance='{"a": 1, "a": 2}'), "it names something twice"),
        (lambda h: h["__metadata__"].update(provenance='{"a": 1' + "0" * 4000 + "}"), "bits"),
        (lambda h: h["__metadata__"].update(w0_first="-1"), "expected a positive number"),
        (lambda h: h["__metadata__"].update(w0_first="31.0"), "damaged: its tensors with their convention"),
        (lambda h: h["__metadata__"].update(w0_hidden="1.5"), "damaged: its tensors with their convention"),
        (lambda h: h["__metadata__"].update(convention="orthonormal"), "damaged: its tensors with their"),
        (lambda h: h["__metadata__"].pop("convention"), "damaged: its tensors with their"),
        (lambda h: h.update(__metedata__=h.pop("__metadata__")), "__metedata__: damaged: expected dtype"),
        (lambda h: h["__metadata__"].update(w0_first="9" * 5000), "expected a positive number"),
    ],
)
def test_headers_that_cannot_be_right_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = with_header(tmp_path / "w.safetensors", change)
    # A convention that is missing is noted before its hash is compared.
    assert message in bounded_refusal(path)


def test_another_mode_of_harmonics_is_refused_where_it_matters(tmp_path: Path) -> None:
    hashes = []

    def changed(header: dict[str, Any]) -> None:
        hashes.append(header["__metadata__"]["weights_sha256"])
        header["__metadata__"]["harmonics"] = "published"

    small = attempt(with_header(tmp_path / "small.safetensors", changed))
    assert isinstance(small, LocationWeights)
    assert small.sha256 == make("analytic").sha256 == hashes[0]
    large = with_header(tmp_path / "large.safetensors", changed, degrees=21)
    assert "damaged: its tensors with their" in bounded_refusal(large)


def test_a_header_that_is_far_too_long_is_not_parsed(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 99_000_000
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert "its header has 99000005 bytes, at most 8000000 are read" in bounded_refusal(
        tmp_path / "w.safetensors"
    )


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    make("analytic").save(tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = (
        content[8 : 8 + length].rstrip()[:-1]
        + b',"layers.0.bias":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}}'
    )
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert "it names something twice" in bounded_refusal(tmp_path / "w.safetensors")


def test_files_without_the_hash_of_the_function_are_read_and_those_of_tensors_alone_checked(
    tmp_path: Path,
) -> None:
    path = with_header(tmp_path / "w.safetensors", lambda h: h["__metadata__"].pop("weights_sha256"))
    weights = attempt(path)
    assert isinstance(weights, LocationWeights)
    assert weights.sha256 == make("analytic").sha256

    def changed(header: dict[str, Any]) -> None:
        del header["__metadata__"]["weights_sha256"]
        header["__metadata__"]["tensors_sha256"] = "0" * 64

    expected = f"its tensors have sha256 {tensors_sha256(weights.tensors)}"
    assert expected in bounded_refusal(with_header(path, changed))


def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    target = str(tmp_path / "w.safetensors")
    code = f"import satclip_engine as se; se.read_weights('default-l10').save({target!r})"
    contents = set()
    for seed in ("0", "1"):
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        contents.add((tmp_path / "w.safetensors").read_bytes())
    assert len(contents) == 1


# -- numbers that float32 cannot hold


@pytest.mark.parametrize(
    "name", ["layers.0.weight", "layers.1.weight", "last_layer.weight", "last_layer.bias"]
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_weights_beyond_float32_are_refused_when_loaded(tmp_path: Path, name: str, suffix: str) -> None:
    values = tensors()
    values[name] *= 1e39 / np.abs(values[name]).max()
    with pytest.raises(WeightsError, match="float32"):
        LocationWeights(values, "analytic")
    path = tmp_path / f"w{suffix}"
    if suffix == ".ckpt":
        save_ckpt(path, as_state(values), harmonics_calculation="analytic")
    else:
        from safetensors.numpy import save_file

        save_file(values, path, {"convention": "analytic"})
    for door in (read_weights, se.load):
        with pytest.raises(WeightsError, match=rf"{name}: expected numbers that float32 can hold"):
            door(path)


@pytest.mark.parametrize("w0", [(1e300, 1.0), (30.0, 1e300), (math.nan, 1.0), (30.0, 0.0), (math.inf, 1.0)])
def test_sine_frequencies_that_cannot_be_are_refused(w0: tuple[float, float]) -> None:
    with pytest.raises(WeightsError, match="w0"):
        LocationWeights(tensors(), "analytic", w0=w0)


def test_sums_and_products_beyond_float32_are_refused(tmp_path: Path) -> None:
    values = tensors(capacity=64)
    values["last_layer.weight"] = np.full((3, 64), 1e37)
    with pytest.raises(WeightsError, match=r"last_layer\.weight: its rows.* more than float32 can hold"):
        se.load(LocationWeights(values, "analytic"))
    values["last_layer.weight"] = np.full((3, 64), 1e30)
    large = se.load(LocationWeights(values, "analytic"))
    assert np.isfinite(large([[2.0, 48.0]])).all()
    for weight in (np.full((1, 3), 1e10), np.full((1, 3), 1e39), np.full((1, 3), 3e38)):
        with pytest.raises(UsageError, match="larger than float32 can hold"):
            large.with_head(weight)
