"""Modules in place of layers: dense ones recognised, hooks noticed, wrappers seen through.

The fused operator reads weights and biases, and calls no module. So it may stand for modules only while these
are dense layers and nobody listens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from satclip_engine._optional import need
from satclip_engine.errors import WeightsError

if TYPE_CHECKING:
    import torch
else:
    torch = need("torch", extra="torch", why="computing with modules")

from torch.nn import Linear, Module
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Hooks of torch's older weight_norm, spectral_norm and prune: they compute the weight, nothing else.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def has_hooks(module: Module) -> bool:
    """True when something listens to calls of the module, or to gradients through it."""
    on_values = module._forward_hooks or module._forward_pre_hooks
    return bool(on_values or module._backward_hooks or module._backward_pre_hooks)


def all_are_watched() -> bool:
    """True when hooks are registered on all modules of the process."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def is_dense(layer: Module) -> bool:
    """True for a dense layer that its weight and bias say all about; parametrised ones compute those."""
    if has_hooks(layer) or not calls_method_of(layer, Linear) or layer.bias is None:
        return False
    return not is_traceable_wrapper_subclass(layer.weight)


def unwrapped(module: Module) -> Module:
    """The module itself behind torch.compile, checkpointing and data parallelism."""
    for name in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        if name in module._modules:
            return unwrapped(module._modules[name])
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        return unwrapped(module.module)
    return module


def check_exported(layer: Module, name: str) -> None:
    """Bring weights that older hooks compute up to date. Raises WeightsError for an unknown computation."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, _WEIGHT_HOOKS):
            hook(layer, ())
    only_weights = all(isinstance(hook, _WEIGHT_HOOKS) for hook in layer._forward_pre_hooks.values())
    if not only_weights or layer._forward_hooks or not calls_method_of(layer, Linear) or layer.bias is None:
        raise WeightsError(
            f"nnet.{name} computes with more than a weight and a bias ({type(layer).__name__}): remove its "
            "hooks, or fold its adapter into the weight (peft: merge_and_unload()), and export then"
        )


def calls_method_of(module: Module, kind: type[Module]) -> bool:
    """True for a module of that kind, of a class or an instance that replaces nothing of its computation."""
    return (
        isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in module.__dict__
    )
