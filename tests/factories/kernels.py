"""Small kernels to compile; run as a program it prints, as JSON, what the compiler makes of them."""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
import triton.language as tl

from satclip_engine.kernels.launch import Work, launch, recording
from satclip_engine.kernels.tuning import Config


@triton.jit
def scaled(x, y, count, factor, BLOCK: tl.constexpr):
    """y = factor · x"""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, factor * tl.load(x + at, at < count, 0.0), at < count)


@triton.jit
def product(a, b, c, inputs, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """c = a · bᵀ of (BLOCK, inputs) each, in TF32."""
    i, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        left = tl.load(a + i[:, None] * inputs + start + k[None, :])
        right = tl.load(b + i[None, :] * inputs + start + k[:, None])
        sums = tl.dot(left, right, sums)
    tl.store(c + i[:, None] * BLOCK + i[None, :], sums)


def start_scaled(x: Any, block: int = 128, warps: int = 4, factor: Any = 2.5) -> Any:
    """The launcher of `scaled`."""
    y = torch.empty_like(x)
    config = Config({"BLOCK": block}, warps)
    launch(
        scaled,
        (triton.cdiv(len(x), block),),
        config,
        Work(bytes=8 * len(x)),
        x=x,
        y=y,
        count=len(x),
        factor=factor,
    )
    return y


def start_product(a: Any, b: Any, block: int) -> Any:
    """The launcher of `product`."""
    c = a.new_empty(block, block)
    config = Config({"BLOCK": block, "BLOCK_K": 32}, warps=4, stages=2)
    launch(product, (1,), config, a=a, b=b, c=c, inputs=a.shape[1])
    return c


def main() -> None:
    from satclip_engine.kernels.compiled.binary import compiled, request

    memory = torch.empty(1024, device="meta")
    found: dict[str, Any] = {}
    for capability in ("sm_80", "sm_90"):
        with recording(capability) as record:
            for x in (memory, memory[1:], memory[:1], memory[:1000]):
                start_scaled(x)
            start_product(memory.view(64, 16), memory.view(64, 16), 64)
            start_scaled(memory, factor=2**40)
            start_product(
                memory.view(256, 4), memory.view(256, 4), 256
            )  # too much for the registers of 4 warps
        requests = [request(each, capability) for each in record.launches]
        binaries = compiled(requests)
        found[capability] = [
            {
                "kernel": each.name,
                "key": wanted.key,
                "types": [*wanted.signature.values()],
                "constants": {str(index[0]): value for index, value in wanted.constants.items()},
                "divisible": sorted(index[0] for index, value in wanted.attributes.items() if value),
                "registers": binaries[wanted.key].registers,  # type: ignore[union-attr]
                "spills": binaries[wanted.key].spills,  # type: ignore[union-attr]
                "shared": binaries[wanted.key].shared,  # type: ignore[union-attr]
                "loop": dict(binaries[wanted.key].program.main_loop.mix),  # type: ignore[union-attr]
            }
            for each, wanted in zip(record.launches, requests, strict=True)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
