"""Keys of checkpoints: the location network among them, behind whatever wrappers its module was saved in.

torch.compile, DistributedDataParallel, FSDP, checkpointing and averaging put components of their own into
the names of parameters (`_orig_mod`, `module`, ...), before the network and inside it. They are left out,
wherever they stand. A network is read under the prefixes of the published code, and under any prefix that
holds a statement (`location._extra_state` beside `location.nnet.`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from satclip_engine.errors import WeightsError
from satclip_engine.weights.schema import check_network, network_names
from satclip_engine.weights.statement import STATEMENT_KEY, Statement, decode_statement

# In the order in which they are believed: the published model registers one network twice, and its loader
# assigns `model.location.nnet.` last.
PREFIXES: Final = ("model.location.nnet.", "model.nnet.", "location.nnet.", "model.", "nnet.", "")
WRAPPERS: Final = frozenset(
    {
        *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"),
        *("module", "online_model"),
    }
)
# Of dictionaries inside a file, in front of their keys.
TABLE_MARK: Final = ":"
_AVERAGE = re.compile(r"(?:.*_)?(?:ema|swa|avg|average|averaged|shadow)(?:_.*)?", re.IGNORECASE)
_AVERAGE_COUNTER: Final = "n_averaged"  # beside the module that torch's AveragedModel averages
_LIGHTNING_TRAINED: Final = "current_model_state"
_LIGHTNING_AVERAGING: Final = "averaging_state"
_OF_NETWORK = re.compile(rf"(?:^|\.)(?:layers\.|last_layer\.|{STATEMENT_KEY}$|{_AVERAGE_COUNTER}$)")
_LAYER = re.compile(r"layers\.\d{1,4}|last_layer")
_SHOWN_KEYS: Final = 4
_SHOWN_LETTERS: Final = 80  # of a key


@dataclass
class _Network:
    """Keys of one network by the names of their tensors; `others` are further entries of its layers."""

    prefix: str  # as in the file
    keys: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def plain_prefix(self) -> str:
        """Prefix without wrappers, tables and averages."""
        components = without_wrappers(self.prefix).rpartition(TABLE_MARK)[2].split(".")
        return ".".join(name for name in components if not _AVERAGE.fullmatch(name))

    @property
    def statement_key(self) -> str:
        """Key, without wrappers, under which the module around this network states its convention."""
        return without_wrappers(self.prefix).removesuffix("nnet.") + STATEMENT_KEY

    def rank(self) -> tuple[int, int]:
        """Order in which networks are believed."""
        published = self.plain_prefix in PREFIXES
        return (PREFIXES.index(self.plain_prefix) if published else len(PREFIXES)), len(self.prefix)


def without_wrappers(key: str, wrappers: frozenset[str] = WRAPPERS) -> str:
    """Leave out the components that wrappers of modules add."""
    table, mark, names = key.rpartition(TABLE_MARK)
    return table + mark + ".".join(name for name in names.split(".") if name not in wrappers)


def flattened_tables(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Entries of a torch file by key: its state dictionary, and as table:key networks in tables beside it.

    The state dictionary is the table `state_dict`, or the file itself. Where Lightning averages weights
    (WeightAveraging), it holds the average, and the weights that are trained on lie beside it.
    """
    believed = content.get("state_dict", content)
    state = {str(key): value for key, value in believed.items()}
    for table, entries in content.items():
        is_trained_on = table == _LIGHTNING_TRAINED and _LIGHTNING_AVERAGING in content
        if isinstance(entries, Mapping) and entries is not believed and not is_trained_on:
            named = ((str(key), value) for key, value in entries.items())
            state |= {f"{table}{TABLE_MARK}{key}": value for key, value in named if _OF_NETWORK.search(key)}
    return state


