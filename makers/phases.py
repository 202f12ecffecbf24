"""The `phases` collection: one document per distinct crystal, built from labels and candidates on demand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.units import GPa
from maggma.core import Builder
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from csp.hull import Hull, formula_of
from makers.documents import LabelDoc, LabelKind
from makers.indexes import BASIS, phase_basis, phase_store
from makers.labelling import read_labels
from makers.outcomes import PhaseDoc, PhaseStatus
from makers.stage import Handle, Stage, newest_output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jobflow import JobStore

SYMPREC = 0.05  # Å; first-principles relaxation stops at a finite force, so exact symmetry is not to be had
ON_HULL = 1e-6  # eV/atom


@dataclass
class Phase:
    """A candidate with everything known about it.

    Parameters
    ----------
    phase_id
        Its name.
    candidate
        As the potential relaxed it, with the columns of the pool in ``info``; None if it left the pool.
    labels
        Its successful labels.
    """

    phase_id: str
    candidate: Atoms | None = None
    labels: list[LabelDoc] = field(default_factory=list)


def best_label(phase: Phase, pressure_gpa: float) -> LabelDoc | None:
    """Return the label that speaks for a phase: a relaxation if there is one, and of those the lowest enthalpy.

    Parameters
    ----------
    phase
        The phase.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    LabelDoc or None
        None if first principles have not seen it.
    """
    relaxed = [label for label in phase.labels if label.kind == LabelKind.RELAXATION]
    return min(relaxed or phase.labels, key=lambda label: enthalpy_per_atom(label, pressure_gpa), default=None)


def enthalpy_per_atom(label: LabelDoc, pressure_gpa: float) -> float:
    """Return the enthalpy of a label.

    Parameters
    ----------
    label
        A successful label.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    float
        (E + pV)/N, eV/atom.

    Raises
    ------
    ValueError
        If the label has no energy.
    """
    if label.energy is None:
        raise ValueError(f"label {label.label_id} has no energy (status {label.status})")
    volume = abs(float(np.linalg.det(label.cell)))
    return (label.energy + pressure_gpa * float(GPa) * volume) / label.n_atoms


def label_atoms(label: LabelDoc) -> Atoms:
    """Return the structure of a label.

    Parameters
    ----------
    label
        Any label.

    Returns
    -------
    ase.Atoms
        Periodic structure.
    """
    return Atoms(label.numbers, positions=label.positions, cell=label.cell, pbc=True)


class PhaseBuilder(Builder):
    """Build the `phases` collection of one search.

    Parameters
    ----------
    store
        Connected job store; labels and phases lie beside its documents.
    project
        The search.
    """

    def __init__(self, store: JobStore, project: str) -> None:
        self.store = store
        self.project = project
        self.phases = phase_store(store)
        super().__init__(sources=[store.docs_store], targets=[self.phases])

    def build(self) -> None:
        """Bring the collection up to date.

        maggma's own ``run`` would set the root logger to DEBUG for the whole process; `mrun` may still use it.
        """
        self.update_targets([self.process_item(item) for item in self.get_items()])

    def get_items(self) -> Iterator[Phase]:
        """Yield every distinct phase, and set the hull that all of them are measured against."""
        self.basis = phase_basis(self.store, self.project)
        state = newest_output(self.store, self.project, Stage.ADVANCE)
        self.pressure_gpa = state["state"]["knowledge"]["pressure_gpa"] if state else 0.0
        aliases = Handle(state["uuid"], "ledger").fetch(self.store).ledger.aliases if state else {}
        labels = [under_todays_name(label, aliases) for label in read_labels(self.store, self.project)]
        phases = merge(gather(self._pool(), labels), self.pressure_gpa)
        self.hull = dft_hull(phases, labels, self.pressure_gpa)
        yield from phases

    def process_item(self, item: Phase) -> dict[str, Any]:
        """Turn a phase into its document.

        Parameters
        ----------
        item
            The phase.

        Returns
        -------
        dict
            The document.
        """
        doc = describe(item, self.hull, self.project, self.pressure_gpa)
        known_by = {"phase_key": f"{self.project}/{item.phase_id}", BASIS: self.basis}
        return doc.model_dump(mode="json") | known_by

    def update_targets(self, items: list[dict[str, Any]]) -> None:
        """Replace what was known: phases that turned out to be others' doubles disappear.

        Parameters
        ----------
        items
            Documents.
        """
        self.phases.update(items, key="phase_key")
        keep = {item["phase_key"] for item in items}
        old = self.phases.query({"project": self.project}, properties=["phase_key"])
        gone = [doc["phase_key"] for doc in old if doc["phase_key"] not in keep]
        if gone:
            self.phases.remove_docs({"phase_key": {"$in": gone}})

    def _pool(self) -> list[Atoms]:
        newest = newest_output(self.store, self.project, Stage.SELECT)
        return Handle(newest["uuid"], "pool").fetch(self.store).to_atoms() if newest else []


def dft_hull(phases: Iterable[Phase], labels: Iterable[LabelDoc], pressure_gpa: float) -> Hull | None:
    """Return the hull of the first-principles enthalpies, one for each phase.

    Each phase counts with the label that speaks for it, so that a phase relaxed in one cell does not compete with its
    own single point in another, which differs by the k-points. An element that no phase covers yet counts with its
    lowest label of any structure.

    Parameters
    ----------
    phases
        Distinct phases.
    labels
        All successful labels.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    Hull or None
        None before every element has a label.
    """
    labels = list(labels)
    speaking = speaking_labels(phases, labels, pressure_gpa)
    elements = {symbol for label in labels for symbol in label.chemsys.split("-")}
    if not elements or elements - {label.formula for label in speaking}:
        return None
    return Hull.from_entries([x.formula for x in speaking], [enthalpy_per_atom(x, pressure_gpa) for x in speaking])


def speaking_labels(phases: Iterable[Phase], labels: Iterable[LabelDoc], pressure_gpa: float) -> list[LabelDoc]:
    """Return one label for each phase, and the lowest one of each element that no phase covers.

    Parameters
    ----------
    phases
        Phases.
    labels
        All successful labels.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    list[LabelDoc]
        The labels that a hull is made of.
    """
    labels = list(labels)
    speaking = [label for phase in phases if (label := best_label(phase, pressure_gpa))]
    elements = {symbol for label in labels for symbol in label.chemsys.split("-")}
    for symbol in sorted(elements - {label.formula for label in speaking}):
        of_element = [label for label in labels if label.formula == symbol]
        if of_element:
            speaking.append(min(of_element, key=lambda label: enthalpy_per_atom(label, pressure_gpa)))
    return speaking


def under_todays_name(label: LabelDoc, aliases: Mapping[str, str]) -> LabelDoc:
    """Return a label with the name that its phase goes by today.

    Parameters
    ----------
    label
        Any label.
    aliases
        Former names of phases and the names of today.

    Returns
    -------
    LabelDoc
        The same label if its phase kept its name.
    """
    name = aliases.get(label.phase_id or "")
    return label if name is None else label.model_copy(update={"phase_id": name})


def gather(pool: Iterable[Atoms], labels: Iterable[LabelDoc]) -> list[Phase]:
    """Collect what is known by phase.

    Parameters
    ----------
    pool
        Candidates; ``info`` has phase_id and the other columns of the pool.
    labels
        Successful labels; those of no phase are left out.

    Returns
    -------
    list[Phase]
        Sorted by name.
    """
    phases: dict[str, Phase] = {}
    for atoms in pool:
        phases[atoms.info["phase_id"]] = Phase(atoms.info["phase_id"], candidate=atoms)
    for label in labels:
        if label.phase_id:
            phases.setdefault(label.phase_id, Phase(label.phase_id)).labels.append(label)
    return [phases[name] for name in sorted(phases)]


def merge(phases: Iterable[Phase], pressure_gpa: float) -> list[Phase]:
    """Join candidates that first principles relaxed into the same crystal; the lowest keeps its name.

    Parameters
    ----------
    phases
        Phases.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    list[Phase]
        Distinct phases; the count of independent finds of joined ones is their sum.
    """
    groups: dict[str, list[tuple[Phase, LabelDoc]]] = defaultdict(list)
    distinct: list[Phase] = []
    for phase in phases:
        label = best_label(phase, pressure_gpa)
        if label is None or label.kind != LabelKind.RELAXATION:
            distinct.append(phase)
        else:
            groups[label.formula].append((phase, label))
    for group in groups.values():
        group.sort(key=lambda item: enthalpy_per_atom(item[1], pressure_gpa))
        distinct.extend(_join(group))
    return distinct


def _join(group: list[tuple[Phase, LabelDoc]]) -> list[Phase]:
    matcher = StructureMatcher()
    kept: list[tuple[Phase, Any]] = []
    for phase, label in group:
        structure = AseAtomsAdaptor.get_structure(label_atoms(label))
        twin = next((k for k, other in kept if matcher.fit(structure, other)), None)
        if twin is None:
            kept.append((phase, structure))
            continue
        twin.labels.extend(phase.labels)
        if twin.candidate is None:
            twin.candidate = phase.candidate
        elif phase.candidate is not None:
            info, other = twin.candidate.info, phase.candidate.info
            info["times_found"] += other["times_found"]
            info["generation_found"] = min(info["generation_found"], other["generation_found"])
    return [phase for phase, _ in kept]


def describe(phase: Phase, hull: Hull | None, project: str, pressure_gpa: float) -> PhaseDoc:
    """Write the document of a phase.

    Parameters
    ----------
    phase
        The phase.
    hull
        Hull of the first-principles enthalpies.
    project
        The search.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    PhaseDoc
        The document.
    """
    label = best_label(phase, pressure_gpa)
    atoms = label_atoms(label) if label else phase.candidate
    if atoms is None:
        raise ValueError(f"phase {phase.phase_id}: neither a candidate nor a label")
    info = phase.candidate.info if phase.candidate is not None else {}
    formula = formula_of(atoms)
    enthalpy = enthalpy_per_atom(label, pressure_gpa) if label else None
    above = hull.e_above(formula, enthalpy) if hull is not None and enthalpy is not None else None
    analyzer = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(atoms), symprec=SYMPREC)
    primitive = analyzer.find_primitive() or AseAtomsAdaptor.get_structure(atoms)
    return PhaseDoc(
        project=project,
        phase_id=phase.phase_id,
        formula=formula,
        chemsys="-".join(sorted(set(atoms.get_chemical_symbols()))),
        pressure_gpa=pressure_gpa,
        status=_status(above),
        source="model" if label is None else "relaxation" if label.kind == LabelKind.RELAXATION else "single_point",
        e_above_hull=None if above is None else 0.0 if above <= ON_HULL else above,
        e_above_hull_model=info.get("e_above_hull"),
        enthalpy_per_atom=enthalpy,
        enthalpy_per_atom_model=info.get("enthalpy_per_atom"),
        space_group=analyzer.get_space_group_symbol(),
        space_group_number=analyzer.get_space_group_number(),
        n_atoms=len(primitive),
        volume_per_atom=atoms.get_volume() / len(atoms),
        structure=primitive.as_dict(),
        origin=info.get("origin", ""),
        lineage=info.get("lineage", ""),
        generation_found=info.get("generation_found", label.generation if label else 0),
        times_found=info.get("times_found", 1),
        label_ids=sorted(x.label_id for x in phase.labels),
    )


def _status(above: float | None) -> PhaseStatus:
    if above is None:
        return PhaseStatus.UNCONFIRMED
    return PhaseStatus.STABLE if above <= ON_HULL else PhaseStatus.METASTABLE
