"""Write results in the formats that other programs read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ase.io import write
from ase.io.formats import UnknownFileTypeError
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from makers.errors import ConfigError
from makers.labelling.records import read_labels, to_training_frames
from workflows.results import query_phases
from workflows.tables import phases_json

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from jobflow import JobStore


def export_phases(store: JobStore, project: str, out: Path, below: float) -> int:
    """Write phases to a file.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.
    out
        ``.json`` holds whole documents; any format that ASE writes holds structures, the most stable first
        (formats of one structure, as ``.cif``, the most stable one).
    below
        Largest distance above the hull, eV/atom.

    Returns
    -------
    int
        Phases written.

    Raises
    ------
    ConfigError
        If there is nothing to write, or the format is unknown.
    """
    phases = query_phases(store, project, below=below)
    if not phases:
        raise ConfigError(f"{project}: no phase within {below} eV/atom of the hull; raise --below")
    if out.suffix == ".json":
        try:
            out.write_text(phases_json(phases), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{out}: expected a file that can be written, got: {error.strerror}") from error
        return len(phases)
    frames = []
    for doc in phases:
        atoms = AseAtomsAdaptor.get_atoms(Structure.from_dict(doc["structure"]), msonable=False)
        atoms.info = {name: doc[name] for name in ("phase_id", "formula", "space_group", "e_above_hull", "source")}
        frames.append(atoms)
    many = out.suffix in {".extxyz", ".xyz", ".traj", ".db"}
    _write(out, frames if many else frames[:1])
    return len(frames) if many else 1


def export_labels(store: JobStore, project: str, out: Path) -> int:
    """Write all successful labels as training data.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.
    out
        File; ``.extxyz`` holds energies, forces and stresses as `acnn train` reads them.

    Returns
    -------
    int
        Labels written.

    Raises
    ------
    ConfigError
        If the format is unknown or there is nothing to write.
    """
    frames = to_training_frames(read_labels(store, project))
    if not frames:
        raise ConfigError(f"{project}: no successful label to write")
    _write(out, frames)
    return len(frames)


def _write(out: Path, frames: list[Atoms]) -> None:
    try:
        write(out, frames)
    except (ValueError, KeyError, OSError, UnknownFileTypeError) as error:
        raise ConfigError(f"{out}: cannot be written ({error}); use .extxyz, .cif or .json") from error
