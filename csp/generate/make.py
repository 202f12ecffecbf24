"""The one call that makes trial crystals from every source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from csp.compositions import plan_compositions
from csp.config import GenerateConfig
from csp.errors import ConfigError
from csp.generate.symmetric import RandomCrystals, Request, allowed_groups
from csp.knowledge import Knowledge, reduced_formula

PLAN, CRYSTALS = 0, 1  # branches of the seed


@dataclass(frozen=True)
class Generated:
    """Trial crystals and an account of them.

    Parameters
    ----------
    atoms
        The crystals, in the order of their requests; each satisfies the least distances over all periodic images.
        ``atoms.info`` holds ``origin``, ``space_group`` (asked for), ``formula`` (reduced), ``family`` (shared by
        everything derived from one ancestor) and ``lineage`` (how it came about, "" where it was drawn from nothing).
    asked
        Crystals asked for.
    made
        Crystals made.
    refused
        Refusals by reason; ``asked == made + sum(refused)``.
    """

    atoms: list[Atoms]
    asked: int
    made: int
    refused: dict[str, int] = field(default_factory=dict)


def generate(
    settings: GenerateConfig,
    knowledge: Knowledge,
    *,
    elements: Sequence[str],
    n: int,
    seed: np.random.SeedSequence,
    plan: Sequence[Mapping[str, int]] | None = None,
) -> Generated:
    """Make trial crystals.

    Parameters
    ----------
    settings
        How crystals are made.
    knowledge
        Least distances and volumes at the pressure of the search.
    elements
        Chemical symbols of the system.
    n
        Crystals wanted.
    seed
        Source of all chance; crystal i depends on the seed, on i and on its own composition only.
    plan
        Atoms by element of each of the ``n`` cells; None lets ``plan_compositions`` choose.

    Returns
    -------
    Generated
        Crystals and counts.

    Raises
    ------
    ConfigError
        If the settings can never be met: no composition, no space group, elements without knowledge.
    """
    _check(settings, knowledge, elements)
    if plan is None:
        plan = plan_compositions(elements, settings, np.random.default_rng(child(seed, PLAN)), n)
    if len(plan) != n:
        raise ConfigError(f"plan: expected {n} compositions, got {len(plan)}")
    requests = [
        Request(i, {symbol: count for symbol, count in counts.items() if count}, rng=rng_of(seed, i))
        for i, counts in enumerate(plan)
    ]
    made: dict[int, Atoms] = {}

    def accept(request: Request, atoms: Atoms) -> None:
        name = name_of(seed, request.index)
        atoms.info.update(formula=reduced_formula(request.counts), family=name, lineage="")
        made[request.index] = atoms

    refused = RandomCrystals(settings, knowledge).make(requests, accept)
    crystals = [made[i] for i in sorted(made)]
    return Generated(crystals, n, len(crystals), refused)


def child(seed: np.random.SeedSequence, *key: int) -> np.random.SeedSequence:
    """Give a child seed by its key, without changing the parent as ``spawn`` would."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, *key), pool_size=seed.pool_size)


def rng_of(seed: np.random.SeedSequence, index: int) -> np.random.Generator:
    """Give crystal ``index`` its own source of chance."""
    return np.random.default_rng(child(seed, CRYSTALS, index))


def name_of(seed: np.random.SeedSequence, index: int) -> str:
    """Name a crystal by its place: generation, stage and chunk as in the seed's key, then its index."""
    return "-".join(map(str, (*seed.spawn_key, index)))


def _check(settings: GenerateConfig, knowledge: Knowledge, elements: Sequence[str]) -> None:
    unknown = sorted(set(elements) - set(knowledge.elements))
    if unknown:
        raise ConfigError(f"elements: no distances or volumes are known for {', '.join(unknown)}")
    if settings.symmetric_fraction > 0 and not allowed_groups(settings):
        low, high = settings.symmetry_operations
        raise ConfigError(
            f"generate.space_groups: none of {settings.space_groups or 'all 230'} has {low} to {high} symmetry "
            "operations (generate.symmetry_operations)"
        )
