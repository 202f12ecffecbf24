"""The jobs of generate, select, advance and report by themselves: what they add to the science that they call."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase.build import bulk, make_supercell
from ase.calculators.singlepoint import SinglePointCalculator
from jobflow import run_locally
from monty.json import MontyDecoder

import makers.train
from acnn import checkpoint
from acnn.config import ModelConfig, RelaxConfig, TrainConfig
from acnn.nn.potential import Potential
from acnn.relax.result import FailureReason
from acnn.train import train
from csp.config import AdvanceConfig, GenerateConfig, SelectConfig
from csp.flags import HARMLESS_ENDS, Flag
from csp.generate import generate
from csp.hull import formula_of
from csp.knowledge import Knowledge
from csp.state import Ledger, SearchState
from makers.advance import final_phases, hull_members, labelled_hull
from makers.blobs import LedgerBlob, ModelBlob, StructureBatch
from makers.config import AseLabelConfig
from makers.documents import LabelKind, LabelSummary, RelaxCounts, RelaxDoc
from makers.generate import GenerateMaker, best_parents
from makers.label import LabelMaker
from makers.labelling import read_labels, settings_fingerprint
from makers.relax import RelaxMaker
from makers.report import ReportMaker
from makers.select import SelectMaker
from makers.stage import Handle, Stage, seed_sequence
from makers.train import TrainMaker

if TYPE_CHECKING:
    from ase import Atoms
    from jobflow import Job, JobStore

    from acnn.train.loop import TrainResult
    from makers.documents import LabelDoc

pytestmark = pytest.mark.integration

SYSTEM = ("Cu", "Au")
EMT = AseLabelConfig(calculator="emt", workers=1)


def state(**values: object) -> SearchState:
    return SearchState(knowledge=Knowledge.initial(SYSTEM, 0.0), bonds_scale=0.7, n_structures=8, **values)


def output(job: Job, store: JobStore):
    run_locally(job, store=store, log=False, raise_immediately=True, ensure_success=True)
    return MontyDecoder().process_decoded(store.get_output(job.uuid, load=True))


def alloys() -> list[Atoms]:
    """Return stretched copper and gold, and layered and rock-salt CuAu: only the layered one is near its minimum."""
    layered = bulk("Cu", a=3.86, cubic=True)
    layered.symbols[layered.positions[:, 2] > 1] = "Au"
    return [bulk("Cu", a=3.75), bulk("Au", a=4.25), layered, bulk("CuAu", "rocksalt", a=5.2)]


def pool_of(frames: list[Atoms], store: JobStore, **columns: list[object]) -> Handle:
    batch = StructureBatch.from_atoms(frames, columns)
    store.update({"uuid": "before", "index": 1, "output": {"pool": batch.as_dict()}}, save={"data": "pool"})
    return Handle("before", "pool")


def ledger_of(store: JobStore, **counted: dict[str, int]) -> Handle:
    blob = LedgerBlob(Ledger.model_validate(counted))
    store.update({"uuid": "counted", "index": 1, "output": {"ledger": blob.as_dict()}}, save={"data": "ledger"})
    return Handle("counted", "ledger")


def test_generate_makes_the_crystals_of_its_seed_generation_and_chunk(job_store):
    settings = GenerateConfig(atoms=(1, 4), prototype_share=0.0)
    made = output(GenerateMaker(SYSTEM, 5, settings).make(state(generation=2), 6, chunk=3), job_store)
    again = generate(
        settings, state().knowledge, elements=SYSTEM, n=6, seed=seed_sequence(5, 2, Stage.GENERATE, 3)
    ).atoms
    for one, two in zip(made.batch.to_atoms(), again, strict=True):
        assert (one.positions == two.positions).all()
        assert one.info["formula"] == two.info["formula"]
    assert made.ledger.ledger.attempts == Counter(atoms.info["formula"] for atoms in again)
    assert (made.counts.asked, made.counts.made, made.counts.refused) == (6, 6, {})


def test_generate_heeds_what_was_tried(job_store):
    settings = GenerateConfig(atoms=(1, 4), prototype_share=0.0)
    tried = ledger_of(job_store, attempts={"Cu": 10**6})
    made = output(GenerateMaker(SYSTEM, 5, settings).make(state(generation=2), 20, ledger=tried), job_store)
    assert "Cu" not in made.ledger.ledger.attempts
    fresh = output(GenerateMaker(SYSTEM, 5, settings).make(state(generation=2), 20), job_store)
    assert fresh.ledger.ledger.attempts["Cu"] > 0


def test_generate_mutates_the_candidates_of_before(job_store):
    settings = GenerateConfig(random_share=0.0, prototype_share=0.0, mutation_share=1.0)
    parents = pool_of(alloys()[2:], job_store, phase_id=["layered", "rocksalt"])
    made = output(GenerateMaker(SYSTEM, 1, settings).make(state(), 30, pool=parents), job_store)
    assert set(made.batch.columns["origin"]) == {"mutation"}
    assert set(made.batch.columns["family"]) == {"layered", "rocksalt"}
    assert all("layered" in name or "rocksalt" in name for name in made.batch.columns["lineage"])


def test_parents_are_the_best_of_several_compositions():
    copper, gold, layered, _ = alloys()
    many = [copper] * 100 + [gold] * 2 + [layered] * 100
    assert Counter(formula_of(atoms) for atoms in best_parents(many)) == {"Cu": 17, "Au": 2, "AuCu": 17}
    assert len(best_parents([copper] * 100)) == 50
    assert best_parents([]) == []


def test_select_starts_with_every_element(job_store):
    batch = StructureBatch.from_atoms([*alloys(), make_supercell(bulk("Cu"), 2 * np.eye(3))], {})
    job = SelectMaker("p", "f", SYSTEM, 1, SelectConfig()).make_initial(state(), [batch], 3)
    chosen = output(job, job_store).chosen
    assert set(chosen.columns["reason"]) == {"initial"}
    assert {"Cu", "Au"} <= {str(atoms.symbols) for atoms in chosen.to_atoms()}
    assert len(chosen) == 3


def test_relax_shares_a_chunk_among_processes(job_store):
    model = ModelBlob(checkpoint.dumps(Potential(ModelConfig(n_radial=4, channels=2, members=2), SYSTEM)))
    job_store.update({"uuid": "trained", "index": 1, "output": {"model": model.as_dict()}}, save={"data": "model"})
    made = generate(
        GenerateConfig(atoms=(1, 4)), state().knowledge, elements=SYSTEM, n=12, seed=seed_sequence(0, 1, Stage.GENERATE)
    )
    batch = StructureBatch.from_atoms(made.atoms, {"origin": ["random"] * 12, "lineage": [""] * 12})
    one, two = (
        output(
            RelaxMaker(0.0, RelaxConfig(max_steps=20, workers=n, device="cpu")).make(
                batch, Handle("trained", "model"), state()
            ),
            job_store,
        )
        for n in (1, 2)
    )
    assert one.counts.statuses == two.counts.statuses
    assert two.relaxed.columns["enthalpy"] == pytest.approx(one.relaxed.columns["enthalpy"], abs=1e-4, nan_ok=True)
    assert list(two.relaxed.columns["origin"]) == ["random"] * 12


def test_a_second_launch_of_a_training_keeps_the_model_of_the_first(labels, job_store, monkeypatch):
    del labels
    settings = TrainConfig(max_steps=2)
    model = ModelConfig(n_radial=4, channels=2)
    maker = TrainMaker("p", settings_fingerprint(EMT), SYSTEM, 0.0, 0.05, 1, settings, model)
    nothing = LabelSummary(asked=0, statuses={}, reused=0, label_ids=[], seconds=0.0)
    first_job, late = maker.make(1, nothing), maker.make(1, nothing)
    late.set_uuid(first_job.uuid)
    first = output(first_job, job_store)
    assert output(late, job_store).model.sha256 == first.model.sha256

    slower = maker.make(1, nothing)

    def overtaken(*args: Any, **kwargs: Any) -> TrainResult:  # noqa: ANN401 - handed on
        """Train another model while another launch stores its own."""
        stored = {"model": first.model.as_dict(), "summary": first.summary.model_dump()}
        job_store.update({"uuid": slower.uuid, "index": 1, "output": stored}, save={"data": "model"})
        return train(*args, **kwargs | {"seed": 7})

    monkeypatch.setattr(makers.train, "train", overtaken)
    assert output(slower, job_store).model.sha256 == first.model.sha256


def test_a_training_on_energies_alone_is_told(labels, job_store, monkeypatch, caplog):
    del labels
    frames = alloys()
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0 * len(atoms))
    monkeypatch.setattr(makers.train, "to_training_frames", lambda _: frames)
    caplog.set_level("INFO", "makers.train")
    model = ModelConfig(n_radial=4, channels=2)
    maker = TrainMaker("p", settings_fingerprint(EMT), SYSTEM, 0.0, 0.05, 1, TrainConfig(max_steps=2), model)
    nothing = LabelSummary(asked=0, statuses={}, reused=0, label_ids=[], seconds=0.0)
    assert "force_mae_ev_per_a" not in output(maker.make(1, nothing), job_store).summary.metrics
    assert "force MAE - eV/Å" in caplog.text


def test_select_knows_every_end_of_a_relaxation():
    assert {str(reason) for reason in FailureReason} <= {*Flag, *HARMLESS_ENDS}


def relaxed(
    frames: list[Atoms], energies: list[float], statuses: list[str], origins: list[str], spread: float = 0.01
) -> RelaxDoc:
    totals = np.array([energy * len(atoms) for energy, atoms in zip(energies, frames, strict=True)])
    columns = {
        "energy": totals,
        "enthalpy": totals,
        "spread": np.full(len(frames), spread),
        "status": statuses,
        "reason": ["too_close" if status == "unsafe" else "" for status in statuses],
        "origin": origins,
        "lineage": ["rattle(parent)" if origin == "mutation" else "" for origin in origins],
        "phase_id": [""] * len(frames),
    }
    counts = RelaxCounts(statuses=dict(Counter(statuses)), reasons={}, seconds=0.0)
    unsafe = [atoms for atoms, status in zip(frames, statuses, strict=True) if status == "unsafe"]
    last_safe = StructureBatch.from_atoms(unsafe, {"reason": ["too_close"] * len(unsafe)})
    return RelaxDoc(relaxed=StructureBatch.from_atoms(frames, columns), last_safe=last_safe, counts=counts)


def test_select_counts_finds_ranks_and_keeps_what_is_unsafe_apart(job_store):
    copper, gold, layered, rocksalt = alloys()
    frames = [copper, gold, layered, make_supercell(layered, np.diag([1, 2, 1])), layered, rocksalt, bulk("Au", a=2.5)]
    energies = [0.0, 0.0, -0.1, -0.1, -0.1, 0.3, 5.0]
    origins = ["random", "random", "random", "prototype", "mutation", "random", "random"]
    doc = relaxed(frames, energies, ["converged"] * 6 + ["unsafe"], origins)
    nothing = pool_of([], job_store, phase_id=[], times_found=[], generation_found=[])
    job = SelectMaker("p", "f", SYSTEM, 1, SelectConfig()).make(state(generation=1), [doc], nothing, 10)
    selected = output(job, job_store)
    best = {str(atoms.symbols): atoms.info for atoms in selected.pool.to_atoms()}
    assert selected.ledger.ledger.hull_distances == pytest.approx({"Cu": 0.0, "Au": 0.0, "AuCu": 0.0})
    assert selected.summary.n_distinct == 4
    assert best["CuAu"]["e_above_hull"] == pytest.approx(0.4)
    assert sorted(selected.pool.columns["times_found"]) == [1, 1, 1, 2]  # what a mutation finds is no rediscovery
    assert selected.summary.statuses == {"converged": 6, "unsafe": 1}
    assert "too_close" not in selected.pool.columns
    assert Counter(selected.chosen.columns["reason"])["unsafe"] == 1


def test_compositions_that_the_committee_cannot_place_count_as_near_the_hull(job_store):
    doc = relaxed(alloys()[:2] + alloys()[3:], [0.0, 0.0, 0.3], ["converged"] * 3, ["random"] * 3, spread=0.2)
    nothing = pool_of([], job_store, phase_id=[], times_found=[], generation_found=[])
    heights = {}
    for optimism in (0.0, 1.0, 2.0):
        maker = SelectMaker("p", "f", SYSTEM, 1, SelectConfig(optimism=optimism))
        heights[optimism] = output(
            maker.make(state(generation=1), [doc], nothing, 3), job_store
        ).ledger.ledger.hull_distances
    assert heights == {
        0.0: pytest.approx({"Cu": 0.0, "Au": 0.0, "AuCu": 0.3}),
        1.0: pytest.approx({"Cu": 0.0, "Au": 0.0, "AuCu": 0.1}),
        2.0: pytest.approx({"Cu": 0.0, "Au": 0.0, "AuCu": 0.0}),
    }


def test_candidates_keep_where_they_came_from(job_store):
    doc = relaxed(alloys()[:3], [0.0, 0.0, -0.1], ["converged"] * 3, ["random", "prototype", "mutation"])
    nothing = pool_of([], job_store, phase_id=[], times_found=[], generation_found=[])
    job = SelectMaker("p", "f", SYSTEM, 1, SelectConfig()).make(state(generation=1), [doc], nothing, 3)
    found = {formula_of(a): (a.info["origin"], a.info["lineage"]) for a in output(job, job_store).pool.to_atoms()}
    assert found == {"Cu": ("random", ""), "Au": ("prototype", ""), "AuCu": ("mutation", "rattle(parent)")}


@pytest.fixture
def labels(job_store) -> list[LabelDoc]:
    """Return single points of the alloys by effective medium theory; all but the last are relaxed too."""
    batch = StructureBatch.from_atoms(alloys(), {"reason": ["stable"] * 4, "phase_id": ["Cu", "Au", "layered", "salt"]})
    output(LabelMaker("p", EMT).make(batch, 1, LabelKind.SINGLE_POINT), job_store)
    output(LabelMaker("p", EMT).make(batch.part(0, 3), 1, LabelKind.RELAXATION), job_store)
    return read_labels(job_store, "p", kind=LabelKind.SINGLE_POINT)


def test_advance_reads_the_hull_from_the_labels(labels):
    settings = AdvanceConfig(near_hull_ev=0.05, final_window_ev=0.1)
    hull = labelled_hull(labels, 0.0, settings)
    assert set(hull.members) == {"Au", "Cu", "layered"}
    lines = hull_members(labels, hull, Ledger(times_found={"layered": 4}), 0.0)
    assert {line.phase_id: line.times_found for line in lines} == {"Au": 0, "Cu": 0, "layered": 4}

    unlabelled = bulk("CuAu", "cesiumchloride", a=3.1)
    columns = {"phase_id": ["new", "salt"], "e_above_hull": [0.02, 0.01]}
    pool = StructureBatch.from_atoms([unlabelled, alloys()[3]], columns)
    final = final_phases(pool, labels, hull, settings)
    assert sorted(final.columns["phase_id"]) == [
        "Au",
        "Cu",
        "layered",
        "new",
    ]  # the label of "salt" outweighs the model
    assert set(final.columns["reason"]) == {"final"}


def test_report_ranks_what_first_principles_relaxed(labels, job_store):
    after = state(generation=2, n_labels=len(labels))
    ledger = ledger_of(job_store, attempts={"Cu": 3, "AuCu": 4})
    nothing = LabelSummary(asked=0, statuses={}, reused=0, label_ids=[], seconds=0.0)
    job = ReportMaker("p", "Au-Cu").make(after, ledger, "max_generations", "two generations were asked for", nothing)
    answer = output(job, job_store)
    assert [phase.phase_id for phase in answer.phases] == ["Au", "layered", "Cu"]  # by formula, all on the hull
    assert {phase.e_above_hull for phase in answer.phases} == {0}
    assert (answer.n_trials, answer.generations, answer.stop_reason) == (7, 2, "max_generations")
