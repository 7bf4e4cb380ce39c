"""The table of functions of a Linux library, against pyelftools, and files that have none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from audiocraft_mlx.ops.cpu.blas import _mlx_library
from audiocraft_mlx.ops.cpu.elf import function_slots

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")


@pytest.fixture(scope="module")
def library() -> Path:
    path = _mlx_library()
    assert path is not None
    return path


def test_the_slots_are_those_of_pyelftools(library: Path) -> None:
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".rela.plt")
        symbols = elf.get_section(table["sh_link"])
        wanted = {
            symbols.get_symbol(entry["r_info_sym"]).name: entry["r_offset"]
            for entry in table.iter_relocations()
        }
    assert "cblas_sgemm" in wanted
    assert function_slots(library) == wanted


@pytest.mark.parametrize("tag", [24, 30, 0x6FFFFFFB])  # DT_BIND_NOW, DT_FLAGS, DT_FLAGS_1
def test_a_library_that_binds_at_once_has_none(library: Path, tmp_path: Path, tag: int) -> None:
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynamic")
        end = section["sh_offset"] + 16 * (section.num_tags() - 1)  # DT_NULL
    data = bytearray(library.read_bytes())
    data[end : end + 16] = tag.to_bytes(8, "little") + (9).to_bytes(8, "little")
    (tmp_path / "bound.so").write_bytes(data)
    assert function_slots(tmp_path / "bound.so") == {}


@pytest.mark.parametrize("size", [0, 4, 20, 100, 5000, 1 << 20])
def test_a_library_that_is_cut_off_has_none(library: Path, tmp_path: Path, size: int) -> None:
    with library.open("rb") as file:
        (tmp_path / "cut.so").write_bytes(file.read(size))
    assert function_slots(tmp_path / "cut.so") == {}


def test_other_files_have_none(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("INPUT(libmlx.so)")
    assert function_slots(tmp_path / "text.so") == {}
