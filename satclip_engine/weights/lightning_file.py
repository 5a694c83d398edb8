"""Published Lightning `.ckpt` files: read without executing anything, written for the published loader."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from satclip_engine._optional import need
from satclip_engine.errors import WeightsError, one_line
from satclip_engine.weights.archive import check_archive
from satclip_engine.weights.network_keys import flattened_tables, pick_network, without_wrappers
from satclip_engine.weights.schema import (
    FORMAT_VERSION,
    PUBLISHED_W0,
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

# Our own entry beside the published ones. The published loader never looks at it; it keeps what that layout
# cannot say.
OWN_KEY: Final = "satclip_engine"

# What every released model carries. The published loader reads all of them and rejects any other name.
_RELEASED_HYPER_PARAMETERS: Final[Mapping[str, Any]] = {
    "embed_dim": 256,
    "image_resolution": 256,
    "vision_layers": "moco_vit16",
    "vision_width": 768,
    "vision_patch_size": 32,
    "in_channels": 13,
    "le_type": "sphericalharmonics",
    "pe_type": "siren",
    "frequency_num": 16,
    "max_radius": 260,
    "min_radius": 1,
    "legendre_polys": 10,
    "harmonics_calculation": "analytic",
    "sh_embedding_dims": 32,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "num_hidden_layers": 2,
    "capacity": 512,
    "eval_downstream": False,
    "air_temp_data_path": "",
    "election_data_path": "",
}
_MAX_SHOWN: Final = 200  # letters of torch's own messages
_MAX_COPIES: Final = (
    16  # of a network, under different prefixes; together they take no more than as many files
)
# An image encoder of zero layers: the published loader insists on one, and this is the smallest it can build.
_NO_IMAGE_ENCODER: Final[Mapping[str, Any]] = {
    "image_resolution": 1,
    "vision_layers": 0,
    "vision_width": 64,
    "vision_patch_size": 1,
    "in_channels": 1,
}


def read_ckpt(path: Path, where: str) -> Stored:
    """Read a Lightning checkpoint or a bare state dictionary; messages name `where`. Executes nothing."""
    torch = need("torch", extra="torch", why="reading .ckpt files")
    content = _dictionary(load_safely(torch, path, where), where)
    _dictionary(content.get("state_dict", content), f"{where}: state_dict")
    state = flattened_tables(content)
    parameters = _plain_dictionary(content.get("hyper_parameters", {}), f"{where}: hyper_parameters")
    own = _plain_dictionary(content.get(OWN_KEY, {}), f"{where}: {OWN_KEY}")
    check_version(own.get("format_version", FORMAT_VERSION), where)
    check_architecture(parameters, where)
    budget = _Budget(path.stat().st_size, where)
    tensors, statement = pick_network(
        state, where, lambda key: _as_numpy(torch, state[key], f"{where}: {key}", budget)
    )
    check_hyper_parameters(parameters, tensors, where)
    w0 = w0_of(parameters, where, PUBLISHED_W0 if statement is None else statement.w0)
    convention, harmonics = agreed_modes(
        statement,
        convention_of(
            parameters.get("harmonics_calculation"), f"{where}: hyper_parameters.harmonics_calculation"
        ),
        harmonics_of(own.get("harmonics"), f"{where}: {OWN_KEY}.harmonics"),
        w0,
        where,
    )
    # The published entries decide the function; our own adds only what they have no room for.
    return Stored(
        tensors=tensors,
        convention=convention,
        harmonics=harmonics,
        w0=w0,
        hyper_parameters=_dictionary(
            own.get("hyper_parameters", parameters), f"{where}: {OWN_KEY}.hyper_parameters"
        ),
        extras=_dictionary(
            own.get("extras", plain(_plain_entries(content), where)), f"{where}: {OWN_KEY}.extras"
        ),
    )


def read_state(path: Path, where: str) -> Mapping[str, Any]:
    """Read all tensors of a checkpoint by their names without wrappers, the image encoder's too.

    Executes nothing.
    """
    torch = need("torch", extra="torch", why="reading .ckpt files")
    content = _dictionary(load_safely(torch, path, where), where)
    state = _dictionary(content.get("state_dict", content), f"{where}: state_dict")
    return {without_wrappers(str(key)): value for key, value in state.items()}


def encode_ckpt(stored: Stored) -> bytes:
    """Bytes of a `.ckpt` for the published code, loadable with torch.load(weights_only=True)."""
    torch = need("torch", extra="torch", why="writing .ckpt files")
    buffer = io.BytesIO()
    torch.save(lightning_dictionary(stored), buffer)
    return buffer.getvalue()


def lightning_dictionary(stored: Stored) -> dict[str, Any]:
    """Build what torch.save writes: the network under both prefixes, and the releases' hyper-parameters.

    The image encoder is one of zero layers, so that the published loader (which insists on one, and loads
    strictly) can build it; a trainer that has a real one replaces `model.visual.*` and the hyper-parameters
    of the same names. Sine frequencies other than (30, 1) are multiplied into the weights, because the
    published layout cannot state them.
    """
    torch = need("torch", extra="torch", why="writing .ckpt files")
    tensors = with_published_w0(stored.tensors, stored.w0)
    width = int(_NO_IMAGE_ENCODER["vision_width"])
    outputs, capacity = tensors["last_layer.weight"].shape
    state = {
        "model.logit_scale": torch.tensor(math.log(1 / 0.07), dtype=torch.float32),
        "model.visual.class_embedding": torch.zeros(width),
        "model.visual.positional_embedding": torch.zeros(2, width),
        "model.visual.proj": torch.zeros(width, outputs),
        "model.visual.conv1.weight": torch.zeros(width, 1, 1, 1),
        "model.visual.ln_pre.weight": torch.ones(width),
        "model.visual.ln_pre.bias": torch.zeros(width),
        "model.visual.ln_post.weight": torch.ones(width),
        "model.visual.ln_post.bias": torch.zeros(width),
    }
    network = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    for prefix in ("model.nnet.", "model.location.nnet."):
        state.update({prefix + name: value for name, value in network.items()})
    released = dict(_RELEASED_HYPER_PARAMETERS)
    released.update({name: value for name, value in stored.hyper_parameters.items() if name in released})
    released.update(_NO_IMAGE_ENCODER)
    released.update(
        le_type="sphericalharmonics",
        pe_type="siren",
        legendre_polys=math.isqrt(tensors["layers.0.weight"].shape[1]),
        harmonics_calculation=stored.convention,
        num_hidden_layers=len(tensors) // 2 - 1,
        capacity=capacity,
        embed_dim=outputs,
    )
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": released,
        OWN_KEY: {
            "format_version": FORMAT_VERSION,
            "harmonics": stored.harmonics,
            "hyper_parameters": plain(stored.hyper_parameters),
            "extras": plain(stored.extras),
        },
    }


def with_published_w0(tensors: Mapping[str, np.ndarray], w0: tuple[float, float]) -> dict[str, np.ndarray]:
    """Scale a network to sine frequencies (30, 1); the tensors themselves when it has those already."""
    if w0 == PUBLISHED_W0:
        return dict(tensors)
    first, hidden = (ours / published for ours, published in zip(w0, PUBLISHED_W0, strict=True))

    def factor(name: str) -> float:
        return 1.0 if name.startswith("last_layer.") else first if name.startswith("layers.0.") else hidden

    return {name: value.astype(np.float64) * factor(name) for name, value in tensors.items()}


def load_safely(torch: ModuleType, path: Path, where: str) -> Any:
    """Call torch.load(weights_only=True); its many failures become one line each."""
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 6):
        raise WeightsError(
            f"{where}: torch {torch.__version__} cannot read it safely: expected torch 2.6 or newer, "
            'pip install "satclip-engine[torch]"'
        )
    zipped = check_archive(path, where)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        if match:
            raise WeightsError(
                f"{where}: refused: its pickle asks for {match[1]}, which is no tensor or plain value "
                "(nothing was executed); save it again without that object"
            ) from error
        raise WeightsError(f"{where}: damaged or not a checkpoint of torch ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return torch's reason without its advice, which is to load the file unsafely."""
    if match := re.search(r"WeightsUnpickler error: *(\S.*)", str(error)):
        return match[1].rstrip()[:_MAX_SHOWN]
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "its pickle cannot be read" if "weights_only" in text else text.partition(". ")[0][:_MAX_SHOWN]


