"""Rules of autocast and of forward-mode differentiation that our PyTorch operators share.

torch.library lets an operator register its backward pass only, and where tangents are asked for takes zeros:
a wrong answer without a word. So the functions that call our operators refuse tensors that carry tangents.
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


def refuse_tangents(name: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError when any tensor is a dual one, of forward_ad, torch.func.jvp or jacfwd.

    Nothing is asked, so nothing refused, while torch.compile or torch.export traces: the question would break
    the graph.
    """
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{name} has no forward-mode derivatives (torch.autograd.forward_ad, torch.func.jvp, jacfwd): "
            "take reverse-mode ones, with torch.autograd.grad or backward()"
        )


def no_autocast(like: Tensor) -> torch.autocast:
    """A context without autocast: a backward pass may run inside it although the forward pass was widened."""
    return torch.autocast(like.device.type, enabled=False)
