import time
import warnings
from collections import Counter
from functools import partial

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.geometry import get_distances

from csp.compositions import plan_compositions
from csp.config import GenerateConfig
from csp.errors import ConfigError
from csp.generate import Generated, generate
from csp.generate.pool import Pool, Request
from csp.generate.symmetric import RandomCrystals
from csp.generate.trial import Trial
from csp.generate.wyckoff import N_GROUPS, space_group
from csp.geometry import least_excess
from csp.knowledge import Knowledge

MG_CA_H = ("Mg", "Ca", "H")


def _make(elements: tuple[str, ...], pressure: float, n: int, *, seed: int = 1, **settings: object) -> Generated:
    knowledge = Knowledge.initial(elements, pressure)
    return generate(
        GenerateConfig.model_validate(settings), knowledge, elements=elements, n=n, seed=np.random.SeedSequence(seed)
    )


def _excess(atoms: Atoms, knowledge: Knowledge, scale: float = 1.0) -> float:
    """Least distance minus what is allowed, over all periodic images, by ASE: the oracle."""
    supercell = atoms.repeat(3)
    limit = knowledge.distance_matrix(supercell.numbers)[: len(atoms)] * scale
    distances = get_distances(atoms.positions + np.array([1, 1, 1]) @ atoms.cell.array, supercell.positions)[1]
    distances[distances < 1e-8] = np.inf
    return float((distances - limit).min())


def test_no_pair_is_below_its_minimum():
    knowledge = Knowledge.initial(MG_CA_H, 200.0)
    for atoms in _make(MG_CA_H, 200.0, 20).atoms:
        assert _excess(atoms, knowledge) > -1e-9


def test_the_same_seed_gives_the_same_crystals_whatever_else_is_made():
    few, many = _make(("Mg", "O"), 0.0, 12, compositions=("MgO",)), _make(("Mg", "O"), 0.0, 12, compositions=("MgO",))
    for a, b in zip(few.atoms, many.atoms, strict=True):
        assert (a.positions == b.positions).all()
        assert (a.cell.array == b.cell.array).all()


def test_counts_add_up():
    made = _make(("Mg", "O"), 0.0, 40, compositions=("MgO", "Mg2O"), atoms=(2, 12))
    assert made.asked == 40
    assert made.made == len(made.atoms)
    assert made.asked == made.made + sum(made.refused.values())


def test_a_crystal_carries_where_it_came_from():
    atoms = _make(("Cu",), 0.0, 1, compositions=("Cu",)).atoms[0]
    assert atoms.info["origin"] == "random"
    assert atoms.info["formula"] == "Cu"
    assert 1 <= atoms.info["space_group"] <= 230
    assert {"family", "lineage"} <= set(atoms.info)


def test_a_volume_that_cannot_hold_the_spheres_is_refused_not_violated():
    made = _make(("Cu",), 0.0, 5, compositions=("Cu",), distance_scale=3.0)
    assert made.made == 0
    assert made.refused == {"too_dense": 5}


@pytest.mark.parametrize(("distance", "reason"), [(5.0, "crowded"), (60.0, "too_dense")], ids=["tight", "hopeless"])
def test_unlike_atoms_that_cannot_keep_apart_are_refused_soon(distance: float, reason: str):
    knowledge = Knowledge.initial(("Mg", "O"), 0.0, distances={"Mg-O": distance})
    settings = GenerateConfig(atoms=(16, 20), compositions=("MgO",), formula_units=(8, 10), prototype_share=0.0)
    started = time.perf_counter()
    result = generate(settings, knowledge, elements=("Mg", "O"), n=6, seed=np.random.SeedSequence(1))
    assert result.refused == {reason: 6}
    assert time.perf_counter() - started < 30


def test_a_group_that_cannot_hold_the_atoms_is_refused():
    settings = GenerateConfig(formula_units=(1, 1), atoms=(1, 1), space_groups=(230,))
    knowledge = Knowledge.initial(("Cu",), 0.0)
    made = generate(settings, knowledge, elements=("Cu",), n=3, seed=np.random.SeedSequence(1), plan=[{"Cu": 1}] * 3)
    assert made.refused == {"no_group": 3}


