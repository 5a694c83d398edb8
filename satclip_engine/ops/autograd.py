"""Rules of autocast, torch.func and forward-mode differentiation that our PyTorch operators share.

torch.library lets an operator register its backward pass only, and where tangents are asked for takes zeros:
a wrong answer without a word. So the functions that call our operators ask first whether tensors are
transformed, and compute otherwise or refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from satclip_engine._optional import need

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.autograd import forward_ad
else:
    torch = need("torch", extra="torch", why="computing with tensors")
    forward_ad = torch.autograd.forward_ad


def carries_tangent(tensor: Tensor) -> bool:
    """True for a dual tensor, of forward_ad, torch.func.jvp or jacfwd."""
    return forward_ad.unpack_dual(tensor).tangent is not None


def is_wrapped(value: object) -> bool:
    """True for a tensor that torch.func transforms."""
    wrapped: bool = isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)
    return wrapped


def unwrapped_tensor(tensor: Tensor) -> Tensor:
    """The tensor behind torch.func's transforms, with the axes over which vmap goes."""
    return unwrapped_tensor(torch._C._functorch.get_unwrapped(tensor)) if is_wrapped(tensor) else tensor


def is_transformed(*tensors: Tensor) -> bool:
    """True when torch.func transforms one of the tensors (vmap, grad, jacrev, ...) or one carries a tangent.

    While torch.compile or torch.export traces only torch.func is asked about, as they can trace it.
    """
    func = torch._C._functorch  # torch has no public name for these
    within_transform = func.maybe_current_level() is not None
    if torch.compiler.is_compiling():
        return within_transform
    if within_transform and any(map(func.is_functorch_wrapped_tensor, tensors)):
        return True
    return any(map(carries_tangent, tensors))


def refuse_transforms(name: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError for tensors that torch.func transforms or that carry tangents."""
    if not is_transformed(*tensors):
        return
    if any(carries_tangent(tensor) for tensor in tensors):
        raise NotImplementedError(
            f"{name} has no forward-mode derivatives (torch.autograd.forward_ad, torch.func.jvp, jacfwd): "
            "take reverse-mode ones, with torch.autograd.grad or backward()"
        )
    raise NotImplementedError(
        f"{name} cannot be transformed by torch.func (vmap, grad, jacrev, ...): "
        "take its gradients with torch.autograd.grad or backward()"
    )


def no_autocast(like: Tensor) -> torch.autocast:
    """A context without autocast: a backward pass may run inside it although the forward pass was widened."""
    return torch.autocast(like.device.type, enabled=False)
