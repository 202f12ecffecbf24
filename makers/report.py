"""Stage `report`: the answer of a search."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from makers.indexes import phase_store
from makers.outcomes import PhaseSummary, ReportDoc
from makers.phases import PhaseBuilder
from makers.stage import Handle, Stage, StageMaker, current_store, read_ledger, read_state, stage_job

if TYPE_CHECKING:
    from csp.state import SearchState
    from makers.documents import LabelSummary

logger = logging.getLogger(__name__)


@dataclass
class ReportMaker(StageMaker):
    """Build the final hull from the phases that first principles relaxed.

    Parameters
    ----------
    project
        The search.
    chemsys
        Chemical system.
    name
        Job name.
    """

    project: str
    chemsys: str
    name: str = Stage.REPORT

    @stage_job(ReportDoc)
    def make(
        self, state: SearchState | Handle, ledger: Handle, stop_reason: str, why: str, labelled: LabelSummary
    ) -> ReportDoc:
        """Write the answer.

        Parameters
        ----------
        state
            The search when it stopped.
        ledger
            Where its attempts lie.
        stop_reason
            Name of the reason.
        why
            The reason in words.
        labelled
            Outcome of the final relaxations; the report waits for them.

        Returns
        -------
        ReportDoc
            The phases by height above the hull, and why the search stopped.
        """
        del labelled
        store, state = current_store(), read_state(state)
        PhaseBuilder(store, self.project).build()
        docs = list(phase_store(store).query({"project": self.project, "source": "relaxation"}))
        fields = PhaseSummary.model_fields
        phases = [PhaseSummary.model_validate({k: v for k, v in doc.items() if k in fields}) for doc in docs]
        phases.sort(key=lambda phase: (phase.e_above_hull, phase.formula))
        stable = [phase.formula for phase in phases if phase.e_above_hull == 0]
        logger.info("report: stable phases of %s: %s", self.chemsys, ", ".join(sorted(stable)) or "none")
        return ReportDoc(
            project=self.project,
            chemsys=self.chemsys,
            pressure_gpa=state.knowledge.pressure_gpa,
            generations=state.generation,  # the state is that of the generation which would come next
            n_labels=state.n_labels,
            n_trials=sum(read_ledger(ledger).attempts.values()),
            stop_reason=stop_reason,
            why=why,
            phases=phases,
        )
