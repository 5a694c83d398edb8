"""The contrastive loss as PyTorch operators, and the shares of it that several processes combine.

    satclip_engine::contrastive_loss(Tensor a, Tensor b, Tensor scale, str backend)
        -> (Tensor loss, Tensor row_lse, Tensor column_lse)
    satclip_engine::contrastive_loss_backward(Tensor grad, Tensor a, Tensor b, Tensor scale, Tensor row_lse,
        Tensor column_lse, str backend) -> (Tensor da, Tensor db, Tensor dscale)

a and b are (N, E), scale is (), all float32 or all float64. Backends are those of dispatch.TABLE. Only the
loss has a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from satclip_engine._optional import need
from satclip_engine.backends import compiled
from satclip_engine.ops import dispatch
from satclip_engine.reference import contrastive

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = need("torch", extra="torch", why="the contrastive loss")
    Tensor = torch.Tensor  # looked up when a schema is made of a signature


def check_pairs(a: Tensor, b: Tensor, scale: Tensor) -> None:
    """Raises ValueError or TypeError for what has no loss."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise ValueError(f"expected a (N, E) and b (N, E), got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"expected as many rows in a as in b, got {len(a)} and {len(b)}")
    if scale.ndim != 0:
        raise ValueError(f"scale: expected a tensor without dimensions, got shape {tuple(scale.shape)}")
    if not a.dtype == b.dtype == scale.dtype:
        raise TypeError(f"a, b and scale: expected one dtype, got {a.dtype}, {b.dtype} and {scale.dtype}")
    if a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a, b and scale: expected float32 or float64, got {a.dtype}")
    if not a.device == b.device == scale.device:
        raise ValueError(
            f"expected one device, got a on {a.device}, b on {b.device}, scale on {scale.device}"
        )


class Row(Protocol):
    """An implementation. a (n, E), b (N, E); the partner of a's row i is b's row offset + i."""

    name: str  # a row of dispatch.TABLE, which says what it takes

    def log_sum_exps(
        self, a: Tensor, b: Tensor, scale: Tensor, offset: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def gradients(
        self,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        row_lse: Tensor,
        column_lse: Tensor,
        offset: int,
        factor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Triton:
    """The kernels of a GPU, in float32. Scale and factor stay there."""

    name = "triton"

    def log_sum_exps(self, a: Tensor, b: Tensor, scale: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        from satclip_engine.kernels import loss

        return loss.log_sum_exps(a, b, scale, offset)

    def gradients(
        self,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        row_lse: Tensor,
        column_lse: Tensor,
        offset: int,
        factor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from satclip_engine.kernels import loss

        return loss.gradients(a, b, scale, row_lse, column_lse, offset, factor)


class Cpu:
    """The compiled kernels, in float32, with as many threads as torch has."""

    name = "cpu"

    def log_sum_exps(self, a: Tensor, b: Tensor, scale: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        found = compiled._C.loss_forward(_array(a), _array(b), float(scale), offset, torch.get_num_threads())
        row_lse, column_lse, partner = (torch.from_numpy(array) for array in found)
        return row_lse, column_lse, partner

    def gradients(
        self,
        a: Tensor,
        b: Tensor,
        scale: Tensor,
        row_lse: Tensor,
        column_lse: Tensor,
        offset: int,
        factor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        da, db, dscale = compiled._C.loss_backward(
            _array(a),
            _array(b),
            float(scale),
            _array(row_lse),
            _array(column_lse),
            offset,
            float(factor),
            torch.get_num_threads(),
        )
        return torch.from_numpy(da), torch.from_numpy(db), torch.tensor(dscale, dtype=scale.dtype)


class Reference:
    """contrast_reference.py, in the dtype and on the device of the rows."""

    name = "reference"
    log_sum_exps = staticmethod(contrastive.log_sum_exps)
    gradients = staticmethod(contrastive.gradients)


ROWS: dict[str, Row] = {row.name: row for row in (Triton(), Cpu(), Reference())}


def log_sum_exps(
    a: Tensor, b: Tensor, scale: Tensor, offset: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """a (n, E), b (N, E) → row_lse (n,), column_lse (N,) over these rows, S with the partners (n,)."""
    return ROWS[dispatch.resolve(backend, a)].log_sum_exps(a, b, scale, offset)


def gradients(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    offset: int,
    factor: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of a's rows in the gradients: da (n, E), db (N, E), dscale (). See the reference."""
    row = ROWS[dispatch.resolve(backend, a)]
    return row.gradients(a, b, scale, row_lse, column_lse, offset, factor)


def mean_loss(row_lse: Tensor, column_lse: Tensor, partner: Tensor, count: int) -> Tensor:
    """Σ (row_lse + column_lse − 2 partner) / (2 · count), summed in float64."""
    total = row_lse.double().sum() + column_lse.double().sum() - 2 * partner.double().sum()
    return (total / (2 * count)).to(row_lse.dtype)


def unnarrowed(like: Tensor) -> torch.autocast:
    """Where autocast does not apply: a backward pass may run inside it although the forward pass did not."""
    return torch.autocast(like.device.type, enabled=False)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("satclip_engine::contrastive_loss", mutates_args=())
def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """a (N, E), b (N, E), scale () → loss (), row_lse (N,), column_lse (N,)."""
    check_pairs(a, b, scale)
    with unnarrowed(a):
        row_lse, column_lse, partner = log_sum_exps(a, b, scale, 0, backend)
    return mean_loss(row_lse, column_lse, partner, len(a)), row_lse, column_lse


@torch.library.custom_op("satclip_engine::contrastive_loss_backward", mutates_args=())
def contrastive_loss_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by a (N, E), b (N, E) and scale (), given the one by the loss ()."""
    with unnarrowed(a):
        return gradients(a, b, scale, row_lse, column_lse, 0, grad / (2 * len(b)), backend)


@contrastive_loss.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    check_pairs(a, b, scale)
    return a.new_empty(()), a.new_empty(a.shape[0]), a.new_empty(b.shape[0])


@contrastive_loss_backward.register_fake
def _(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape), scale.new_empty(())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, scale, ctx.backend = inputs
    _, row_lse, column_lse = output
    ctx.mark_non_differentiable(row_lse, column_lse)
    ctx.save_for_backward(a, b, scale, row_lse, column_lse)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
    da, db, dscale = contrastive_loss_backward(grad, *ctx.saved_tensors, ctx.backend)
    return da, db, dscale, None


contrastive_loss.register_autograd(_differentiate, setup_context=_keep)
for _device in ("cpu", "cuda"):  # bfloat16 has 8 bits: at scale 100 its products would be off by 0.4
    contrastive_loss.register_autocast(_device, torch.float32)
