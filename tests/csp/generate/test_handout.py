"""What is handed out keeps to the settings, whatever its source; what cannot is refused with a reason."""

import logging
import warnings
from collections import Counter

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk

from csp.compositions import CompositionRule
from csp.config import GenerateConfig
from csp.generate import Generated, generate
from csp.generate.mutations import Mutations
from csp.generate.pool import Pool, Proposal, Request
from csp.generate.prototypes import library
from csp.generate.spread import spread
from csp.generate.trial import plain_trial
from csp.generate.wyckoff import space_group
from csp.knowledge import Knowledge

SYSTEM = ("Mg", "O")
KNOWLEDGE = Knowledge.initial(SYSTEM, 0.0)
SEED = np.random.SeedSequence(11)


def _generate(n: int, *, parents=(), seeds=(), plan=None, **settings: object) -> Generated:
    config = GenerateConfig.model_validate(settings)
    return generate(config, KNOWLEDGE, elements=SYSTEM, n=n, seed=SEED, parents=parents, seeds=seeds, plan=plan)


def _found(atoms: Atoms, symprec: float = 1e-3) -> tuple[np.ndarray, np.ndarray, int]:
    """Rotations, translations and the number of the space group that spglib finds: the oracle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        data = spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec)
    return data.rotations, data.translations, data.number


@pytest.mark.parametrize(
    ("cell", "settings", "reason"),
    [
        ({"Mg": 1}, {"atoms": (2, 4)}, "atoms"),
        ({"Mg": 3, "O": 3}, {"atoms": (2, 4)}, "atoms"),
        ({"Mg": 3, "O": 3}, {"formula_units": (1, 2)}, "formula_units"),
        ({"Mg": 1, "O": 2}, {"compositions": ("MgO",)}, "composition"),
        ({"Mg": 1, "O": 2}, {"charge_balanced": True}, "composition"),
        ({"Mg": 3, "O": 1}, {"element_ranges": {"Mg": (0.0, 0.5)}}, "composition"),
    ],
)
def test_a_cell_outside_the_settings_is_refused(cell: dict[str, int], settings: dict[str, object], reason: str):
    made = _generate(2, plan=[cell] * 2, max_attempts=3, **settings)
    assert made.refused == {reason: 2}
    assert not made.atoms


@pytest.mark.parametrize(
    "settings",
    [
        {"atoms": (4, 8)},
        {"atoms": (1, 12), "formula_units": (2, 3)},
        {"atoms": (3, 12), "compositions": ("Mg2O2", "MgO2")},
        {"atoms": (2, 9), "charge_balanced": True, "element_ranges": {"O": (0.3, 1.0)}},
    ],
    ids=["atoms", "formula units", "listed", "ranges"],
)
@pytest.mark.parametrize("source", ["prototype_share", "mutation_share"])
def test_prototypes_and_mutations_keep_to_the_settings(source: str, settings: dict[str, object]):
    shares = {"random_share": 0.0, "prototype_share": 0.0, "mutation_share": 0.0} | {source: 1.0}
    rock = bulk("MgO", "rocksalt", a=4.21)
    made = _generate(60, parents=(rock, rock.repeat((2, 1, 1)), bulk("Mg")), **settings, **shares)
    rule = CompositionRule(SYSTEM, GenerateConfig.model_validate(settings))
    assert made.made > 20
    assert {rule.objection(Counter(atoms.get_chemical_symbols())) for atoms in made.atoms} == {""}
    assert {atoms.info["origin"] for atoms in made.atoms} == {source.removesuffix("_share")}


def test_parents_that_no_variation_brings_into_the_settings_are_refused_with_a_reason():
    made = _generate(4, parents=(bulk("Mg"),), atoms=(30, 40), random_share=0, prototype_share=0, mutation_share=1)
    assert made.refused == {"no_mutation": 4}


def test_prototypes_keep_their_space_group_when_they_are_pushed_apart():
    shares = {"random_share": 0.0, "prototype_share": 1.0, "mutation_share": 0.0}
    tight = _generate(120, unpushed_attempts=0, volume_jitter=0.0, **shares)
    pushed = _generate(120, unpushed_attempts=0, volume_jitter=0.0, distance_scale=1.3, **shares)
    assert any(
        not np.allclose(a.cell.array, b.cell.array) for a, b in zip(tight.atoms, pushed.atoms, strict=False)
    )  # something had to be pushed
    for atoms in pushed.atoms:
        rotations, _, number = _found(atoms)
        assert number == atoms.info["space_group"] or len(rotations) >= space_group(atoms.info["space_group"]).order


def test_a_crystal_that_lost_the_symmetry_asked_for_is_refused():
    salt = next(prototype for prototype in library() if prototype.name == "AB_cF8_225_a_b")
    cell = salt.cell * (2 * 12.0 / abs(np.linalg.det(salt.cell))) ** (1 / 3)
    shift = np.zeros((2, 3))

    def propose(_: np.random.Generator) -> Proposal:
        return Proposal(plain_trial(cell, np.array([0, 1]), salt.fractions + shift, salt.operations), {})

    pool = Pool(GenerateConfig(max_attempts=2), KNOWLEDGE, SYSTEM)
    made: list[Atoms] = []
    for shift[1, 0] in (0.0, 0.01):
        refused = pool.work([Request(0, propose, np.random.default_rng(0))], lambda _, atoms: made.append(atoms))
    assert len(made) == 1
    assert refused == {"symmetry": 1}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_coordinates_that_are_no_numbers_are_never_handed_out():
    fractions = np.array([[0.0, 0.0, 0.0], [np.nan, 0.5, 0.5]])
    trial = plain_trial(np.eye(3) * 3.0, np.array([0, 1]), fractions)
    pool = Pool(GenerateConfig(max_attempts=2, max_push_steps=0), KNOWLEDGE, SYSTEM)
    made: list[Atoms] = []
    request = Request(0, lambda _: Proposal(trial, {}), np.random.default_rng(0))
    assert pool.work([request], lambda _, atoms: made.append(atoms)) == {"crowded": 1}
    assert not made


@pytest.mark.parametrize("sign", [1, -1], ids=["right-handed", "left-handed"])
def test_symmetry_is_followed_into_the_reduced_cell(sign: int):
    for prototype in library()[::4]:
        trial = plain_trial(sign * prototype.cell, prototype.kinds, prototype.fractions, prototype.operations)
        assert trial.is_symmetric(trial.fractions()), prototype.name
        atoms = Atoms(trial.kinds + 1, cell=trial.cell, scaled_positions=trial.fractions(), pbc=True)
        assert len(_found(atoms, 1e-4)[0]) == len(trial.operations()[0]), prototype.name


def test_a_strained_cell_is_not_symmetric():
    salt = next(prototype for prototype in library() if prototype.name == "AB_cF8_225_a_b")
    strained = salt.cell @ np.diag([1.01, 1.0, 1.0])
    trial = plain_trial(strained, salt.kinds, salt.fractions, salt.operations)
    assert not trial.is_symmetric(trial.fractions())


@pytest.mark.parametrize("settings", [{"space_groups": (194, 225)}, {"symmetry_operations": (24, 48)}])
def test_the_space_groups_of_the_settings_bind_prototypes(settings: dict[str, object]):
    made = _generate(40, random_share=0, prototype_share=1, mutation_share=0, **settings)
    groups = {atoms.info["space_group"] for atoms in made.atoms}
    assert made.made == 40
    assert groups <= {194, 225} if "space_groups" in settings else all(space_group(g).order >= 24 for g in groups)


def test_seeds_are_handed_out_as_they_are_and_a_warning_tells_which_do_not_fit(caplog: pytest.LogCaptureFixture):
    large, small = bulk("MgO", "rocksalt", a=4.21).repeat(3), bulk("Mg")
    large.set_cell(large.cell.array * 1.02, scale_atoms=True)
    settings = {"atoms": (3, 16), "compositions": ("Mg2O2",), "random_share": 1, "mutation_share": 0}
    with caplog.at_level(logging.WARNING):
        made = _generate(4, seeds=(large, small, bulk("MgO", "rocksalt", a=4.25).repeat((2, 1, 1))), **settings)
    seeds = [atoms for atoms in made.atoms if atoms.info["origin"] == "seed"]
    assert [len(atoms) for atoms in seeds] == [54, 2, 4]
    assert seeds[0].get_volume() == pytest.approx(large.get_volume())
    assert "of 3 seeds, 2 do not fit the settings (atoms 2) and are tried all the same" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _generate(4, seeds=(large, small, bulk("MgO", "rocksalt", a=4.25).repeat((2, 1, 1))), **settings)
    assert not caplog.text  # once is enough


def test_a_seed_whose_atoms_are_too_close_is_pushed_apart_and_says_so(caplog: pytest.LogCaptureFixture):
    close = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    close.positions[0] += (0.8, 0.0, 0.0)
    with caplog.at_level(logging.WARNING):
        made = _generate(1, seeds=(close,))
    assert made.atoms[0].info["lineage"] == "pushed(seed 0)"
    assert "1 have atoms closer than the minimum distances, which are pushed apart" in caplog.text


def test_seeds_beyond_the_crystals_asked_for_are_told(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        _generate(1, seeds=[bulk("MgO", "rocksalt", a=4.21)] * 2)
    assert "of 2 seeds, the first 1 are tried" in caplog.text


def test_fitting_seeds_need_no_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        made = _generate(1, seeds=(bulk("MgO", "rocksalt", a=4.21),))
    assert made.atoms[0].info["lineage"] == "seed 0"
    assert not caplog.text


def test_pushing_ends_when_the_time_of_a_crystal_is_over():
    rng = np.random.default_rng(3)
    cell, fractions = np.eye(3) * 4.3, rng.random((8, 3))
    trials = [plain_trial(cell, np.repeat([0, 1], 4), fractions) for _ in range(2)]
    good, spent = spread(trials, KNOWLEDGE.distance_matrix((12, 8)), 400, np.array([0.0, np.inf]))
    assert good.tolist() == [False, True]
    assert 0 < spent[0] < spent[1]


def test_mutating_ends_when_the_time_is_over():
    settings = GenerateConfig(compositions=("MgO",), time_limit_s=1e-12)
    mutations = Mutations(settings, KNOWLEDGE, SYSTEM, [bulk("Mg")])
    assert mutations.propose(np.random.default_rng(0)) == "time"


def test_one_plain_copy_of_a_seed_in_all_chunks_of_a_generation():
    rocksalt = bulk("MgO", "rocksalt", a=4.21)
    chunks = [
        generate(
            GenerateConfig(),
            KNOWLEDGE,
            elements=SYSTEM,
            n=3,
            seed=np.random.SeedSequence(1, spawn_key=(2, 0, chunk)),
            seeds=(rocksalt,),
        )
        for chunk in range(3)
    ]
    assert [sum(a.info["origin"] == "seed" for a in made.atoms) for made in chunks] == [1, 0, 0]


def test_a_conventional_cell_is_varied_in_its_primitive_one():
    conventional = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    made = _generate(30, seeds=(conventional,), atoms=(2, 4), random_share=0.0, prototype_share=0.0, seed_share=1.0)
    plain, *varied = [len(atoms) for atoms in made.atoms]
    assert plain == 8
    assert varied
    assert set(varied) <= {2, 3, 4}
