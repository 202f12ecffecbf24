"""The choice fills its quotas exactly, knows its reasons, and never takes the same thing twice."""

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.typing import NDArray

from csp.candidates import Candidates
from csp.config import AdvanceConfig, SelectConfig
from csp.errors import ConfigError, DataError
from csp.fingerprint import distances, fingerprints
from csp.flags import Flag
from csp.hull import formula_of
from csp.select import Choice, Reason, choose, choose_final, choose_initial, quotas

ELEMENTS = ("Mg", "Si")
SETTINGS = SelectConfig(n_labels=20, window_ev=1.0)
SEEDS = range(4)


def random_crystal(rng: np.random.Generator) -> Atoms:
    n = int(rng.integers(1, 7))
    cell = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    atoms = Atoms(rng.choice(ELEMENTS, n), cell=cell, scaled_positions=rng.random((n, 3)), pbc=True)
    atoms.set_cell(atoms.cell.array * (18.0 * n / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
    return atoms


def generation(seed: int, n: int = 150, unsafe: float = 0.2, labelled: float = 0.2) -> Candidates:
    rng = np.random.default_rng(seed)
    frames = [random_crystal(rng) for _ in range(n)]
    names = list(Flag)
    flags = [(names[int(rng.integers(len(names)))],) if rng.random() < unsafe else () for _ in range(n)]
    return Candidates(
        frames=frames,
        fingerprints=fingerprints(frames, ELEMENTS),
        e_above_hull=np.where([bool(f) for f in flags], np.nan, rng.exponential(0.5, n)),
        spread=rng.gamma(2.0, 0.01, n),
        flags=flags,
        labelled=rng.random(n) < labelled,
    )


def chosen_for(choices: list[Choice], reason: Reason) -> list[int]:
    return [c.index for c in choices if c.reason is reason]


def reordered(c: Candidates, order: NDArray[np.int64]) -> Candidates:
    return Candidates(
        frames=[c.frames[i] for i in order],
        fingerprints=c.fingerprints[order],
        e_above_hull=c.e_above_hull[order],
        spread=c.spread[order],
        flags=[c.flags[i] for i in order],
        labelled=c.labelled[order],
    )


@pytest.mark.parametrize("n", range(1, 30))
def test_quotas_add_up(n: int) -> None:
    shares = quotas(SETTINGS, n)
    assert sum(shares.values()) == n
    assert all(abs(shares[r] - n * getattr(SETTINGS, r.value)) < 1 for r in shares)  # the default weights add up to one


@pytest.mark.parametrize("seed", SEEDS)
def test_quotas_are_filled_exactly(seed: int) -> None:
    choices = choose(generation(seed), SETTINGS, np.random.default_rng(0))
    assert Counter(c.reason for c in choices) == quotas(SETTINGS, 20)
    assert len({c.index for c in choices}) == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_labelled_and_nothing_outside_the_window_is_chosen(seed: int) -> None:
    candidates = generation(seed)
    for choice in choose(candidates, SETTINGS, np.random.default_rng(0), n=60):
        assert not candidates.labelled[choice.index]
        if choice.reason is Reason.UNSAFE:
            assert candidates.flags[choice.index]
        else:
            assert not candidates.flags[choice.index]
            assert candidates.e_above_hull[choice.index] <= SETTINGS.window_ev


@pytest.mark.parametrize("seed", SEEDS)
def test_the_stable_are_the_lowest_by_optimistic_height_within_each_formula(seed: int) -> None:
    candidates = generation(seed)
    picked = chosen_for(choose(candidates, SETTINGS, np.random.default_rng(0)), Reason.STABLE)
    per_formula = Counter(candidates.formulas[i] for i in picked)
    assert max(per_formula.values()) <= SETTINGS.per_composition
    heights = candidates.e_above_hull - SETTINGS.optimism * candidates.spread
    for formula in per_formula:
        mine = [i for i in picked if candidates.formulas[i] == formula]
        others = [
            int(i)
            for i in np.flatnonzero(candidates.sound & ~candidates.labelled)
            if candidates.formulas[i] == formula and i not in mine
        ]
        assert mine == sorted(mine, key=lambda i: heights[i])
        assert all(heights[i] >= heights[mine[-1]] for i in others)


def only_stable(
    heights: list[float], spreads: list[float], formulas: list[str], n: int, optimism: float = SETTINGS.optimism
) -> list[int]:
    """Choose by the reason stable alone among distorted rock-salt-like crystals of given formulas."""
    rng = np.random.default_rng(0)
    frames = []
    for formula in formulas:
        atoms = Atoms(formula, cell=5.0 * np.eye(3), pbc=True)
        atoms.set_scaled_positions(rng.random((len(atoms), 3)))
        frames.append(atoms)
    candidates = Candidates(
        frames,
        fingerprints(frames, ELEMENTS),
        np.array(heights),
        np.array(spreads),
        [()] * len(frames),
        np.zeros(len(frames), dtype=bool),
    )
    settings = SETTINGS.model_copy(update={"uncertain": 0.0, "unsafe": 0.0, "diverse": 0.0, "optimism": optimism})
    return [c.index for c in choose(candidates, settings, np.random.default_rng(0), n=n)]


def test_a_phase_that_the_model_cannot_place_is_looked_at() -> None:
    """Antifluorite Mg2Si was 99 +- 150 meV above the hull in a real search, behind others of 60 +- 20."""
    heights, spreads = [0.06, 0.07, 0.08, 0.099], [0.02, 0.02, 0.02, 0.150]
    assert only_stable(heights, spreads, ["Mg2Si"] * 4, 1) == [3]


def test_formulas_take_turns_when_their_heights_are_alike() -> None:
    heights, spreads = [0.0, 0.01, 0.02, 0.05, 0.06, 0.07], [0.1] * 6
    assert only_stable(heights, spreads, ["Mg2"] * 3 + ["Mg2Si"] * 3, 4) == [0, 3, 1, 4]


def test_formulas_take_turns_however_great_the_optimism() -> None:
    heights, spreads = [0.0, 0.01, 0.02, 0.15, 0.16, 0.17], [0.1] * 6
    assert only_stable(heights, spreads, ["Mg2"] * 3 + ["Mg2Si"] * 3, 4, optimism=3.0) == [0, 3, 1, 4]


def test_equivalent_formula_units_are_one_composition() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for k in range(1, 7):
        atoms = bulk("MgSi", "rocksalt", a=5.0) * (k, 1, 1)
        atoms.positions += rng.normal(0, 0.5, atoms.positions.shape)
        frames.append(atoms)
    n = len(frames)
    candidates = Candidates(
        frames, fingerprints(frames, ELEMENTS), np.linspace(0, 0.1, n), np.zeros(n), [()] * n, np.zeros(n, dtype=bool)
    )
    only_stable = SETTINGS.model_copy(update={"uncertain": 0.0, "unsafe": 0.0, "diverse": 0.0, "per_composition": 2})
    picked = choose(candidates, only_stable, np.random.default_rng(0))
    assert chosen_for(picked, Reason.STABLE) == [0, 1]
    assert sorted(chosen_for(picked, Reason.DIVERSE)) == [2, 3, 4, 5]  # the rest of the quota goes on


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_uncertain_are_above_the_quantile_whatever_the_scale(scale: float) -> None:
    plain = generation(0)
    candidates = Candidates(
        plain.frames, plain.fingerprints, plain.e_above_hull, plain.spread * scale, plain.flags, plain.labelled
    )
    choices = choose(candidates, SETTINGS, np.random.default_rng(0))
    picked = chosen_for(choices, Reason.UNCERTAIN)
    inside = candidates.sound & (np.nan_to_num(candidates.e_above_hull, nan=np.inf) <= SETTINGS.window_ev)
    threshold = np.quantile(candidates.spread[inside], SETTINGS.uncertain_quantile)
    assert picked
    assert (candidates.spread[picked] > threshold).all()
    stable = chosen_for(choices, Reason.STABLE)
    rest = [i for i in np.flatnonzero(inside & ~candidates.labelled) if i not in picked and i not in stable]
    assert candidates.spread[picked].min() >= candidates.spread[rest].max()


def test_the_quota_of_a_missing_committee_goes_to_the_stable() -> None:
    plain = generation(1)
    silent = Candidates(
        plain.frames, plain.fingerprints, plain.e_above_hull, np.zeros(len(plain)), plain.flags, plain.labelled
    )
    counts = Counter(c.reason for c in choose(silent, SETTINGS, np.random.default_rng(0)))
    shares = quotas(SETTINGS, 20)
    assert counts[Reason.UNCERTAIN] == 0
    assert counts[Reason.STABLE] == shares[Reason.STABLE] + shares[Reason.UNCERTAIN]
    assert sum(counts.values()) == 20


def test_without_unsafe_structures_the_others_get_their_labels() -> None:
    counts = Counter(c.reason for c in choose(generation(2, unsafe=0.0), SETTINGS, np.random.default_rng(0)))
    assert counts[Reason.UNSAFE] == 0
    assert sum(counts.values()) == 20


def test_with_only_unsafe_structures_they_get_all_labels() -> None:
    candidates = generation(2, unsafe=1.1, labelled=0.0)
    counts = Counter(c.reason for c in choose(candidates, SETTINGS, np.random.default_rng(0)))
    assert counts == {Reason.UNSAFE: 20}


def test_every_flag_has_its_turn() -> None:
    candidates = generation(3, n=200, unsafe=0.5)
    picked = chosen_for(choose(candidates, SETTINGS, np.random.default_rng(0), n=5 * len(Flag)), Reason.UNSAFE)
    assert len(picked) == len(Flag)
    assert {candidates.flags[i][0] for i in picked} == set(Flag)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_diverse_are_farther_apart_than_chance(seed: int) -> None:
    candidates = generation(seed, unsafe=0.0, labelled=0.0)
    diverse = SelectConfig(stable=0, uncertain=0, unsafe=0, diverse=1, window_ev=100)
    picked = [c.index for c in choose(candidates, diverse, np.random.default_rng(0), n=15)]
    rng = np.random.default_rng(seed)
    chance = [rng.choice(len(candidates), 15, replace=False) for _ in range(20)]

    def nearest(indices: list[int] | NDArray[np.int64]) -> float:
        prints = candidates.fingerprints[indices]
        return float((distances(prints, prints) + np.eye(len(indices))).min())

    assert nearest(picked) > max(nearest(indices) for indices in chance)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_diverse_are_far_from_what_is_labelled(seed: int) -> None:
    frames = [bulk("Mg", "fcc", a=4.5), bulk("Mg", "hcp", a=3.2), bulk("Mg", "diamond", a=5.4)]
    known = np.array([True, False, False])
    candidates = Candidates(frames, fingerprints(frames, ELEMENTS), np.zeros(3), np.zeros(3), [()] * 3, known)
    diverse = SelectConfig(stable=0, uncertain=0, unsafe=0, diverse=1)
    assert choose(candidates, diverse, np.random.default_rng(seed), n=1) == [Choice(2, Reason.DIVERSE)]


def test_the_same_structure_is_not_chosen_twice() -> None:
    candidates = generation(4, n=60, labelled=0.0)
    twice = Candidates(
        frames=[*candidates.frames, *(atoms * (2, 1, 1) for atoms in candidates.frames)],
        fingerprints=np.concatenate([candidates.fingerprints] * 2),
        e_above_hull=np.concatenate([candidates.e_above_hull] * 2),
        spread=np.concatenate([candidates.spread] * 2),
        flags=[*candidates.flags, *candidates.flags],
        labelled=np.zeros(120, dtype=bool),
    )
    picked = [c.index % 60 for c in choose(twice, SETTINGS, np.random.default_rng(0), n=120)]
    assert len(picked) == len(set(picked))
    assert len(picked) > 40


def test_one_crystal_at_two_volumes_is_worth_two_labels() -> None:
    frames = [bulk("Mg", "fcc", a=4.5), bulk("Mg", "fcc", a=4.3), bulk("Mg", "fcc", a=4.501)]
    prints = fingerprints(frames, ELEMENTS)
    candidates = Candidates(frames, prints, np.array([0.0, 0.1, 0.2]), np.zeros(3), [()] * 3, np.zeros(3, dtype=bool))
    assert {c.index for c in choose(candidates, SETTINGS, np.random.default_rng(0))} == {0, 1}


def test_fewer_candidates_than_labels_are_all_chosen() -> None:
    candidates = generation(5, n=12, labelled=0.0)
    choices = choose(candidates, SETTINGS.model_copy(update={"window_ev": 100.0}), np.random.default_rng(0))
    assert sorted(c.index for c in choices) == list(range(12))


def test_no_candidates_give_no_choice() -> None:
    empty = Candidates([], np.zeros((0, 240)), np.zeros(0), np.zeros(0), [], np.zeros(0, dtype=bool))
    assert choose(empty, SETTINGS, np.random.default_rng(0)) == []
    assert choose(generation(0), SETTINGS, np.random.default_rng(0), n=0) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_candidates_does_not_matter(seed: int) -> None:
    candidates = generation(seed)
    order = np.random.default_rng(seed).permutation(len(candidates))
    plain = choose(candidates, SETTINGS, np.random.default_rng(9))
    shuffled = choose(reordered(candidates, order), SETTINGS, np.random.default_rng(9))
    assert [(int(order[c.index]), c.reason) for c in shuffled] == [(c.index, c.reason) for c in plain]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_does_not_matter_where_chance_begins(seed: int) -> None:
    candidates = generation(seed, unsafe=0.0, labelled=0.0)
    order = np.random.default_rng(seed).permutation(len(candidates))
    diverse = SelectConfig(stable=0, uncertain=0, unsafe=0, diverse=1, window_ev=100)
    plain = choose(candidates, diverse, np.random.default_rng(seed), n=8)
    shuffled = choose(reordered(candidates, order), diverse, np.random.default_rng(seed), n=8)
    assert [int(order[c.index]) for c in shuffled] == [c.index for c in plain]


@pytest.mark.parametrize("name", ["fingerprints", "e_above_hull", "spread", "flags", "labelled"])
def test_a_short_column_is_named(name: str) -> None:
    columns = {
        k: getattr(generation(0, n=5), k)
        for k in ("frames", "fingerprints", "e_above_hull", "spread", "flags", "labelled")
    }
    columns[name] = columns[name][:-1]
    with pytest.raises(DataError, match=f"expected 5 {name}, one per structure, got 4"):
        Candidates(**columns)


@pytest.mark.parametrize("name", ["e_above_hull", "spread"])
def test_a_sound_structure_needs_finite_numbers(name: str) -> None:
    columns = {"e_above_hull": np.zeros(2), "spread": np.zeros(2)}
    columns[name] = np.array([0.0, np.nan])
    frames = [bulk("Mg"), bulk("Si")]
    rest = {"frames": frames, "fingerprints": fingerprints(frames, ELEMENTS), "labelled": np.zeros(2, dtype=bool)}
    with pytest.raises(DataError, match=f"structure 1 has no flag but no finite {name}"):
        Candidates(flags=[(), ()], **rest, **columns)
    assert len(Candidates(flags=[(), (Flag.NOT_FINITE,)], **rest, **columns)) == 2


def initial(seed: int, n: int, size: int = 300) -> list[str]:
    rng = np.random.default_rng(seed)
    frames = [random_crystal(rng) for _ in range(size)]
    choices = choose_initial(frames, fingerprints(frames, ELEMENTS), ELEMENTS, SETTINGS, np.random.default_rng(1), n)
    assert len({c.index for c in choices}) == len(choices) == n
    assert {c.reason for c in choices} == {Reason.INITIAL}
    return [formula_of(frames[c.index]) for c in choices]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_labels_are_balanced_over_compositions(seed: int) -> None:
    counts = Counter(initial(seed, 40))
    assert counts["Mg"] >= SETTINGS.end_members
    assert counts["Si"] >= SETTINGS.end_members
    compounds = [k for name, k in counts.items() if name not in ELEMENTS]
    assert len(compounds) > 5
    assert max(compounds) - min(compounds) <= 1


def test_few_first_labels_go_to_the_elements() -> None:
    assert Counter(initial(0, 2)) == {"Mg": 1, "Si": 1}
    assert Counter(initial(0, 5)) >= Counter({"Mg": 2, "Si": 2})


def test_the_first_choice_does_not_depend_on_order() -> None:
    rng = np.random.default_rng(3)
    frames = [random_crystal(rng) for _ in range(80)]
    prints = fingerprints(frames, ELEMENTS)
    order = rng.permutation(80)
    plain = choose_initial(frames, prints, ELEMENTS, SETTINGS, np.random.default_rng(1), 30)
    shuffled = choose_initial(
        [frames[i] for i in order], prints[order], ELEMENTS, SETTINGS, np.random.default_rng(1), 30
    )
    assert [int(order[c.index]) for c in shuffled] == [c.index for c in plain]


def test_the_first_choice_leaves_doubles_out() -> None:
    frames = [bulk("Mg", "fcc", a=4.5) * (k, 1, 1) for k in (1, 2, 3)] + [bulk("Si", "diamond", a=5.4)]
    choices = choose_initial(frames, fingerprints(frames, ELEMENTS), ELEMENTS, SETTINGS, np.random.default_rng(1), 4)
    assert len(choices) == 2


def test_a_first_choice_without_an_element_is_an_error() -> None:
    frames = [bulk("Mg"), bulk("MgSi", "rocksalt", a=5.0)]
    prints = fingerprints(frames, ELEMENTS)
    with pytest.raises(DataError, match="no random crystal of the end member Si"):
        choose_initial(frames, prints, ELEMENTS, SETTINGS, np.random.default_rng(0), 10)
    with pytest.raises(ConfigError, match="at least one label for each of 2 elements, got 1"):
        choose_initial(frames, prints, ELEMENTS, SETTINGS, np.random.default_rng(0), 1)
    with pytest.raises(DataError, match="expected 2 fingerprints, got 1"):
        choose_initial(frames, prints[:1], ELEMENTS, SETTINGS, np.random.default_rng(0), 10)


def test_the_end_takes_the_nearest_phases() -> None:
    settings = AdvanceConfig(final_window_ev=0.05, final_max=3)
    choices = choose_final([0.04, 0.2, 0.0, 0.03, 0.01], list("abcde"), settings)
    assert choices == [Choice(2, Reason.FINAL), Choice(4, Reason.FINAL), Choice(3, Reason.FINAL)]
    assert [c.index for c in choose_final([0.04, 0.2, 0.0], list("abc"), settings)] == [2, 0]
    # one formula with many polymorphs must not crowd out a compound
    crowded = choose_final([0.0, 0.01, 0.02, 0.03, 0.04], ["Mg", "Mg", "Mg", "Mg", "Mg2Si"], settings)
    assert [c.index for c in crowded] == [0, 4, 1]
    with pytest.raises(DataError, match="one formula per height"):
        choose_final([0.0, 0.1], ["Mg"], settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stable": 0, "uncertain": 0, "unsafe": 0, "diverse": 0}, "expected one above 0"),
        ({"same_distance": 0.5}, "expected at most max_distance"),
        ({"bonds_scale": 0.3}, "bonds_scale_bounds"),
        ({"unsafe_fractions": (0.5, 0.2)}, "unsafe_fractions"),
        ({"symmetry_tolerances": (0.1, 0.0)}, "symmetry_tolerances"),
        ({"symmetry_tolerances": ()}, "symmetry_tolerances"),
        ({"n_label": 5}, "n_label"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectConfig.model_validate(values)