class _Budget:
    """Bytes that tensors of a file may take: views can claim more than the file holds, each and together."""

    def __init__(self, size: int, where: str) -> None:
        self.size, self._where, self._taken = size, where, 0

    def take(self, size: int) -> None:
        self._taken += size
        if self._taken > _MAX_COPIES * self.size:
            raise WeightsError(
                f"{self._where}: refused: its tensors claim more than {_MAX_COPIES} times the file's "
                f"{self.size} bytes"
            )


def _as_numpy(torch: ModuleType, value: Any, key: str, budget: _Budget) -> np.ndarray:
    """View a tensor as a NumPy array."""
    if not isinstance(value, torch.Tensor):
        raise WeightsError(f"{key}: expected a tensor, found {type(value).__name__}")
    if value.is_nested or value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = "a nested tensor" if value.is_nested else f"{value.layout} {value.dtype} on {value.device}"
        raise WeightsError(f"{key}: expected a dense tensor, found {kind}")
    shape, size = shape_text(tuple(value.shape)), value.numel() * value.element_size()
    if size > budget.size:
        raise WeightsError(
            f"{key}: expected at most the file's {budget.size} bytes, found shape {shape} of {value.dtype}"
        )
    budget.take(size)
    if not value.is_floating_point() and value.dtype != torch.uint8:  # in which statements are kept
        raise WeightsError(f"{key}: expected floating-point values, found {value.dtype} of shape {shape}")
    try:
        value = value.detach().resolve_conj().resolve_neg()
        if value.dtype not in (torch.float16, torch.float32, torch.float64, torch.uint8):
            value = value.float()  # bfloat16 and float8, which NumPy lacks; exact
        array: np.ndarray = value.numpy()
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        raise WeightsError(f"{key}: cannot be read: {one_line(error)}") from error
    return array


def _plain_dictionary(value: Any, key: str) -> dict[str, Any]:
    plain_value: dict[str, Any] = plain(_dictionary(value, key), key)
    return plain_value


def _dictionary(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WeightsError(f"{key}: expected a dictionary, found {type(value).__name__}")
    return value


def _plain_entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """Simple top-level entries of a checkpoint (epoch, global_step, versions)."""
    return {
        str(key): value
        for key, value in content.items()
        if value is None or isinstance(value, bool | int | float | str)
    }
