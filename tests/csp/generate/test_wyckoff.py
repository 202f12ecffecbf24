import gzip
import json
from pathlib import Path

import numpy as np
import pymatgen.analysis.prototypes as tables
import pytest

from csp.generate.occupation import filler
from csp.generate.wyckoff import N_GROUPS, space_group

TABLES = Path(tables.__file__).parent


def _table(name: str) -> dict[str, dict[str, int]]:
    with gzip.open(TABLES / f"wyckoff-position-{name}.json.gz", "rt") as stream:
        content: dict[str, dict[str, int]] = json.load(stream)
    return content


def test_derived_positions_agree_with_the_tables_of_all_230_groups():
    multiplicities, freedoms = _table("multiplicities"), _table("params")
    for number in range(1, N_GROUPS + 1):
        group = space_group(number)
        centring = round(1 / abs(np.linalg.det(group.basis)))
        derived = sorted((p.multiplicity * centring, p.freedom) for p in group.positions)
        listed = multiplicities[str(number)]
        expected = sorted((m, freedoms[str(number)].get(letter, 0)) for letter, m in listed.items())
        assert derived == expected, number


@pytest.mark.parametrize("number", [1, 14, 62, 146, 166, 199, 223, 225, 227, 230])
def test_orbits_are_closed_under_the_group(number: int):
    group = space_group(number)
    rng = np.random.default_rng(number)
    for position in group.positions:
        x = position.projector @ rng.random(3) + position.offset
        orbit = position.rotations @ x + position.translations
        assert np.allclose((orbit[0] - x + 0.5) % 1 - 0.5, 0, atol=1e-9)
        images = np.einsum("nij,mj->nmi", group.rotations, orbit) + group.translations[:, None]
        gap = images[:, :, None] - orbit
        assert (np.abs(gap - np.rint(gap)).max(axis=-1) < 1e-9).any(axis=-1).all()


def test_positions_without_freedom_are_used_once():
    rng = np.random.default_rng(1)
    for _ in range(50):
        chosen = filler(221).draw((1, 1, 3), rng)
        assert chosen is not None
        fixed = [index for _, index in chosen if space_group(221).positions[index].freedom == 0]
        assert len(fixed) == len(set(fixed))


def test_a_filling_holds_exactly_the_atoms_asked_for():
    rng = np.random.default_rng(2)
    for number in range(1, N_GROUPS + 1, 7):
        counts = (4, 3, 8)
        chosen = filler(number).draw(counts, rng)
        assert (chosen is not None) == filler(number).possible(counts)
        for kind, count in enumerate(counts) if chosen else ():
            assert sum(space_group(number).positions[i].multiplicity for k, i in chosen or () if k == kind) == count


def test_impossible_counts_are_known_at_once():
    assert not filler(230).possible((1,))
    assert not filler(2).possible((9, 1)) or filler(2).possible((1, 9))
    assert not filler(4).possible((1,))  # every orbit of P2_1 has two atoms
