"""Ranking: unsound structures are flagged and left out, known phases keep their names and their finds add up."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from csp.config import SelectConfig
from csp.errors import DataError
from csp.rank import History, Relaxations, rank

ELEMENTS = ("Al", "Cu")
ENERGY = {"Al": -3.0, "Cu": -4.0, "AlCu": -4.2}  # eV/atom


def fcc(symbol: str, a: float, seed: int = 0) -> Atoms:
    """Return an fcc crystal in a randomly rotated, translated conventional or primitive cell."""
    rng = np.random.default_rng(seed)
    atoms = bulk(symbol, "fcc", a=a, cubic=bool(seed % 2))
    atoms.rotate(float(rng.uniform(0, 180)), rng.normal(size=3), rotate_cell=True)
    atoms.positions += rng.normal(size=3)
    return atoms


def b2() -> Atoms:
    return Atoms("AlCu", scaled_positions=[(0, 0, 0), (0.5, 0.5, 0.5)], cell=np.eye(3) * 2.95, pbc=True)


def relaxations(frames, per_atom, phase_ids=None, ends=None, independent=None) -> Relaxations:
    n = len(frames)
    energies = np.array([e * len(a) for e, a in zip(per_atom, frames, strict=True)])
    return Relaxations(
        frames=frames,
        energies=energies,
        enthalpies=energies,
        spreads=np.full(n, 0.01),
        ends=ends or [("converged", "")] * n,
        phase_ids=phase_ids or [""] * n,
        independent=np.ones(n, dtype=bool) if independent is None else np.array(independent),
    )


def run(relaxed: Relaxations, known=None, labelled=()):
    return rank(
        relaxed,
        known or {},
        labelled,
        elements=ELEMENTS,
        pressure_gpa=0.0,
        generation=3,
        settings=SelectConfig(),
    )


def test_same_crystals_are_one_phase_with_all_finds():
    frames = [fcc("Al", 4.05, seed) for seed in range(4)] + [fcc("Cu", 3.6), b2()]
    ranking = run(relaxations(frames, [-3.0] * 4 + [-4.0, -4.2]))
    found = {phase.phase_id.split("-")[0]: phase for phase in ranking.phases}
    assert set(found) == {"Al", "Cu", "AlCu"}
    assert found["Al"].history == History(times_found=4, generation_found=3)
    assert [phase.e_above_hull for phase in ranking.phases] == pytest.approx([0.0, 0.0, 0.0])
    assert ranking.aliases == {}


def test_heights_are_measured_from_the_hull():
    frames = [fcc("Al", 4.05), bulk("Al", "bcc", a=3.2), fcc("Cu", 3.6), b2()]
    ranking = run(relaxations(frames, [-3.0, -2.9, -4.0, -3.4]))
    heights = {phase.phase_id: phase.e_above_hull for phase in ranking.phases}
    assert sorted(heights.values()) == pytest.approx([0.0, 0.0, 0.1, 0.1])


def test_known_phase_keeps_its_name_and_mutations_are_no_rediscovery():
    frames = [fcc("Al", 4.05, 0), fcc("Al", 4.05, 1), fcc("Al", 4.05, 2), fcc("Cu", 3.6)]
    relaxed = relaxations(
        frames, [-3.0, -3.0, -3.0, -4.0], phase_ids=["Al-known", "", "", ""], independent=[True, True, False, True]
    )
    ranking = run(relaxed, {"Al-known": History(times_found=5, generation_found=1)})
    al = next(phase for phase in ranking.phases if phase.phase_id.startswith("Al-"))
    assert al.phase_id == "Al-known"
    assert al.history == History(times_found=6, generation_found=1)


def test_phases_that_fall_together_are_one_and_the_lost_name_leads_to_it():
    frames = [fcc("Al", 4.05, 0), fcc("Al", 4.05, 1), fcc("Cu", 3.6)]
    relaxed = relaxations(frames, [-3.0, -3.0, -4.0], phase_ids=["Al-a", "Al-b", ""])
    ranking = run(relaxed, {"Al-a": History(2, 1), "Al-b": History(3, 2)})
    (al,) = [phase for phase in ranking.phases if phase.phase_id.startswith("Al-")]
    assert al.history == History(times_found=5, generation_found=1)
    assert ranking.aliases == {({"Al-a", "Al-b"} - {al.phase_id}).pop(): al.phase_id}


def test_unsound_structures_are_flagged_and_no_phase():
    frames = [fcc("Al", 4.05), fcc("Cu", 3.6), bulk("Al", "bcc", a=2.0)]
    ends = [("converged", ""), ("converged", ""), ("unsafe", "too_close")]
    ranking = run(relaxations(frames, [-3.0, -4.0, np.nan], ends=ends))
    assert [len(flags) > 0 for flags in ranking.flags] == [False, False, True]
    assert len(ranking.phases) == 2


def test_missing_element_is_taken_from_the_labels_or_named():
    frames = [fcc("Al", 4.05)]
    with pytest.raises(DataError, match="element Cu"):
        run(relaxations(frames, [-3.0]))
    labelled = [fcc("Cu", 3.6), fcc("Al", 4.1)]
    for label, energy in zip(labelled, (-4.0, -2.9), strict=True):
        label.calc = SinglePointCalculator(label, energy=energy * len(label))
    ranking = run(relaxations(frames, [-3.0]), labelled=labelled)
    assert [phase.e_above_hull for phase in ranking.phases] == pytest.approx([0.0])
