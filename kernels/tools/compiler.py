"""Ahead-of-time compilation of recorded launches to machine code, without a GPU.

The arguments go through Triton's own binder, so types, constants and alignment are those of a real launch:
an int of 1 is a constant, an int or an address that 16 divides is known to be so.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import sm_arch_from_capability
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from satclip_engine.kernels.launch import Launch, interpreted
from satclip_engine.kernels.tools.sass import Program, parse_joined

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
        results = dict(zip(unique, pool.map(_compile_or_error, unique.values()), strict=True))
    codes = {key: code for key, code in results.items() if isinstance(code, _MachineCode)}
    binaries: dict[str, Binary | Exception] = {
        key: error for key, error in results.items() if isinstance(error, Exception)
    }
    for architecture in {code.architecture for code in codes.values()}:
        keys = [key for key, code in codes.items() if code.architecture == architecture]
        programs = _disassemble(architecture, [codes[key].instructions for key in keys])
        binaries |= {key: _binary(codes[key], program) for key, program in zip(keys, programs, strict=True)}
    return binaries


@dataclass(frozen=True, eq=False)
class _MachineCode:
    """Instructions of a kernel as bytes, with its registers and memory."""

    architecture: str  # "sm_90a"
    registers: int
    stack: int
    shared: int
    instructions: bytes


def _compile_or_error(request: CompileRequest) -> _MachineCode | Exception:
    try:
        return _compile(request)
    except Exception as error:  # the compiler's, of any kind: a result, so that the others are still seen
        return error


def _compile(request: CompileRequest) -> _MachineCode:
    source = ASTSource(request.kernel, request.signature, request.constants, request.attributes)
    capability = int(request.capability.removeprefix("sm_"))
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=request.options)
    usage = re.search(
        r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)",
        _run(knobs.nvidia.cuobjdump.path, "-res-usage", content=code.asm["cubin"]),
    )
    if usage is None:
        raise RuntimeError(f"cuobjdump says nothing of {request.kernel.__name__}'s registers")
    registers, stack, local = map(int, usage.groups())
    architecture = sm_arch_from_capability(capability)
    instructions = _text_section(code.asm["cubin"])
    return _MachineCode(architecture, registers, stack + local, code.metadata.shared, instructions)


def _binary(code: _MachineCode, program: Program) -> Binary:
    return Binary(code.registers, code.stack, program.count("STL", "LDL"), code.shared, program)


def _disassemble(architecture: str, codes: Sequence[bytes]) -> list[Program]:
    """Disassemble kernels all at once: to start takes nvdisasm as long as to list a hundred of them."""
    name = architecture.replace("sm_", "SM")
    listing = _run(knobs.nvidia.nvdisasm.path, "--binary", name, content=b"".join(codes))
    return parse_joined(listing, [len(code) for code in codes])


def _run(tool: str, *options: str, content: bytes) -> str:
    """Run a tool on a file of that content; return what it printed."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        command = [tool, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _text_section(cubin: bytes) -> bytes:
    """Machine code of the one kernel in a cubin, an ELF file of 64 bits."""
    (offset,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    # Of each section: where its name is, then type, flags, address, offset and size.
    sections = [struct.unpack_from("<2I4Q", cubin, offset + index * size) for index in range(count)]
    start = sections[names][4]
    (code,) = [section for section in sections if cubin.startswith(b".text.", start + section[0])]
    return cubin[code[4] : code[4] + code[5]]