def test_listed_compositions_keep_their_shares_where_groups_hold_only_some_cells():
    settings = {"compositions": ("MgO", "Mg2O"), "space_groups": (205,), "atoms": (1, 24), "distance_scale": 0.5}
    made = _make(("Mg", "O"), 0.0, 20, prototype_share=0.0, **settings)
    assert not made.refused
    assert Counter(atoms.info["formula"] for atoms in made.atoms) == {"MgO": 10, "Mg2O": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compositions": ("MgF2",)}, "contains F"),
        ({"compositions": ("MgO)",)}, "expected a formula"),
        ({"compositions": ("Mg30O30",), "atoms": (2, 16)}, "60 atoms per formula unit"),
        ({"element_ranges": {"Mg": (0.9, 0.95)}, "atoms": (2, 4)}, "widen one of"),
        ({"space_groups": (225,), "symmetry_operations": (1, 4)}, "symmetry"),
        ({"compositions": ("MgO", "Mg5O7"), "formula_units": (1, 1), "space_groups": (225,)}, "hold Mg5O7 with 1 to 1"),
    ],
    ids=["foreign element", "no formula", "too large", "empty range", "no group", "impossible formula"],
)
def test_settings_that_can_never_be_met_are_an_error(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        _make(("Mg", "O"), 0.0, 2, **settings)


def _operations(atoms: Atoms) -> int:
    """Count the symmetry operations that spglib finds: the oracle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=1e-4)
    return 0 if found is None else len(found["rotations"])


def _has(atoms: Atoms, trial: Trial) -> bool:
    """Tell whether spglib finds each operation that the generator used: a supergroup of the group asked for."""
    rotations, translations = trial.operations()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=1e-4)
    shift = translations[:, None] - found["translations"]
    same = (np.rint(rotations)[:, None] == found["rotations"]).all(axis=(2, 3))
    return bool((same & (np.abs(shift - np.rint(shift)).max(axis=2) < 1e-3)).any(axis=1).all())


def test_all_230_groups_are_reached_and_found_again():
    knowledge = Knowledge.initial(("Mg", "O"), 0.0)
    rng = np.random.default_rng(1)
    asked = 0
    kept: list[bool] = []
    for number in range(1, N_GROUPS + 1):
        settings = GenerateConfig(
            space_groups=(number,), symmetric_fraction=1.0, atoms=(4, 32), formula_units=(1, 32), max_attempts=80
        )
        crystals = RandomCrystals(settings, knowledge)
        plan = [cell for cell in plan_compositions(("Mg", "O"), settings, rng, 60) if crystals.possible(cell)][:2]
        requests = [Request(i, partial(crystals.propose, cell), rng) for i, cell in enumerate(plan)]
        made: list[Trial] = []

        def accept(request: Request, atoms: Atoms, made: list[Trial] = made) -> None:
            made.append(request.proposal.trial)
            kept.append(_has(atoms, request.proposal.trial))

        Pool(settings, knowledge, ("Mg", "O")).work(requests, accept)
        assert {len(trial.operations()[0]) for trial in made} == {space_group(number).order}, number
        asked += len(plan)
    assert sum(kept) > 0.99 * len(kept)
    assert len(kept) >= 0.97 * asked


def test_a_large_sample_keeps_its_distances():
    knowledge = Knowledge.initial(MG_CA_H, 200.0)
    result = _make(MG_CA_H, 200.0, 600, atoms=(1, 20), distance_scale=1.1)
    worst = min(least_excess(atoms, 1.1 * knowledge.distance_matrix(atoms.numbers)) for atoms in result.atoms)
    assert worst > -1e-9
    assert result.made > 0.95 * result.asked


def test_a_crystal_does_not_depend_on_those_made_beside_it():
    knowledge = Knowledge.initial(MG_CA_H, 200.0)
    plan = [{"Mg": 1, "Ca": 2, "H": 9}, {"Ca": 1, "H": 6}, {"Mg": 3, "H": 4}] * 10
    seed = np.random.SeedSequence(5, spawn_key=(1, 0, 2))
    settings = GenerateConfig(max_attempts=100)
    few, many = (
        generate(settings, knowledge, elements=MG_CA_H, n=n, seed=seed, plan=plan[:n]).atoms for n in (4, len(plan))
    )
    for a, b in zip(few, many[:4], strict=True):
        assert a.info == b.info
        assert (a.positions == b.positions).all()
        assert (a.cell.array == b.cell.array).all()


NASTY = [
    (("Mg", "Ca", "H"), {"compositions": ("Mg7Ca11H41",), "atoms": (2, 60)}),
    (("Cs", "H"), {"compositions": ("Cs29H",), "atoms": (2, 60), "formula_units": (1, 2)}),
    (("Be", "P", "N", "O"), {"compositions": ("Be13P13N13O1",), "atoms": (2, 40)}),
    (("Cu",), {"compositions": ("Cu59",), "atoms": (59, 59), "symmetry_operations": (24, 48)}),
    (("Mg", "O"), {"distance_scale": 1.6, "atoms": (2, 30)}),
    (("Mg", "O"), {"space_groups": (230,), "compositions": ("Mg4O3",), "atoms": (2, 60)}),
]


@pytest.mark.parametrize(("elements", "settings"), NASTY, ids=[str(i) for i in range(len(NASTY))])
def test_nasty_requests_end_soon(elements: tuple[str, ...], settings: dict[str, object]):
    started = time.perf_counter()
    result = _make(elements, 0.0, 4, prototype_share=0.0, symmetric_fraction=1.0, max_attempts=10, **settings)
    assert result.made + sum(result.refused.values()) == 4
    assert time.perf_counter() - started < 30


def test_a_structure_gives_up_when_its_time_is_over():
    knowledge = Knowledge.initial(("Mg", "O"), 0.0, distances={"Mg-O": 5.0})
    settings = GenerateConfig(
        atoms=(16, 20), compositions=("MgO",), formula_units=(8, 10), max_attempts=1_000_000, time_limit_s=0.3
    )
    plan = [{"Mg": 8, "O": 8}] * 4
    started = time.perf_counter()
    result = generate(settings, knowledge, elements=("Mg", "O"), n=4, seed=np.random.SeedSequence(1), plan=plan)
    assert result.refused == {"time": 4}
    assert time.perf_counter() - started < 30


def test_the_clathrate_of_the_paper_is_reachable():
    options = {
        "space_groups": (223,),
        "symmetric_fraction": 1.0,
        "max_attempts": 1,
        "unpushed_attempts": 0,
        "prototype_share": 0.0,
    }
    result = _make(MG_CA_H, 200.0, 200, atoms=(54, 54), compositions=("Mg2Ca6H46",), **options)
    assert result.made > 20
    sites = [sorted(Counter(zip(a.get_chemical_symbols(), _orbits(a), strict=True)).values()) for a in result.atoms]
    assert [2, 6, 6, 16, 24] in sites


def _orbits(atoms: Atoms) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
        data = spglib.get_symmetry_dataset(cell, symprec=1e-4)
    orbits: list[int] = data.equivalent_atoms.tolist()
    return orbits


def test_the_number_of_symmetry_operations_is_chosen():
    result = _make(("Mg", "O"), 0.0, 30, symmetric_fraction=1.0, symmetry_operations=(8, 16), prototype_share=0.0)
    assert result.made > 25
    assert {space_group(atoms.info["space_group"]).order for atoms in result.atoms} == {8, 12, 16}


def test_crystals_without_symmetry_are_made_where_asked_for():
    result = _make(("Mg", "O"), 0.0, 20, symmetric_fraction=0.0, atoms=(4, 12), prototype_share=0.0)
    assert {atoms.info["space_group"] for atoms in result.atoms} == {1}
    assert sum(_operations(atoms) == 1 for atoms in result.atoms) >= 18


def test_atoms_are_counted_in_the_primitive_cell():
    options = {"compositions": ("MgO",), "space_groups": (225,), "symmetric_fraction": 1.0, "prototype_share": 0.0}
    result = _make(("Mg", "O"), 0.0, 4, atoms=(2, 2), **options)
    assert result.made == 4
    for atoms in result.atoms:
        assert sorted(atoms.get_chemical_symbols()) == ["Mg", "O"]
        assert _operations(atoms) == 48


@pytest.mark.parametrize("key", [(1, 0, 1), (2, 0, 0)], ids=["next chunk", "next generation"])
def test_another_chunk_or_generation_gives_other_crystals(key: tuple[int, ...]):
    knowledge = Knowledge.initial(("Si",), 0.0)
    settings = GenerateConfig(prototype_share=0.0)
    one, two = (
        generate(settings, knowledge, elements=("Si",), n=6, seed=np.random.SeedSequence(4, spawn_key=spawn_key))
        for spawn_key in ((1, 0, 0), key)
    )
    assert not {atoms.get_volume() for atoms in one.atoms} & {atoms.get_volume() for atoms in two.atoms}


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({"space_groups": (205,)}, {205}),
        ({"space_groups": (1, 205)}, {1, 205}),
        ({"symmetry_operations": (24, 48), "atoms": (1, 6)}, set(range(191, 195)) | set(range(200, 231))),
    ],
    ids=["205", "1 and 205", "operations"],
)
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_only_the_groups_of_the_settings_are_made_and_planned(
    settings: dict[str, object], groups: set[int], fraction: float
):
    result = _make(("Mg", "O"), 0.0, 30, symmetric_fraction=fraction, prototype_share=0.0, **settings)
    assert result.refused.get("no_group", 0) == 0
    assert result.made > 25
    assert {atoms.info["space_group"] for atoms in result.atoms} <= groups
