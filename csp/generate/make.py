"""The one call that makes trial crystals from every source."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from pymatgen.core.structure import Structure

from csp.compositions import CompositionRule, listed_cells, plan_compositions
from csp.config import GenerateConfig
from csp.draw import even_draw
from csp.errors import ConfigError
from csp.generate.mutations import Mutations
from csp.generate.pool import Pool, Proposal, Proposer, Request
from csp.generate.prototypes import Prototypes
from csp.generate.seeds import is_tight, load_seeds, outside, substituted
from csp.generate.symmetric import RandomCrystals, allowed_groups
from csp.generate.trial import plain_trial
from csp.knowledge import Knowledge

logger = logging.getLogger(__name__)

REDRAWS = 10  # rounds in which contents that no allowed space group can hold are drawn again
MANY = 200  # contents drawn per round, at least
PLAN, SOURCES, CRYSTALS = range(3)  # branches of the seed


@dataclass(frozen=True)
class Generated:
    """Trial crystals and an account of them.

    Parameters
    ----------
    atoms
        The crystals, in the order of their requests; each satisfies the least distances over all periodic images, has
        at least the symmetry of its ``space_group``, and has a number of atoms and a composition that the settings
        allow; the latter two do not bind the plain copies of the user's seeds. ``atoms.info`` holds ``name``,
        ``origin`` (random, prototype, mutation, seed), ``space_group`` (that of the draw; 1 where nothing was asked
        for), ``formula`` (reduced), ``family`` (shared by everything derived from one ancestor) and ``lineage`` (how it
        came about, "" where it was drawn from nothing).
    asked
        Crystals asked for.
    made
        Crystals made.
    refused
        Refusals by reason; ``asked == made + sum(refused.values())``.
    """

    atoms: list[Atoms]
    asked: int
    made: int
    refused: dict[str, int] = field(default_factory=dict)


def generate(  # noqa: PLR0913 - one call serves every source
    settings: GenerateConfig,
    knowledge: Knowledge,
    *,
    elements: Sequence[str],
    n: int,
    seed: np.random.SeedSequence,
    plan: Sequence[Mapping[str, int]] | None = None,
    attempts: Mapping[str, int] | None = None,
    hull_distances: Mapping[str, float] | None = None,
    parents: Sequence[Atoms] = (),
    seeds: Sequence[Atoms | Structure] = (),
    part: tuple[int, int] = (0, 1),
) -> Generated:
    """Make trial crystals.

    Parameters
    ----------
    settings
        How crystals are made, and from which sources.
    knowledge
        Least distances and volumes at the pressure of the search.
    elements
        Chemical symbols of the system.
    n
        Crystals wanted.
    seed
        Source of all chance: the same seed and arguments give the same crystals on any machine, but for structures
        that are refused because their time is over.
    plan
        Atoms by element of each of the ``n`` cells, all random; None draws from every source and lets
        ``plan_compositions`` choose the contents of the random ones.
    attempts
        Crystals already tried, by reduced formula; for the plan.
    hull_distances
        Least enthalpy above the hull that is possible by reduced formula, eV/atom; for the plan.
    parents
        Good structures to mutate, the best first; ``info`` names each by ``name``, ``phase_id`` or ``seed``.
    seeds
        Structures that the user gives, besides the files of the settings. In those of other elements the system's own
        take the places of the foreign ones. One copy of each is handed out as it is, in the first chunk (that whose
        ``seed`` has no ``spawn_key`` or one that ends with 0): ``atoms``, ``formula_units`` and compositions bind what
        is made here, not what the user gives, and a warning counts the seeds that they do not fit. Atoms closer than
        the least distances are pushed apart, which the warning and the lineage tell. Variations of seeds keep to the
        settings; a seed whose primitive cell has more than the most atoms is not varied.
    part
        (k, m): make only the k-th of m parts of the ``n`` crystals, k from 0. The parts one after the other are the
        crystals that one call makes.

    Returns
    -------
    Generated
        Crystals and counts.

    Raises
    ------
    ConfigError
        If the settings can never be met: no composition, no space group, a listed composition that no allowed space
        group can hold, elements without knowledge.
    """
    _check(settings, knowledge, elements)
    knowledge = knowledge.scaled(settings.distance_scale)
    given = substituted([*load_seeds(settings.seeds), *load_seeds(seeds)], elements, knowledge)
    crystals = RandomCrystals(settings, knowledge)
    if plan is None:
        _check_listed(settings, elements, crystals)
        is_first = not seed.spawn_key or seed.spawn_key[-1] == 0
        plain = given[:n] if is_first else []
        if notes := outside(plain, CompositionRule(elements, settings), knowledge):
            _warn(f"generate.seeds: of {len(given)} seeds, {notes}")
        if len(given) > n and is_first:
            _warn(f"generate.seeds: of {len(given)} seeds, the first {n} are tried, as many as crystals are asked for")
        sources = _sources(settings, knowledge, elements, given, parents)
        proposers = _draw_sources(sources, plain, knowledge, n, _rng(seed, SOURCES))
        n_random = sum(proposer is None for proposer in proposers)
        draw = partial(plan_compositions, elements, settings, _rng(seed, PLAN), possible=crystals.possible)
        plan = _possible_plan(partial(draw, attempts=attempts, hull_distances=hull_distances), n_random, crystals)
    elif len(plan) == n:
        proposers = [None] * n
    else:
        raise ConfigError(f"plan: expected {n} compositions, got {len(plan)}")
    contents = iter([{symbol: count for symbol, count in cell.items() if count} for cell in plan])
    requests = [
        Request(i, proposer or partial(crystals.propose, next(contents)), _rng(seed, CRYSTALS, i))
        for i, proposer in enumerate(proposers)
    ]
    k, parts = part
    requests = requests[n * k // parts : n * (k + 1) // parts]
    made: dict[int, Atoms] = {}

    def accept(request: Request, atoms: Atoms) -> None:
        name = "-".join(map(str, (*seed.spawn_key, request.index)))
        atoms.info = {"name": name, "family": name, **atoms.info}
        made[request.index] = atoms

    refused = Pool(settings, knowledge, elements).work(requests, accept)
    atoms = [made[i] for i in sorted(made)]
    return Generated(atoms, len(requests), len(atoms), refused)


def _possible_plan(
    draw: Callable[[int], list[dict[str, int]]], n: int, crystals: RandomCrystals
) -> list[dict[str, int]]:
    """Draw contents, and draw again those that no allowed space group can hold; the rest is refused later."""
    plan = draw(n)
    impossible = [i for i, counts in enumerate(plan) if not crystals.possible(counts)]
    for _ in range(REDRAWS):
        if not impossible:
            break
        fresh = [counts for counts in draw(max(MANY, 2 * len(impossible))) if crystals.possible(counts)]
        for counts in fresh[: len(impossible)]:
            plan[impossible.pop()] = counts
    return plan


def _rng(seed: np.random.SeedSequence, *key: int) -> np.random.Generator:
    """Give a branch of the seed its own source of chance, without changing the seed as ``spawn`` would."""
    branch = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *key), pool_size=seed.pool_size)
    return np.random.default_rng(branch)


def _sources(
    settings: GenerateConfig,
    knowledge: Knowledge,
    elements: Sequence[str],
    seeds: Sequence[Atoms],
    parents: Sequence[Atoms],
) -> list[tuple[float, Proposer | None]]:
    """List the sources that can give anything, with their weights; None stands for random crystals."""
    sources: list[tuple[float, Proposer | None]] = []
    spare = 0.0
    if settings.prototype_share:
        prototypes = Prototypes(settings, knowledge, elements)
        sources.append((settings.prototype_share if prototypes.formulae else 0.0, prototypes.propose))
        spare += 0.0 if prototypes.formulae else settings.prototype_share
    for share, structures, origin in (
        (settings.mutation_share, parents, "mutation"),
        (settings.seed_share, seeds, "seed"),
    ):
        mutations = Mutations(settings, knowledge, elements, structures, origin=origin)
        sources.append((share if mutations.parents else 0.0, mutations.propose))
        spare += 0.0 if mutations.parents else share
    return [(settings.random_share + spare, None), *sources]


def _draw_sources(
    sources: Sequence[tuple[float, Proposer | None]],
    seeds: Sequence[Atoms],
    knowledge: Knowledge,
    n: int,
    rng: np.random.Generator,
) -> list[Proposer | None]:
    """Choose the source of each crystal: the plain seeds first, then every source by its share."""
    plain: list[Proposer | None] = [partial(_plain, atoms, knowledge) for atoms in seeds]
    weights = np.array([weight for weight, _ in sources])
    picks = even_draw(weights / weights.sum(), rng, n - len(plain))
    return [*plain, *(sources[pick][1] for pick in picks)]


def _plain(atoms: Atoms, knowledge: Knowledge, _: np.random.Generator) -> Proposal | str:
    """Propose a seed as it is."""
    kinds = np.array([knowledge.elements.index(chemical_symbols[int(z)]) for z in atoms.numbers])
    cell = np.asarray(atoms.cell.array, dtype=float)
    name = str(atoms.info["seed"])
    lineage = f"pushed({name})" if is_tight(atoms, knowledge) else name
    trial = plain_trial(cell, kinds, atoms.positions @ np.linalg.inv(cell))
    info: dict[str, str | int | float] = {"origin": "seed", "space_group": 1, "lineage": lineage, "family": name}
    return Proposal(trial, info, given=True)


@cache
def _warn(message: str) -> None:
    """Log a warning, once in a process."""
    logger.warning(message)


def _check(settings: GenerateConfig, knowledge: Knowledge, elements: Sequence[str]) -> None:
    """Refuse what can never work before anything is made."""
    unknown = sorted(set(elements) - set(knowledge.elements))
    if unknown:
        raise ConfigError(f"elements: no distances or volumes are known for {', '.join(unknown)}")
    if not allowed_groups(settings):
        low, high = settings.symmetry_operations
        raise ConfigError(
            f"generate.space_groups: none of {settings.space_groups or 'all 230'} has {low} to {high} symmetry "
            "operations (generate.symmetry_operations)"
        )


def _check_listed(settings: GenerateConfig, elements: Sequence[str], crystals: RandomCrystals) -> None:
    """Refuse listed compositions that no allowed space group can hold, whatever the number of formula units."""
    listed = listed_cells(elements, settings) if settings.compositions else {}
    impossible = [formula for formula, cells in listed.items() if not any(map(crystals.possible, cells))]
    if impossible:
        (low, high), (least, most) = settings.formula_units, settings.atoms
        raise ConfigError(
            f"generate.compositions: no allowed space group can hold {', '.join(impossible)} with {low} to {high} "
            f"formula units and {least} to {most} atoms in the primitive cell; leave it out, or widen one of "
            "space_groups, symmetry_operations, formula_units, atoms"
        )
