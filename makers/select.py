"""Stage `select`: the distinct candidates of a generation, and those that go to first principles."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from csp.candidates import Candidates
from csp.dedup import labelled_already
from csp.fingerprint import fingerprints
from csp.flags import Flag, count_flags
from csp.hull import formula_of
from csp.rank import History, RankedPhase, Ranking, Relaxations, rank
from csp.select import choose, choose_initial
from csp.state import Ledger
from makers.blobs import LedgerBlob, StructureBatch
from makers.documents import RelaxDoc, SelectDoc, SelectSummary
from makers.labelling import read_labels, to_training_frames
from makers.stage import Handle, Stage, StageMaker, current_store, read_state, seed_sequence, stage_job

if TYPE_CHECKING:
    from ase import Atoms

    from csp.config import SelectConfig
    from csp.state import SearchState

logger = logging.getLogger(__name__)


@dataclass
class SelectMaker(StageMaker):
    """Deduplicate, rank, flag and choose.

    Parameters
    ----------
    project
        The search, whose labels are known already.
    fingerprint
        Label settings.
    elements
        Chemical symbols of the system.
    seed
        Seed of the search.
    settings
        The `select` section of the search file.
    name
        Job name.
    """

    project: str
    fingerprint: str
    elements: tuple[str, ...]
    seed: int
    settings: SelectConfig
    name: str = Stage.SELECT

    @stage_job(SelectDoc)
    def make_initial(self, state: SearchState, batches: list[StructureBatch], n: int) -> SelectDoc:
        """Choose the first labels from unrelaxed random crystals.

        Parameters
        ----------
        state
            The search at its start.
        batches
            Trial crystals.
        n
            Labels.

        Returns
        -------
        SelectDoc
            What goes to first principles; no candidates yet.
        """
        start = time.perf_counter()
        frames = [atoms for batch in batches for atoms in batch.to_atoms()]
        rng = np.random.default_rng(seed_sequence(self.seed, state.generation, Stage.SELECT))
        prints = fingerprints(frames, self.elements)
        choices = choose_initial(frames, prints, self.elements, self.settings, rng, n)
        chosen = StructureBatch.from_atoms(
            [frames[c.index] for c in choices],
            {"reason": [str(c.reason) for c in choices], "phase_id": [""] * len(choices)},
        )
        logger.info("select %03d: %d of %d random crystals", state.generation, len(choices), len(frames))
        summary = SelectSummary(
            n_candidates=0,
            n_distinct=0,
            chosen=dict(Counter(str(c.reason) for c in choices)),
            statuses={},
            flags={},
            seconds=time.perf_counter() - start,
        )
        return SelectDoc(
            chosen=chosen, pool=StructureBatch.from_atoms([], {}), ledger=LedgerBlob(Ledger()), summary=summary
        )

    @stage_job(SelectDoc)
    def make(self, state: SearchState | Handle, relaxed: list[RelaxDoc], pool: Handle, n: int) -> SelectDoc:
        """Rank the relaxed crystals and choose those that are worth a label.

        Parameters
        ----------
        state
            The search so far.
        relaxed
            All chunks of trial crystals, and the candidates of before, relaxed again by the same model.
        pool
            The candidates of before: how often and when they were found.
        n
            Labels, at most.

        Returns
        -------
        SelectDoc
            The choice and the candidates.
        """
        start = time.perf_counter()
        store, state = current_store(), read_state(state)
        docs = [RelaxDoc.model_validate(doc) for doc in relaxed]
        labelled = to_training_frames(read_labels(store, self.project, self.fingerprint, until=state.generation - 1))
        relaxations = _relaxations(docs)
        before = pool.fetch(store)
        ranking = rank(
            relaxations,
            _histories(before),
            labelled,
            elements=self.elements,
            pressure_gpa=state.knowledge.pressure_gpa,
            generation=state.generation,
            settings=self.settings,
        )
        last_safe = [atoms for doc in docs for atoms in doc.last_safe.to_atoms()]
        candidates, phases = self._candidates(ranking, relaxations, last_safe, labelled)
        rng = np.random.default_rng(seed_sequence(self.seed, state.generation, Stage.SELECT))
        choices = choose(candidates, self.settings, rng, n)
        chosen = StructureBatch.from_atoms(
            [candidates.frames[c.index] for c in choices],
            {"reason": [str(c.reason) for c in choices], "phase_id": [phases[c.index] for c in choices]},
        )
        kept = [p for p in ranking.phases if p.e_above_hull <= self.settings.window_ev][: self.settings.pool_size]
        summary = SelectSummary(
            n_candidates=sum(not flags for flags in ranking.flags),
            n_distinct=len(ranking.phases),
            chosen=dict(Counter(str(c.reason) for c in choices)),
            statuses=dict(Counter(status for status, _ in relaxations.ends)),
            flags=count_flags(ranking.flags),
            seconds=time.perf_counter() - start,
        )
        logger.info(
            "select %03d: %d distinct of %d sound crystals, flagged %s; chosen %s in %.1f s",
            state.generation,
            summary.n_distinct,
            summary.n_candidates,
            summary.flags or "none",
            summary.chosen,
            summary.seconds,
        )
        ledger = Ledger(
            times_found={p.phase_id: p.history.times_found for p in kept},
            aliases=ranking.aliases,
            hull_distances=_hull_distances(ranking.phases, self.settings.optimism),
        )
        candidates_now = _pool(kept, _lost(before, ranking, state))
        return SelectDoc(chosen=chosen, pool=candidates_now, ledger=LedgerBlob(ledger), summary=summary)

    def _candidates(
        self, ranking: Ranking, relaxations: Relaxations, last_safe: list[Atoms], labelled: list[Atoms]
    ) -> tuple[Candidates, list[str]]:
        """Lay side by side what may be labelled: phases, suspicious structures, last safe frames of unsafe ones."""
        suspicious = [
            (relaxations.frames[i], flags)
            for i, flags in enumerate(ranking.flags)
            if flags and relaxations.ends[i][0] != "unsafe" and np.isfinite(relaxations.frames[i].positions).all()
        ]
        unsafe = [(atoms, (Flag(atoms.info["reason"]),)) for atoms in last_safe]
        flagged = suspicious + unsafe
        frames = [p.atoms for p in ranking.phases] + [atoms for atoms, _ in flagged]
        prints = fingerprints(frames, self.elements)
        no_number = [np.nan] * len(flagged)
        candidates = Candidates(
            frames=frames,
            fingerprints=prints,
            e_above_hull=np.array([p.e_above_hull for p in ranking.phases] + no_number),
            spread=np.array([p.spread for p in ranking.phases] + no_number),
            flags=[()] * len(ranking.phases) + [flags for _, flags in flagged],
            labelled=labelled_already(frames, prints, labelled, fingerprints(labelled, self.elements), self.settings),
        )
        return candidates, [p.phase_id for p in ranking.phases] + [""] * len(flagged)


def _relaxations(docs: list[RelaxDoc]) -> Relaxations:
    columns = [doc.relaxed.columns for doc in docs if len(doc.relaxed)]

    def join(name: str) -> np.ndarray:
        return np.concatenate([column[name] for column in columns])

    phase_ids = [str(name) for name in join("phase_id")]
    origins = [str(origin) for origin in join("origin")]
    return Relaxations(
        frames=[atoms for doc in docs for atoms in doc.relaxed.to_atoms()],
        energies=join("energy"),
        enthalpies=join("enthalpy"),
        spreads=join("spread"),
        ends=[(str(a), str(b)) for a, b in zip(join("status"), join("reason"), strict=True)],
        phase_ids=phase_ids,
        independent=np.array(
            [not p and o not in {"mutation", "seed"} for p, o in zip(phase_ids, origins, strict=True)]
        ),
    )


def _histories(pool: StructureBatch) -> dict[str, History]:
    columns = pool.columns
    if not len(pool):
        return {}
    rows = zip(columns["phase_id"], columns["times_found"], columns["generation_found"], strict=True)
    return {str(name): History(int(times), int(generation)) for name, times, generation in rows}


def _lost(before: StructureBatch, ranking: Ranking, state: SearchState) -> list[RankedPhase]:
    """Return labelled phases near the hull that the present model cannot hold; they stay, for a better one may."""
    near = state.history[-1].near_hull if state.history else {}
    today = {p.phase_id for p in ranking.phases} | set(ranking.aliases)
    histories = _histories(before)
    return [
        RankedPhase(
            phase_id=atoms.info["phase_id"],
            atoms=atoms,
            fingerprint=np.zeros(0),
            enthalpy_per_atom=atoms.info["enthalpy_per_atom"],
            e_above_hull=atoms.info["e_above_hull"],
            spread=atoms.info["spread"],
            history=histories[atoms.info["phase_id"]],
        )
        for atoms in before.to_atoms()
        if atoms.info["phase_id"] in near and atoms.info["phase_id"] not in today
    ]


def _pool(ranked: list[RankedPhase], lost: list[RankedPhase]) -> StructureBatch:
    phases = ranked + lost
    columns: dict[str, Any] = {
        "phase_id": [p.phase_id for p in phases],
        "enthalpy_per_atom": [p.enthalpy_per_atom for p in phases],
        "e_above_hull": [p.e_above_hull for p in phases],
        "spread": [p.spread for p in phases],
        "origin": [p.atoms.info.get("origin", "") for p in phases],
        "lineage": [p.atoms.info.get("lineage", "") for p in phases],
        "times_found": [p.history.times_found for p in phases],
        "generation_found": [p.history.generation_found for p in phases],
    }
    return StructureBatch.from_atoms([p.atoms for p in phases], columns)


def _hull_distances(phases: list[RankedPhase], optimism: float) -> dict[str, float]:
    """Give the least height of each composition that the committee leaves possible: undecided ones are near too."""
    least: dict[str, float] = {}
    for phase in phases:
        formula, height = formula_of(phase.atoms), max(0.0, phase.e_above_hull - optimism * phase.spread)
        least[formula] = min(height, least.get(formula, height))
    return least
