"""The self-extending search as jobflow flows: one flow a generation, and `advance` returns the next or the last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobflow import Flow, Job, Maker

from csp.feedback import labels_left
from csp.generate.parallel import chunk_sizes
from csp.state import SearchState, initial_state
from makers.advance import AdvanceMaker
from makers.documents import LabelKind
from makers.generate import GenerateMaker
from makers.label import LabelMaker
from makers.labelling import settings_fingerprint
from makers.relax import RelaxMaker
from makers.report import ReportMaker
from makers.resources import Resources, with_resources
from makers.select import SelectMaker
from makers.stage import Handle, Stage, job_uuid
from makers.train import TrainMaker

if TYPE_CHECKING:
    from jobflow import JobStore

    from makers.blobs import StructureBatch
    from makers.outcomes import GenerationDoc
    from workflows.config import SearchConfig


@dataclass
class SearchMaker(Maker):
    """Search the stable crystals of a chemical system at a pressure.

    Parameters
    ----------
    config
        The search file.
    resources
        What each stage's jobs tell the workflow manager: a worker's category, queue settings.
    name
        Name of the flow.

    Examples
    --------
    >>> from workflows.config import load_config
    >>> flow = SearchMaker(load_config("search.yaml")).make()  # doctest: +SKIP
    """

    config: SearchConfig
    resources: Resources = field(default_factory=dict)
    name: str = "search"

    @property
    def run_id(self) -> str:
        """Identity of the search: the same project and settings, the same jobs."""
        return f"{self.config.project}/{self.config.fingerprint()}"

    @property
    def label_fingerprint(self) -> str:
        """Identity of the label settings."""
        return settings_fingerprint(self.config.label)

    def make(self) -> Flow:
        """Return generation 0; it brings forth all others.

        Returns
        -------
        Flow
            An ordinary flow for ``run_locally``, FireWorks or jobflow-remote. Its output is the final report.
        """
        return self.generation(self.start())

    def start(self) -> SearchState:
        """Return the state that generation 0 starts from.

        Returns
        -------
        SearchState
            Of a search that has done nothing yet.
        """
        config = self.config
        return initial_state(
            knowledge=config.first_knowledge,
            select=config.select,
            n_structures=config.generate.n_structures,
            compositions=config.reduced_compositions,
        )

    def after(self, done: GenerationDoc, store: JobStore) -> Flow:
        """Return what follows a finished generation: how an interrupted search goes on.

        Parameters
        ----------
        done
            The newest finished generation.
        store
            The connected job store.

        Returns
        -------
        Flow
            The next generation, or the end if the search had decided to stop.
        """
        ledger = self._ledger(done.generation).fetch(store).ledger
        return self._advance().follow(self, done, ledger, store)

    def generation(self, state: SearchState) -> Flow:
        """Return the flow of one generation.

        Parameters
        ----------
        state
            The search so far.

        Returns
        -------
        Flow
            Jobs from `generate` to `advance`. Earlier models and candidates are reached by handles.
        """
        number, config = state.generation, self.config
        first = number == 0
        # Later states are handed on by their place: they grow, and a generation has a hundred jobs.
        given = state if first else Handle(self._uuid(Stage.ADVANCE, number - 1), "state")
        ledger = None if first else self._ledger(number - 1)
        generated = self._generate(state, given, ledger)
        relaxed = [] if first else self._relax(number, given, generated)
        maker = SelectMaker(config.project, self.label_fingerprint, config.system, config.seed, config.select)
        n_labels = labels_left(
            config.generate.n_initial if first else config.select.n_labels, state.n_asked, config.advance
        )
        selected = self._job(
            maker.make_initial(given, [job.output.batch for job in generated], n_labels)
            if first
            else maker.make(given, [job.output for job in relaxed], self.pool(number - 1), n_labels),
            Stage.SELECT,
            number,
        )
        chosen = Handle(selected.uuid, "chosen")
        labelled = self._label(selected.output.chosen, number, LabelKind.SINGLE_POINT, source=chosen)
        trained = self._job(
            TrainMaker(
                config.project,
                self.label_fingerprint,
                config.system,
                config.pressure_gpa,
                config.advance.near_hull_ev,
                config.seed,
                config.train,
                config.train.model,
            ).make(number, labelled.output, None if first else self._model(number - 1)),
            Stage.TRAIN,
            number,
        )
        advanced = self._job(
            self._advance().make(
                self,
                given,
                ledger,
                [job.output.ledger for job in (*generated, selected)],
                {
                    "generated": [job.output.counts for job in generated],
                    "relaxed": [job.output.counts for job in relaxed],
                    "selected": selected.output.summary,
                    "labelled": labelled.output,
                    "trained": trained.output.summary,
                },
            ),
            Stage.ADVANCE,
            number,
        )
        jobs: list[Job | Flow] = [*generated, *relaxed, selected, labelled, trained, advanced]
        return Flow(jobs, output=advanced.output, name=f"generation {number:03d}")

    def final(self, done: GenerationDoc, phases: StructureBatch) -> Flow:
        """Return the end: first principles relax what is near the hull, and the report.

        Parameters
        ----------
        done
            The last generation, which stopped.
        phases
            Structures to relax; columns reason, phase_id.

        Returns
        -------
        Flow
            The stages `label` and `report`.
        """
        labelled = self._label(phases, done.generation, LabelKind.RELAXATION, chunk="final")
        report = self._job(
            ReportMaker(self.config.project, self.config.chemsys).make(
                Handle(self._uuid(Stage.ADVANCE, done.generation), "state"),
                self._ledger(done.generation),
                done.stop_reason,
                done.why,
                labelled.output,
            ),
            Stage.REPORT,
            done.generation,
        )
        return Flow([labelled, report], output=report.output, name="final")

    def pool(self, generation: int) -> Handle:
        """Return where the candidates of a generation lie.

        Parameters
        ----------
        generation
            Its number.

        Returns
        -------
        Handle
            A `StructureBatch`.
        """
        return Handle(self._uuid(Stage.SELECT, generation), "pool")

    def _model(self, generation: int) -> Handle:
        return Handle(self._uuid(Stage.TRAIN, generation), "model")

    def _ledger(self, generation: int) -> Handle:
        return Handle(self._uuid(Stage.ADVANCE, generation), "ledger")

    def _uuid(self, stage: Stage, generation: int) -> str:
        return job_uuid(self.run_id, job_name(stage, generation))

    def _advance(self) -> AdvanceMaker:
        return AdvanceMaker(self.config.project, self.label_fingerprint, self.config.advance, self.config.select)

    def _generate(self, state: SearchState, given: SearchState | Handle, ledger: Handle | None) -> list[Job]:
        settings, number = self.config.trial_settings, state.generation
        n = state.n_structures if number else settings.n_initial
        maker = GenerateMaker(self.config.system, self.config.seed, settings)
        pool = self.pool(number - 1) if number > 1 else None
        return [
            self._job(maker.make(given, size, i, pool, ledger), Stage.GENERATE, number, str(i))
            for i, size in enumerate(chunk_sizes(n, settings.chunk_size))
        ]

    def _relax(self, number: int, state: SearchState | Handle, generated: list[Job]) -> list[Job]:
        maker = RelaxMaker(self.config.pressure_gpa, self.config.relax)
        model = self._model(number - 1)
        jobs = [
            self._job(maker.make(job.output.batch, model, state), Stage.RELAX, number, str(i))
            for i, job in enumerate(generated)
        ]
        if number > 1:
            # The candidates so far move on to the minima of the new model, so that all enthalpies are of one model.
            jobs.append(self._job(maker.make(self.pool(number - 1), model, state), Stage.RELAX, number, "pool"))
        return jobs

    def _label(
        self, batch: object, generation: int, kind: LabelKind, chunk: str = "", source: Handle | None = None
    ) -> Job:
        config = self.config
        maker = LabelMaker(config.project, config.label, config.pressure_gpa, self.resources)
        return self._job(maker.make(batch, generation, kind, source), Stage.LABEL, generation, chunk)

    def _job(self, job: Job, stage: Stage, generation: int, chunk: str = "") -> Job:
        """Give a job its name, its identity, its resources, and what it is found by in the database."""
        job.name = job_name(stage, generation, chunk)
        job.set_uuid(job_uuid(self.run_id, job.name))
        job.update_metadata(
            {"project": self.config.project, "stage": str(stage), "generation": generation}, dynamic=False
        )
        return with_resources(job, stage, self.resources)


def job_name(stage: Stage, generation: int, chunk: str = "") -> str:
    """Return the name of a job, unique in a search.

    Parameters
    ----------
    stage
        The stage.
    generation
        The generation.
    chunk
        Which of several jobs of the stage.

    Returns
    -------
    str
        As ``relax 003.1``.
    """
    return f"{stage} {generation:03d}" + (f".{chunk}" if chunk else "")
