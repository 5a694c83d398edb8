"""Small kernels to compile; run as a program it prints, as JSON, the figures of their machine code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from satclip_engine.kernels.launch import Work, launch, recording
from satclip_engine.kernels.tuning import Config

LISTING = """
 Function toy:
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:592
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000e220000000800 */
        /*0010*/                   FFMA R2, R3, R4, R2 ;                      /* 0x0000000000007919 */
        /*0020*/              @!P0 LDS.128 R4, [R8] ;                         /* 0x0 */
        /*0030*/                   HMMA.1688.F32.TF32 R4, R8, R12, R4 ;       /* 0x0 */
        /*0040*/              @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;               /* 0x0 */
        /*0050*/               @P0 BRA 0x20 ;                                 /* 0x0 */
        /*0060*/                   STL [R1], R4 ;                             /* 0x0 */
        /*0070*/               @P1 BRA 0x10 ;                                 /* 0x0 */
        /*0080*/                   EXIT ;                                     /* 0x0 */
        /*0090*/                   BRA 0x90;                                  /* 0x0 */
        /*00a0*/                   NOP;                                       /* 0x0 */
"""


def compiling_process(*arguments: str) -> str:
    """Run Python in a process that may compile kernels; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    process = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@triton.jit
def scaled(x, y, count, factor, BLOCK: tl.constexpr):
    """Compute y = factor · x."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, factor * tl.load(x + index, index < count, 0.0), index < count)


@triton.jit
def product(a, b, c, inputs, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Compute c = a · bᵀ of (BLOCK, inputs) each, in TF32."""
    i, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        left = tl.load(a + i[:, None] * inputs + start + k[None, :])
        right = tl.load(b + i[None, :] * inputs + start + k[:, None])
        sums = tl.dot(left, right, sums)
    tl.store(c + i[:, None] * BLOCK + i[None, :], sums)


def start_scaled(x: Any, block: int = 128, warps: int = 4, factor: Any = 2.5) -> Any:
    """Launch `scaled`."""
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
    """Launch `product`."""
    c = a.new_empty(block, block)
    config = Config({"BLOCK": block, "BLOCK_K": 32}, warps=4, stages=2)
    launch(product, (1,), config, a=a, b=b, c=c, inputs=a.shape[1])
    return c


def main() -> None:
    from satclip_engine.kernels.tools.compiler import Binary, compile_all, compile_request

    memory = torch.empty(1024, device="meta")
    figures: dict[str, Any] = {}
    for capability in ("sm_80", "sm_90"):
        with recording(capability) as record:
            for x in (memory, memory[1:], memory[:1], memory[:1000]):
                start_scaled(x)
            start_product(memory.view(64, 16), memory.view(64, 16), 64)
            start_scaled(memory, factor=2**40)
            start_product(
                memory.view(256, 4), memory.view(256, 4), 256
            )  # too much for the registers of 4 warps
        requests = [compile_request(started, capability) for started in record.launches]
        binaries = compile_all(requests)
        figures[capability] = []
        for started, request in zip(record.launches, requests, strict=True):
            binary = binaries[request.key]
            assert isinstance(binary, Binary), binary
            figures[capability].append(
                {
                    "kernel": started.name,
                    "key": request.key,
                    "types": [*request.signature.values()],
                    "constants": {str(index[0]): value for index, value in request.constants.items()},
                    "divisible": sorted(index[0] for index, value in request.attributes.items() if value),
                    "registers": binary.registers,
                    "spills": binary.spills,
                    "shared": binary.shared,
                    "loop": dict(binary.program.main_loop.mix),
                }
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
