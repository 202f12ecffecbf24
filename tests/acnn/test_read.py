"""One reader for all commands: nothing of a file is lost, and what cannot be read is named."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from acnn import read
from acnn.errors import DataError
from acnn.read import read_frames, read_stream


def text_of(atoms: Atoms, path: Path) -> str:
    write(path, atoms, format="extxyz")
    return path.read_text()


@pytest.mark.parametrize("portion", [1, 2, 64])
@pytest.mark.parametrize("name", ["in.extxyz", "in.xyz", "in.xyz.gz", "in", "a@2.extxyz"])
def test_blank_lines_between_structures_lose_none(tmp_path, monkeypatch, alloys, name, portion):
    monkeypatch.setattr(read, "PORTION", portion)
    lead = "" if name == "in" else "\n"  # without an ending the first line tells the format
    text = lead + "\n \n".join(text_of(atoms, tmp_path / "one") for atoms in alloys[:5]) + "\n\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    frames = read_frames(path)
    assert [len(atoms) for atoms in frames] == [len(atoms) for atoms in alloys[:5]]
    for atoms, known in zip(frames, alloys, strict=False):
        assert atoms.get_potential_energy() == pytest.approx(known.get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), known.get_forces(), atol=1e-7)


def test_a_file_is_read_as_a_stream(tmp_path, monkeypatch, alloys):
    monkeypatch.setattr(read, "PORTION", 2)
    path = tmp_path / "in.extxyz"
    write(path, alloys[:5])
    with path.open("a") as file:
        file.write("2\nbroken\nAl 0 0\n")
    found = read_stream(path)
    assert [len(next(found)) for _ in range(5)] == [len(atoms) for atoms in alloys[:5]]
    with pytest.raises(DataError, match=r"structure 5 cannot be read"):
        next(found)


HEAD = "1\n\nCu 0 0 0\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.extxyz", HEAD + "2\n", "structure 1 cannot be read: it ends too early"),
        (
            "a.extxyz",
            HEAD + "2\n\nCu 0 0 0\n",
            "structure 1 cannot be read: ase.io.extxyz: Frame has 1 atoms, expected 2",
        ),
        ("a.extxyz", HEAD + "1\n\nQq 0 0 0\n", "structure 1 cannot be read: KeyError 'Qq'"),
        (
            "a.extxyz",
            HEAD + "1\nstress=none\nCu 0 0 0\n",
            "structure 1 cannot be read: Got info item stress, expecting",
        ),
        ("a.extxyz", HEAD + "\nCu 0 0 0\n", "line 5: expected the number of atoms of structure 1, got Cu 0 0 0"),
        ("a.extxyz", "words\n", "line 1: expected the number of atoms of structure 0, got words"),
        ("a.extxyz", b"\xff\xfe", "structure 0 cannot be read: 'utf-8' codec"),
        ("a.words", "no format that is known", "structure 0 cannot be read: UnknownFileTypeError words"),
        ("a.cif", "words", "structure 0 cannot be read: AssertionError"),
        ("a.db", 9 * "words\n", "structure 0 cannot be read: file is not a database"),
        ("OUTCAR", 9 * "words\n", "structure 0 cannot be read: Incomplete OUTCAR"),
        ("vasprun.xml", "<words>", "structure 0 cannot be read: no element found"),
        ("empty.extxyz", "", "holds no structure"),
        ("blank.extxyz", "\n\n", "holds no structure"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read_frames(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_a_folder_is_told_from_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="expected a file to read, this is a folder"):
        read_frames(tmp_path)
    with pytest.raises(DataError, match=r"none\.extxyz: no such file"):
        read_frames(tmp_path / "none.extxyz")


def test_lattice_vectors_below_the_atoms_are_read(tmp_path):
    cell = "VEC1 3 0 0\nVEC2 0 3 0\nVEC3 0 0 3\n"
    (tmp_path / "a.xyz").write_text(f"1\n\nCu 0 0 0\n{cell}\n1\n\nAu 0 0 0\n{cell}")
    frames = read_frames(tmp_path / "a.xyz")
    assert [str(atoms.symbols) for atoms in frames] == ["Cu", "Au"]
    assert all(atoms.cell.volume == pytest.approx(27.0) for atoms in frames)
