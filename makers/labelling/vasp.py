"""The atomate2 door: VASP makers with the label settings over them, and their task documents as labels."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import GPa
from atomate2 import SETTINGS
from atomate2.vasp.jobs.base import BaseVaspMaker
from custodian.vasp.handlers import (
    FrozenJobErrorHandler,
    NonConvergingErrorHandler,
    UnconvergedErrorHandler,
    VaspErrorHandler,
)
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from makers.documents import LabelKind, LabelStatus
from makers.errors import ConfigError
from makers.labelling.outcome import Outcome

if TYPE_CHECKING:
    from ase import Atoms

    from makers.config import Atomate2LabelConfig
    from makers.labelling.records import LabelContext, Request

KBAR = 0.1 * GPa  # eV/Å^3

CURABLE = [
    "amin", "bravais", "brions", "brmix", "coef", "dfpt_ncore", "edddav", "eddiag", "eddrmm", "ibzkpt", "inv_rot_mat",
    "ksymm", "nbands_not_sufficient", "pdsyevx", "point_group", "posmap", "pricel", "pricelv", "pssyevx", "rhosyg",
    "rot_matrix", "symprec_noise", "too_few_bands", "zbrent", "zheev",
]  # fmt: skip
"""Errors of VASP whose cure is another algorithm, mixing, number of bands or symmetry search. Left out are those that
custodian cures by other physics: another smearing, precision or k-mesh, or a larger cell. PositiveEnergyErrorHandler is
left out as a whole: under pressure a positive energy is right."""

PHYSICS = ("ENCUT", "GGA", "METAGGA", "ISMEAR", "SIGMA", "PREC", "LREAL", "KSPACING", "ISPIN")
"""Tags that make labels comparable: a calculation that ended with others than asked for is rejected."""


class ResignedUnconvergedHandler(UnconvergedErrorHandler):  # type: ignore[misc, unused-ignore]
    """Two better algorithms are tried; what has not converged then ends as it is, and the label says so.

    Custodian's own handler ends with an exception instead, which leaves no task document.
    """

    max_num_corrections = 2


def label_handlers() -> list[Any]:
    """Return the custodian handlers of labels: they repair crashes and convergence, never the physics.

    Returns
    -------
    list
        Handlers for atomate2's run_vasp.
    """
    return [
        VaspErrorHandler(errors_subset_to_catch=CURABLE),
        ResignedUnconvergedHandler(),
        NonConvergingErrorHandler(),
        FrozenJobErrorHandler(),
    ]


def build_maker(
    config: Atomate2LabelConfig, kind: LabelKind = LabelKind.SINGLE_POINT, pressure_gpa: float = 0.0
) -> BaseVaspMaker:
    """Build the atomate2 maker of labels.

    Parameters
    ----------
    config
        The `label` section.
    kind
        Single points, or relaxations of positions and cell.
    pressure_gpa
        Pressure of relaxations, GPa.

    Returns
    -------
    BaseVaspMaker
        A maker whose jobs fail only when there is no result at all.

    Raises
    ------
    ConfigError
        If the maker cannot be imported or is no VASP maker.
    """
    relaxation = kind == LabelKind.RELAXATION
    key = "relax_maker" if relaxation and config.relax_maker else "maker"
    maker = _load_maker(key, getattr(config, key))()
    incar = config.full_incar
    if relaxation:
        incar |= {
            "EDIFFG": -config.relax_fmax,
            "IBRION": 2,
            "ISIF": 3,
            "NSW": config.relax_max_steps,
            "PSTRESS": 10 * pressure_gpa,  # kB
        }
    maker.input_set_generator.user_incar_settings = {**maker.input_set_generator.user_incar_settings, **incar}
    maker.run_vasp_kwargs = {**maker.run_vasp_kwargs, "handlers": label_handlers(), **config.run_vasp}
    maker.stop_children_kwargs = {"handle_unsuccessful": False}
    maker.task_document_kwargs = {**maker.task_document_kwargs, "parse_dos": False, "parse_bandstructure": False}
    if config.potcar_spec:
        maker.write_input_set_kwargs = {**maker.write_input_set_kwargs, "potcar_spec": True}
    return maker


def vasp_command(config: Atomate2LabelConfig) -> str:
    """Return the command that runs VASP.

    Parameters
    ----------
    config
        The `label` section.

    Returns
    -------
    str
        Shell words.
    """
    return str(config.run_vasp.get("vasp_cmd", SETTINGS.VASP_CMD))


def to_structure(atoms: Atoms) -> tuple[Structure, list[int]]:
    """Return the structure with its atoms in the order in which VASP will have them.

    Parameters
    ----------
    atoms
        The structure.

    Returns
    -------
    tuple
        The structure, and for each of its sites the index of the atom.
    """
    structure = Structure(
        Lattice(atoms.cell.array),
        atoms.get_chemical_symbols(),
        atoms.positions,
        coords_are_cartesian=True,
        site_properties={"atom": list(range(len(atoms)))},
    ).get_sorted_structure()
    order = [int(index) for index in structure.site_properties["atom"]]
    structure.remove_site_property("atom")
    return structure, order


def outcome_of_task(request: Request, context: LabelContext, task: Any) -> Outcome:  # noqa: ANN401 - document or dict
    """Read a task document of atomate2.

    Energies come without pV, stress in eV/Å^3 with tension positive, forces in the order of the asked structure.

    Parameters
    ----------
    request
        What was asked for.
    context
        Settings and kind.
    task
        The task document, as a document or as a dictionary, or None when the job failed.

    Returns
    -------
    Outcome
        The result or the reason why there is none.
    """
    atoms = request.atoms
    positions, cell = atoms.positions.tolist(), atoms.cell.array.tolist()
    if task is None:
        message = "the VASP job ended without a result: look at the job of the same label in the workflow manager"
        return Outcome(request.label_id, LabelStatus.CRASHED, message, positions, cell, provenance=_provenance({}))
    doc = task if isinstance(task, dict) else task.model_dump()
    calculation, output = doc["calcs_reversed"][0], doc["output"]
    order = to_structure(atoms)[1]
    structure = output["structure"]
    structure = Structure.from_dict(structure) if isinstance(structure, dict) else structure
    if [site.specie.Z for site in structure] != atoms.numbers[order].tolist():
        message = "VASP returned other atoms than it was given"
        return Outcome(request.label_id, LabelStatus.REJECTED, message, positions, cell, provenance=_provenance(doc))
    if context.kind == LabelKind.RELAXATION:
        positions, cell = _unsorted(structure.cart_coords, order), structure.lattice.matrix.tolist()
    status, message = _status(doc, calculation, context)
    return Outcome(
        request.label_id,
        status,
        message,
        positions,
        cell,
        energy=_energy(calculation, output),
        forces=None if output["forces"] is None else _unsorted(np.asarray(output["forces"]), order),
        stress=None if output["stress"] is None else (-KBAR * np.asarray(output["stress"])).tolist(),
        provenance=_provenance(doc),
    )


def _load_maker(key: str, path: str) -> type[BaseVaspMaker]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"label.{key}: {path!r} cannot be imported ({exc}): correct the path") from exc
    if not (isinstance(found, type) and issubclass(found, BaseVaspMaker)):
        raise ConfigError(
            f"label.{key}: {path!r} is not a VASP maker of atomate2, such as "
            f"atomate2.vasp.jobs.matpes.MatPesGGAStaticMaker; for other codes use the door `ase`"
        )
    return found


def _unsorted(values: np.ndarray, order: list[int]) -> list[list[float]]:
    result = np.empty_like(values, dtype=float)
    result[order] = values
    return result.tolist()  # type: ignore[no-any-return]


def _energy(calculation: dict[str, Any], output: dict[str, Any]) -> float | None:
    # the energies of electronic steps never contain pV, those of ionic steps may when PSTRESS is set
    steps = calculation["output"].get("ionic_steps") or []
    electronic = (steps[-1].get("electronic_steps") or []) if steps else []
    energy = electronic[-1].get("e_0_energy") if electronic else None
    energy = output["energy"] if energy is None else energy
    return None if energy is None else float(energy)


def _status(doc: dict[str, Any], calculation: dict[str, Any], context: LabelContext) -> tuple[LabelStatus, str]:
    used = {str(tag).upper(): value for tag, value in calculation["input"]["incar"].items()}
    asked: dict[str, Any] = context.config.full_incar if context.config.door == "atomate2" else {}
    for tag in PHYSICS:
        if tag in asked and not _same(used.get(tag), asked[tag]):
            return LabelStatus.REJECTED, f"{tag} ended as {used.get(tag)!r}, asked for {asked[tag]!r}: not comparable"
    state = str(getattr(doc["state"], "value", doc["state"]))
    if state != "successful":
        return LabelStatus.UNCONVERGED, "the self-consistency or the relaxation did not converge"
    return LabelStatus.OK, ""


def _same(used: Any, asked: Any) -> bool:  # noqa: ANN401 - whatever an INCAR holds
    if isinstance(asked, bool) or isinstance(used, bool) or isinstance(asked, str) or used is None:
        return str(used).lower() == str(asked).lower()
    try:
        return math.isclose(float(used), float(asked), rel_tol=1e-6)
    except (TypeError, ValueError):
        return False


def _provenance(doc: dict[str, Any]) -> dict[str, Any]:
    host, _, folder = str(doc.get("dir_name") or "").rpartition(":")
    calculations = doc.get("calcs_reversed") or [{}]
    vasp = str(calculations[0].get("vasp_version") or "unknown")
    seconds = float(((doc.get("run_stats") or {}).get("overall") or {}).get("elapsed_time") or 0.0)
    corrections = [
        f"{_handler_name(correction.get('handler'))}: {correction.get('errors')} -> {correction.get('actions')}"
        for run in doc.get("custodian") or []
        for correction in run.get("corrections") or []
    ]
    return {
        "versions": {name: version(name) for name in ("atomate2", "custodian")} | {"vasp": vasp},
        "host": host,
        "directory": folder,
        "started": _started(calculations[0].get("completed_at"), seconds),
        "seconds": seconds,
        "corrections": corrections,
    }


def _handler_name(handler: Any) -> str:  # noqa: ANN401 - an object, or what is left of it in the database
    name = handler.get("@class") if isinstance(handler, dict) else handler
    return name if isinstance(name, str) else type(handler).__name__


def _started(completed: Any, seconds: float) -> str:  # noqa: ANN401 - text or a date, by the version of emmet-core
    try:
        end = datetime.fromisoformat(str(completed))
    except ValueError:
        return ""
    return (end.astimezone(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")  # naive times are local