def pick_network(
    keys: Iterable[str], where: str, fetch: Callable[[str], np.ndarray]
) -> tuple[dict[str, np.ndarray], Statement | None]:
    """Find the location network among `keys`, fetch its tensors, and check them; with what it states.

    A file may hold the network under several prefixes; then all copies must be equal.
    """
    all_keys = [str(key) for key in keys]
    present = set(all_keys)
    statement_keys: dict[str, list[str]] = {}
    for key in all_keys:
        if key.endswith(STATEMENT_KEY):
            statement_keys.setdefault(without_wrappers(key), []).append(key)
    networks = [
        network
        for network in _networks(all_keys)
        if network.plain_prefix in PREFIXES
        or network.statement_key in statement_keys
        or _is_average(network, present)
    ]
    if not networks:
        first = ", ".join(key[:_SHOWN_LETTERS] for key in all_keys[:_SHOWN_KEYS])
        more = ", ..." if len(all_keys) > _SHOWN_KEYS else ""
        raise WeightsError(
            f"{where}: no location network: expected keys such as {PREFIXES[0]}layers.0.weight, "
            f"found {first or 'none'}{more}"
        )
    networks.sort(key=_Network.rank)
    copies = [_fetched(network, where, fetch) for network in networks]
    for network, copy in zip(networks[1:], copies[1:], strict=True):
        _check_equal(copies[0], copy, where, (networks[0], network), present)
    statements = {
        key: decode_statement(fetch(key), f"{where}: {key}")
        for network in networks
        for key in statement_keys.get(network.statement_key, ())
    }
    if len(set(statements.values())) > 1:
        raise WeightsError(f"{where}: {' and '.join(statements)} state different conventions of one network")
    statement = next(iter(statements.values()), None)
    return {name: np.array(value, order="C") for name, value in copies[0].items()}, statement


def _networks(keys: Iterable[str]) -> list[_Network]:
    networks: dict[str, _Network] = {}
    for key in keys:
        components = key.split(".")
        for start, component in enumerate(components):
            bare = component.rpartition(TABLE_MARK)[2]
            if bare not in ("layers", "last_layer"):
                continue
            name = without_wrappers(".".join([bare, *components[start + 1 :]]))
            layer, _, kind = name.rpartition(".")
            prefix = ".".join(["", *components[:start], component.removesuffix(bare)])[1:]
            network = networks.setdefault(prefix, _Network(prefix))
            if _LAYER.fullmatch(layer) and kind in ("weight", "bias") and name not in network.keys:
                network.keys[name] = key
            else:
                network.others.append(key)
    return [network for network in networks.values() if network.keys]


def _fetched(network: _Network, where: str, fetch: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    if network.others:
        raise WeightsError(
            f"{where}: {network.others[0]}: expected only weight and bias of each layer: fold adapters, "
            "parametrisations and quantisation into the weights before saving"
        )
    names = network_names(network.keys, where, network.prefix)
    tensors = {name: fetch(network.keys[name]) for name in names}
    check_network(tensors, where, network.prefix)
    return tensors


def _check_equal(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    where: str,
    networks: tuple[_Network, _Network],
    present: set[str],
) -> None:
    believed, other = (network.prefix for network in networks)
    averages = [network.prefix for network in networks if _is_average(network, present)]
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second or not np.array_equal(first[name], second[name]):
            text = (
                f"{where}: {believed}{name} and {other}{name} differ: expected two equal copies, or the one "
                "to use alone"
            )
            if len(averages) == 1:
                text = (
                    f"{where}: holds a network and its average ({averages[0]}…), which differ: save the one "
                    f"to use alone, such as model.to_weights().save(…)"
                )
            raise WeightsError(text)


def _is_average(network: _Network, present: set[str]) -> bool:
    components = re.split(rf"[.{TABLE_MARK}]", network.prefix)
    if any(_AVERAGE.fullmatch(name) for name in components):
        return True
    return any(".".join([*components[:end], _AVERAGE_COUNTER]) in present for end in range(len(components)))
