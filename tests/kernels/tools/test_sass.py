"""SASS listings are parsed, and their main loop is found."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from factories.kernels import LISTING

from satclip_engine.kernels.tools import sass

pytestmark = pytest.mark.gpu_tools


def test_a_listing_is_read_without_its_padding() -> None:
    program = sass.parse(LISTING)
    assert [line.name for line in program.instructions][-1] == "EXIT"
    assert len(program.instructions) == 9
    assert program.count("STL", "LDL") == 1


def test_the_main_loop_is_the_innermost_one_with_most_tensor_instructions() -> None:
    loop = sass.parse(LISTING).main_loop
    assert [line.address for line in loop.instructions] == [0x20, 0x30, 0x40, 0x50]
    assert loop.mix == {"shared": 1, "tensor": 1, "other": 2}


def test_a_kernel_without_loops_is_its_own_main_loop() -> None:
    program = sass.parse(LISTING.replace("BRA 0x10", "BRA 0x80").replace("BRA 0x20", "BRA 0x60"))
    assert program.main_loop is program


def test_kernels_listed_one_behind_the_other_have_addresses_of_their_own() -> None:
    joined = """
        /*0000*/                   FFMA R2, R3, R4, R2 ;
        /*0010*/               @P0 BRA 0x0 ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0030*/               @P0 BRA 0x20 ;
        /*0040*/                   BRA 0x40 ;
    """
    first, second = sass.parse_joined(joined, [0x20, 0x30])
    assert [(line.address, line.base, line.target) for line in first.instructions] == [
        (0, "FFMA", None),
        (0x10, "BRA", 0),
    ]
    assert [(line.address, line.base, line.target) for line in second.instructions] == [
        (0, "HMMA", None),
        (0x10, "BRA", 0),
    ]
    assert second.main_loop.mix["tensor"] == 1
