"""Ahead-of-time compilation of recorded launches to machine code, without a GPU.

The arguments go through Triton's own binder, so types, constants and alignment are those of a real launch:
an int of 1 is a constant, an int or an address that 16 divides is known to be so.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from satclip_engine.kernels.launch import Launch, interpreted
from satclip_engine.kernels.tools.sass import Program, parse

_COMPILERS = len(os.sched_getaffinity(0))  # at once; one is a thread and its ptxas


@dataclass(frozen=True, eq=False)
class CompileRequest:
    """Input of the compiler; equal keys make equal code."""

    kernel: Any
    capability: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @cached_property
    def key(self) -> str:
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        return f"{self.capability} {source.hash()} {sorted(self.options.items())}"


@dataclass(frozen=True, eq=False)
class Binary:
    """Machine code of a kernel, with its registers and memory."""

    registers: int  # of a thread
    stack: int  # bytes of a thread
    spills: int  # stores to and loads from a thread's own memory, as instructions
    shared: int  # bytes of a program
    program: Program


def compile_request(launch: Launch, capability: str) -> CompileRequest:
    """Request that this launch would make of the just-in-time compiler on a GPU of that capability."""
    if interpreted():
        raise RuntimeError("kernels are interpreted here: unset TRITON_INTERPRET to compile them")
    kernel = launch.kernel
    backend = make_backend(GPUTarget("cuda", int(capability.removeprefix("sm_")), 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(
        **launch.arguments, num_warps=launch.config.warps, num_stages=launch.config.stages
    )
    options, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, options
    )
    return CompileRequest(kernel, capability, signature, constants, attributes, dict(options.__dict__))


def compile_all(requests: Iterable[CompileRequest]) -> dict[str, Binary | Exception]:
    """Compile every key once, several at a time: key → its code, or the compiler's error."""
    unique = {request.key: request for request in requests}
    with ThreadPoolExecutor(_COMPILERS) as pool:  # LLVM and ptxas run without Python's lock
        return dict(zip(unique, pool.map(_compile_or_error, unique.values()), strict=True))


def _compile_or_error(request: CompileRequest) -> Binary | Exception:
    try:
        return _compile(request)
    except Exception as error:  # the compiler's, of any kind: a result, so that the others are still seen
        return error


def _compile(request: CompileRequest) -> Binary:
    source = ASTSource(request.kernel, request.signature, request.constants, request.attributes)
    target = GPUTarget("cuda", int(request.capability.removeprefix("sm_")), 32)
    code = triton.compile(source, target=target, options=request.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code.asm["cubin"])
        text = _disassemble(file.name)
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"cuobjdump says nothing of {request.kernel.__name__}'s registers")
    registers, stack, local = map(int, usage.groups())
    program = parse(text)
    spills = program.count("STL", "LDL")
    return Binary(registers, stack + local, spills, code.metadata.shared, program)


def _disassemble(path: str) -> str:
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
