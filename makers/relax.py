"""Stage `relax`: every trial crystal to its minimum of enthalpy, with guards, one chunk a job."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from acnn import checkpoint
from acnn.device import choose_device
from acnn.relax import Relaxed, RelaxStatus, relax
from makers.blobs import StructureBatch
from makers.documents import RelaxCounts, RelaxDoc
from makers.scratch import resumable
from makers.stage import Handle, Stage, StageMaker, current_store, read_state, stage_job

if TYPE_CHECKING:
    from pathlib import Path

    from acnn.config import RelaxConfig
    from csp.state import SearchState

logger = logging.getLogger(__name__)


@dataclass
class RelaxMaker(StageMaker):
    """Relax a batch at the pressure of the search.

    Parameters
    ----------
    pressure_gpa
        Pressure, GPa.
    settings
        The `relax` section of the search file.
    name
        Job name.
    """

    pressure_gpa: float
    settings: RelaxConfig
    name: str = Stage.RELAX

    @stage_job(RelaxDoc)
    def make(self, batch: StructureBatch | Handle, model: Handle, state: SearchState | Handle) -> RelaxDoc:
        """Relax one chunk; a killed launch is gone on from, see `makers.scratch`.

        Parameters
        ----------
        batch
            Structures, or where those of an earlier generation lie.
        model
            Where the potential lies.
        state
            The search so far: minimum distances and the scale below which a pair is unsafe.

        Returns
        -------
        RelaxDoc
            The relaxed batch and what became of its structures.
        """
        start = time.perf_counter()
        store, state = current_store(), read_state(state)
        batch = batch.fetch(store) if isinstance(batch, Handle) else batch
        settings = self.settings.model_copy(update={"bonds_scale": state.bonds_scale})
        potential = checkpoint.loads(model.fetch(store).content).to(choose_device(settings.device))
        frames, distances = batch.to_atoms(), pair_distances(state.knowledge.distances)

        def work(folder: Path | None) -> list[Relaxed]:
            found = relax(
                frames,
                potential,
                settings,
                pressure_gpa=self.pressure_gpa,
                min_distance=distances,
                folder=folder,
            )
            return list(tqdm(found, total=len(frames), desc=self.name, unit="crystal", disable=None, leave=False))

        results = resumable(work)
        seconds = time.perf_counter() - start
        doc = pack(results, batch, seconds)
        logger.info(
            "%s: %d crystals in %.1f s (%.0f a second), %s%s",
            self.name,
            len(results),
            seconds,
            len(results) / max(seconds, 1e-9),
            doc.counts.statuses,
            f", {doc.counts.reasons}" if doc.counts.reasons else "",
        )
        return doc


def pack(results: list[Relaxed], batch: StructureBatch, seconds: float) -> RelaxDoc:
    """Turn relaxation results into the stage's document.

    Parameters
    ----------
    results
        One result per structure, in order.
    batch
        What was relaxed; its columns origin, lineage and phase_id are passed on.
    seconds
        Wall time, s.

    Returns
    -------
    RelaxDoc
        Batches and counts.
    """
    last_safe = [(r.last_safe, r.reason) for r in results if r.status == RelaxStatus.UNSAFE and r.last_safe is not None]
    nameless = np.full(len(results), "")
    columns: dict[str, Any] = {
        "energy": [r.energy for r in results],
        "enthalpy": [r.enthalpy for r in results],
        "status": [str(r.status) for r in results],
        "reason": [r.reason for r in results],
        "n_steps": [r.n_steps for r in results],
        "fmax": [r.fmax for r in results],
        "stress_residual_gpa": [r.stress_residual_gpa for r in results],
        "spread": [r.spread for r in results],
    } | {name: batch.columns.get(name, nameless) for name in ("origin", "lineage", "phase_id")}
    return RelaxDoc(
        relaxed=StructureBatch.from_atoms([r.atoms for r in results], columns),
        last_safe=StructureBatch.from_atoms([a for a, _ in last_safe], {"reason": [reason for _, reason in last_safe]}),
        counts=RelaxCounts(
            statuses=dict(Counter(str(r.status) for r in results)),
            reasons=dict(Counter(r.reason for r in results if r.reason)),
            seconds=seconds,
        ),
    )


def pair_distances(distances: dict[str, float]) -> dict[tuple[str, str], float]:
    """Write pairs of elements as the relaxation wants them.

    Parameters
    ----------
    distances
        Minimum distance by pair such as "Ca-H", Å.

    Returns
    -------
    dict
        The same by tuple of symbols.
    """
    pairs = {}
    for name, distance in distances.items():
        first, second = name.split("-")
        pairs[first, second] = distance
    return pairs
