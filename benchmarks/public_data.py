"""Read public data sets into ASE structures with labels: energy eV, forces eV/Å, stress eV/Å^3 with tension positive.

Every function takes a path and divides reproducibly; nothing is downloaded. Where the data come from:

- mlearn (Zuo et al., J. Phys. Chem. A 124, 731, 2020): the repository materialsvirtuallab/mlearn, folder ``data``.
  Where an element's ``training.json`` cannot be had, ``gap.xml`` of the published GAP may lie in its place, which holds
  what it was trained on: the repository materialsvirtuallab/maml, ``mvl_models/pes/Cu/gap.2020.01/gap.xml`` (compared
  for the four elements of which we have both, and by energies and forces with the archive
  ``minibenchmarks/ZuoEtAl2020.tar.gz`` of the repository ACEsuit/ACEData for copper: the same structures, one of
  lithium's missing and four or five more of the others; energies and stresses equal to the last digit, positions and
  forces to 5e-7);
- silicon, random structures (Yanxon et al., Mach. Learn.: Sci. Technol. 2, 027001, 2021): the repository
  MaterSim/PyXtal_FF, folder ``pyxtal_ff/datasets/Si/PyXtal``;
- silver-gold: the repository sekocha/pypolymlp, folder ``tests/test_mlp_dev_api/data-vasp-Ag-Au/vaspruns``;
- carbon at high pressure (Cheng et al., arXiv 2207.02927): the repository BingqingCheng/highp-ch, archive
  ``train-set/carbon-rss-gen4-displacement_kspacing0.2.data.tar.gz``, unpacked.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree as ET

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.units import Bohr, GPa, Hartree

from acnn.config import TrainConfig
from acnn.train.labels import read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

KBAR = 0.1 * GPa
SILICON_FILES = ("Si4", "Si6", "Si8", "Si16")
SILVER_GOLD_FOLDERS = ("disp1", "standard-Ag1", "standard-Au1")
CARBON_FILE = "carbon-rss-gen4-displacement_kspacing0.2.data"
TEST_PART = 0.2  # of the sets that come undivided
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def read_mlearn(path: Path) -> list[Atoms]:
    """Read one file of mlearn.

    The set holds energies (eV), forces (eV/Å) and virial stresses (kbar, compression positive). The order of the stress
    components is xx yy zz xy xz yz, except in the group Elastic of Si and Ge, where it is xx yy zz xy yz xz: so the
    largest shear stress of each crystal sheared in one plane is in that plane.

    Parameters
    ----------
    path
        A JSON file.

    Returns
    -------
    list
        Structures with their labels.
    """
    frames = []
    for entry in json.loads(path.read_text()):
        structure, outputs = entry["structure"], entry["outputs"]
        symbols = [site["species"][0]["element"] for site in structure["sites"]]
        positions = [site["xyz"] for site in structure["sites"]]
        atoms = Atoms(symbols, positions=positions, cell=structure["lattice"]["matrix"], pbc=True)
        stress = mlearn_stress(outputs["virial_stress"])
        if entry.get("group") == "Elastic" and symbols[0] in {"Si", "Ge"}:
            stress = stress[[0, 1, 2, 4, 3, 5]]
        forces = np.array(outputs["forces"])
        atoms.calc = SinglePointCalculator(atoms, energy=outputs["energy"], forces=forces, stress=stress)
        atoms.info["group"] = str(entry.get("group", ""))
        frames.append(atoms)
    return frames


def mlearn_stress(numbers: Sequence[float]) -> np.ndarray:
    """Turn xx yy zz xy xz yz in kbar, compression positive, into a stress as ASE has it, shape (6,), eV/Å^3."""
    xx, yy, zz, xy, xz, yz = numbers
    return -KBAR * np.array([xx, yy, zz, yz, xz, xy])


def read_mlearn_gap(path: Path) -> list[Atoms]:
    """Read the training set of mlearn that a published GAP carries in its file.

    What it calls virials are the six numbers of `read_mlearn`, in kbar, written into a matrix as if their order were
    xx yy zz xy yz xz: so they are found again. Their order is xx yy zz xy xz yz, as copper's sheared crystals tell (55
    of them; of nickel's the last two are exchanged, and the file does not say of which others).

    Parameters
    ----------
    path
        A file ``gap.xml``.

    Returns
    -------
    list
        Structures with their labels.
    """
    data = ET.parse(path).getroot().find(".//XYZ_data")  # noqa: S314 - a file of a public repository that the user chose
    assert data is not None, f"{path}: no XYZ_data"
    lines = [line.strip() for line in (data.text or "").splitlines() if line.strip()]
    frames = []
    for atoms in read(StringIO("\n".join(lines) + "\n"), ":", format="extxyz"):
        bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        stress = mlearn_stress(np.array(atoms.info["dft_virial"])[[0, 4, 8, 1, 5, 2]])
        energy, forces = atoms.info["dft_energy"], atoms.arrays["dft_force"]
        bare.calc = SinglePointCalculator(bare, energy=energy, forces=forces, stress=stress)
        frames.append(bare)
    return frames


def mlearn(folder: Path, element: str) -> tuple[list[Atoms], list[Atoms]]:
    """Read an element of mlearn with its own split into train and test: training.json or, without it, gap.xml."""
    files = folder / element
    whole = files / "training.json"
    train = read_mlearn(whole) if whole.exists() else read_mlearn_gap(files / "gap.xml")
    return train, read_mlearn(files / "test.json")


def read_silicon(folder: Path) -> list[Atoms]:
    """Read all random structures of silicon: energies and forces, no stresses, up to 40 eV/atom above equilibrium.

    Parameters
    ----------
    folder
        With the files Si4.json to Si16.json.

    Returns
    -------
    list
        Labelled structures.
    """
    frames = []
    for name in SILICON_FILES:
        for entry in json.loads((folder / f"{name}.json").read_text()):
            cell, scaled = entry["lattice"]["data"], entry["coords"]["data"]
            atoms = Atoms(entry["elements"], scaled_positions=scaled, cell=cell, pbc=True)
            forces = np.array(entry["force"], dtype=float).reshape(-1, 3)
            atoms.calc = SinglePointCalculator(atoms, energy=entry["energy"], forces=forces)
            frames.append(atoms)
    return frames


def read_vasprun(path: Path, energy: Literal["e_wo_entrp", "e_fr_energy"] = "e_wo_entrp") -> Atoms:
    """Read one compressed VASP output of the silver-gold set.

    Stresses are in kbar with VASP's sign, the opposite of ASE's. Checked with a potential that learned only energies
    and forces of 150 structures: over the test set its shear stresses correlate with these labels component by
    component (yz 0.97, xz 0.96, xy 0.98; no other pair above 0.3 in size), its normal ones at 0.81 to 0.85, all with
    slopes of 0.73 to 0.93.

    Parameters
    ----------
    path
        A file ``vasprun-*.xml.polymlp``.
    energy
        Which energy: pypolymlp itself takes the second entry, ``e_wo_entrp``, which holds the energy extrapolated to
        zero smearing (it is the free energy less a third of the entropy term that the third entry holds);
        ``e_fr_energy`` is the free energy.

    Returns
    -------
    Atoms
        The structure with its labels.
    """
    root = ET.parse(path).getroot()  # noqa: S314 - a file of a public repository that the user chose

    def rows(name: str) -> np.ndarray:
        found = root.find(f".//varray[@name='{name}']")
        assert found is not None, f"{path}: no {name}"
        return np.array([[float(word) for word in (row.text or "").split()] for row in found])

    symbols = [(row[0].text or "").strip() for row in root.findall(".//array[@name='atoms']/set/rc")]
    atoms = Atoms(symbols, scaled_positions=rows("positions"), cell=rows("basis"), pbc=True)
    total = root.find(f"calculation/energy/i[@name='{energy}']")
    assert total is not None, f"{path}: no {energy}"
    stress = -KBAR * rows("stress")
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=float(total.text or "nan"),
        forces=rows("forces"),
        stress=np.array([0.5 * (stress[i, j] + stress[j, i]) for i, j in VOIGT]),
    )
    return atoms


def silver_gold(folder: Path) -> tuple[list[Atoms], list[Atoms]]:
    """Read the silver-gold set with its own split by folders.

    Parameters
    ----------
    folder
        ``vaspruns``, or a folder above it: that of the data or the repository.

    Returns
    -------
    tuple
        Training and test structures.
    """
    for inner in ("tests/test_mlp_dev_api/data-vasp-Ag-Au", "data-vasp-Ag-Au", "vaspruns"):
        if (folder / inner).is_dir():
            folder = folder / inner
    train, test = (
        [read_vasprun(path) for name in SILVER_GOLD_FOLDERS for path in sorted((folder / f"{part}-{name}").iterdir())]
        for part in ("train", "test")
    )
    return train, test


def read_carbon(path: Path) -> list[Atoms]:
    """Read structures in the format of n2p2: blocks from ``begin`` to ``end``.

    Lengths are Bohr and energies Hartree: so read, the closest pairs are at 1.2 to 1.5 Å and the energies reach down to
    -9.0 eV/atom, as PBE has it for graphite and diamond. There are no stresses.

    Parameters
    ----------
    path
        The file, or a folder that holds it.

    Returns
    -------
    list
        Labelled structures.
    """
    frames: list[Atoms] = []
    cell: list[list[float]] = []
    rows: list[list[str]] = []
    energy = float("nan")
    for line in (path / CARBON_FILE if path.is_dir() else path).read_text().splitlines():
        key, *words = line.split() or [""]
        if key == "begin":
            cell, rows, energy = [], [], float("nan")
        elif key == "lattice":
            cell.append([float(word) for word in words])
        elif key == "atom":
            rows.append(words)
        elif key == "energy":
            energy = float(words[0])
        elif key == "end":
            positions, forces = (np.array([r[k : k + 3] for r in rows], dtype=float) for k in (0, 6))
            atoms = Atoms([r[3] for r in rows], positions=positions * Bohr, cell=np.array(cell) * Bohr, pbc=True)
            atoms.calc = SinglePointCalculator(atoms, energy=energy * Hartree, forces=forces * Hartree / Bohr)
            frames.append(atoms)
    return frames


def split(frames: Sequence[Atoms], seed: int = 0, test_part: float = TEST_PART) -> tuple[list[Atoms], list[Atoms]]:
    """Divide at random into train and test.

    Parameters
    ----------
    frames
        All structures.
    seed
        Decides the order.
    test_part
        Fraction of the test structures.

    Returns
    -------
    tuple
        Training and test structures.
    """
    order = np.random.default_rng(seed).permutation(len(frames))
    n_test = round(test_part * len(frames))
    return [frames[k] for k in order[n_test:]], [frames[k] for k in order[:n_test]]


def without_wild(train: Sequence[Atoms], test: Sequence[Atoms]) -> tuple[list[Atoms], list[Atoms], dict[str, int]]:
    """Set aside what no potential should learn, by the default limits of `acnn`; the same for every model.

    Parameters
    ----------
    train
        Training structures.
    test
        Test structures.

    Returns
    -------
    tuple
        Training structures, test structures, and how many of both were set aside by reason.
    """
    found = read_labels([*train, *test], TrainConfig())
    kept = {id(label.atoms) for label in found.labels}
    return [a for a in train if id(a) in kept], [a for a in test if id(a) in kept], dict(found.dropped)


SETS: dict[str, Callable[[Path], tuple[list[Atoms], list[Atoms]]]] = {
    "ag-au": silver_gold,
    "silicon": lambda path: split(read_silicon(path)),
    "carbon": lambda path: split(read_carbon(path)),
}
