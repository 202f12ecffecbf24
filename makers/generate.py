"""Stage `generate`: trial crystals, one chunk a job."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from csp.generate import generate
from csp.hull import formula_of
from csp.state import Ledger
from makers.blobs import LedgerBlob, StructureBatch
from makers.documents import GenerateCounts, GenerateDoc
from makers.stage import (
    Handle,
    Stage,
    StageMaker,
    current_store,
    read_ledger,
    read_state,
    seed_sequence,
    stage_job,
)

if TYPE_CHECKING:
    from ase import Atoms

    from csp.config import GenerateConfig
    from csp.state import SearchState

logger = logging.getLogger(__name__)

N_PARENTS = 50  # best candidates that mutations start from
PARENTS_OF_ONE = 4  # of them of one composition, unless there are not enough compositions


@dataclass
class GenerateMaker(StageMaker):
    """Make trial crystals of a chemical system.

    Parameters
    ----------
    elements
        Chemical symbols of the system.
    seed
        Seed of the search.
    settings
        The `generate` section of the search file.
    name
        Job name.
    """

    elements: tuple[str, ...]
    seed: int
    settings: GenerateConfig
    name: str = Stage.GENERATE

    @stage_job(GenerateDoc)
    def make(
        self,
        state: SearchState | Handle,
        n: int,
        chunk: int = 0,
        pool: Handle | None = None,
        ledger: Handle | None = None,
    ) -> GenerateDoc:
        """Make one chunk.

        Parameters
        ----------
        state
            The search so far: generation and sizes learned.
        n
            Crystals to make.
        chunk
            Number of the chunk.
        pool
            Candidates of the generations before, parents of mutations.
        ledger
            Attempts and hull distances so far, by composition; None at the start.

        Returns
        -------
        GenerateDoc
            The batch and its counts.
        """
        start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        state, tried = read_state(state), read_ledger(ledger)
        parents = best_parents(pool.fetch(current_store()).to_atoms()) if pool else []
        seed = seed_sequence(self.seed, state.generation, Stage.GENERATE, chunk)
        made = generate(
            self.settings,
            state.knowledge,
            elements=self.elements,
            n=n,
            seed=seed,
            attempts=tried.attempts,
            hull_distances=tried.hull_distances,
            parents=parents,
        )
        seconds = time.perf_counter() - start
        logger.info(
            "generate %03d: %d of %d crystals in %.1f s, refused %s",
            state.generation,
            made.made,
            made.asked,
            seconds,
            dict(made.refused) or "none",
        )
        counts = GenerateCounts(
            asked=made.asked,
            made=made.made,
            refused=made.refused,
            seconds=seconds,
            started=started,
        )
        attempts = Counter(atoms.info["formula"] for atoms in made.atoms)
        return GenerateDoc(
            batch=StructureBatch.from_atoms(made.atoms), ledger=LedgerBlob(Ledger(attempts=attempts)), counts=counts
        )


def best_parents(candidates: list[Atoms]) -> list[Atoms]:
    """Choose whom to mutate: the best candidates, but not all of one composition.

    Parameters
    ----------
    candidates
        The best first.

    Returns
    -------
    list[ase.Atoms]
        The best first.
    """
    formulas = [formula_of(atoms) for atoms in candidates]
    most = max(PARENTS_OF_ONE, -(-N_PARENTS // max(len(set(formulas)), 1)))
    seen: Counter[str] = Counter()
    parents = []
    for atoms, formula in zip(candidates, formulas, strict=True):
        seen[formula] += 1
        if seen[formula] <= most:
            parents.append(atoms)
    return parents[:N_PARENTS]
