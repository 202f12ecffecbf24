"""A killed relaxation continues; several processes give what one gives."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
from analytic import Morse, random_crystals

from acnn.config import RelaxConfig
from acnn.errors import ConfigError, DataError, NumericalError
from acnn.relax import journal, parallel, relax
from acnn.relax.guard import distance_table
from acnn.relax.journal import Journal
from acnn.relax.parallel import relax_parallel
from acnn.relax.pool import Job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ase import Atoms

SETTINGS = RelaxConfig(batch_atoms=16)
SHARED = RelaxConfig(batch_atoms=16, workers=2)


def test_a_killed_relaxation_continues(tmp_path: Path):
    frames = random_crystals(6, 10, (2, 6))
    for k, atoms in enumerate(frames):
        atoms.info["label"] = k
    whole = list(relax(frames, Morse(), SETTINGS, pressure_gpa=5.0))
    killed = relax(frames, Morse(), SETTINGS, pressure_gpa=5.0, folder=tmp_path)
    begun = list(islice(killed, 4))
    killed.close()
    again = Morse()
    rest = list(relax(frames, again, SETTINGS, pressure_gpa=5.0, folder=tmp_path))
    assert again.n_calls > 0
    assert [r.index for r in rest] == list(range(10))
    for one, other in zip(whole, rest, strict=True):
        assert other.status is one.status
        assert other.n_steps == one.n_steps
        assert other.atoms.info == one.atoms.info
        assert other.enthalpy == pytest.approx(one.enthalpy, abs=1e-9)
        assert np.allclose(other.atoms.positions, one.atoms.positions, atol=1e-6)
    assert len(begun) == 4
    third = Morse()
    assert len(list(relax(frames, third, SETTINGS, pressure_gpa=5.0, folder=tmp_path))) == 10
    assert third.n_calls == 0


def test_a_full_disk_costs_nothing_but_the_checkpoint(tmp_path: Path, full_disk: pytest.MonkeyPatch, caplog):
    frames = random_crystals(6, 3, (2, 4))
    whole = list(relax(frames, Morse(), SETTINGS, pressure_gpa=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acnn.relax.journal.FLUSH_RESULTS", 1)
        found = list(relax(frames, Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path / "kept"))
    assert [r.enthalpy for r in found] == [r.enthalpy for r in whole]
    [warning] = [record.message for record in caplog.records if "kept" in record.message]
    assert warning.endswith("what is done cannot be kept (No space left on device); if this is killed, it begins again")
    full_disk.undo()  # space again: nothing half written is read
    again = Morse()
    assert len(list(relax(frames, again, SETTINGS, pressure_gpa=0.0, folder=tmp_path / "kept"))) == 3
    assert again.n_calls > 0


def test_a_folder_serves_one_request_only(tmp_path: Path):
    frames = random_crystals(6, 3, (2, 4))
    list(relax(frames, Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path))
    with pytest.raises(ConfigError, match="other settings"):
        list(relax(frames, Morse(), RelaxConfig(fmax=0.5), pressure_gpa=0.0, folder=tmp_path))
    with pytest.raises(DataError, match="structure 0"):
        list(relax(frames[::-1], Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path))


def test_input_is_read_only_as_slots_become_free():
    taken = []

    def source() -> Iterator[Atoms]:
        for k, atoms in enumerate(random_crystals(7, 30, (4, 4))):
            taken.append(k)
            yield atoms

    results = relax(source(), Morse(), SETTINGS, pressure_gpa=0.0)
    next(results)
    assert len(taken) < 20


def test_a_torn_file_is_told_and_its_structures_are_relaxed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = random_crystals(7, 4, (2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acnn.relax.journal.FLUSH_RESULTS", 2)
        whole = list(relax(frames, Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path))
    torn = tmp_path / "part-000000.npz"
    for content in (torn.read_bytes()[:700], b"", b"junk"):
        torn.write_bytes(content)
        caplog.clear()
        again = Morse()
        found = list(relax(frames, again, SETTINGS, pressure_gpa=0.0, folder=tmp_path))
        assert [r.energy for r in found] == pytest.approx([r.energy for r in whole], abs=1e-9)
        assert again.n_calls > 0
        assert "part-000000.npz cannot be read" in caplog.text
        newest = max(tmp_path.glob("part-*.npz"))
        newest.unlink()  # what was relaxed again


def test_parts_whose_structures_alternate_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs = [Job(k, atoms, 0.0) for k, atoms in enumerate(random_crystals(7, 8, (2, 2)))]
    results = list(relax([job.atoms for job in jobs], Morse(), SETTINGS, pressure_gpa=0.0))
    written = Journal(tmp_path, {})
    assert list(written.remaining(iter(jobs))) == jobs
    for first in range(2):
        for result in results[first::2]:
            written.add(result)
        written.flush()
    opened: list[Path] = []
    read = journal._columns
    monkeypatch.setattr(journal, "_columns", lambda path: opened.append(path) or read(path))
    again = Journal(tmp_path, {})
    opened.clear()
    assert [kept.energy for kept in again.remaining(iter(jobs))] == [result.energy for result in results]
    assert sorted(path.name for path in opened) == ["part-000000.npz", "part-000001.npz"]


def test_what_is_done_is_not_held(tmp_path: Path):
    frames = random_crystals(7, 12, (2, 2))
    list(relax(frames, Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path))
    again = relax(islice(frames, 4), Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path)
    assert len(list(again)) == 4
    source = iter(frames)
    next(relax(source, Morse(), SETTINGS, pressure_gpa=0.0, folder=tmp_path))
    assert len(list(source)) == 11


def test_two_processes_give_what_one_gives():
    frames = random_crystals(8, 40, (2, 4))
    one = list(relax(frames, Morse(), SETTINGS, pressure_gpa=0.0))
    two = list(relax(frames, Morse(), SHARED, pressure_gpa=0.0))
    assert [r.index for r in two] == list(range(40))
    for a, b in zip(one, two, strict=True):
        assert b.n_steps == a.n_steps
        assert b.enthalpy == pytest.approx(a.enthalpy, abs=1e-9)


class Fatal(Morse):
    """Ends its process."""

    def compute(self, *_: object) -> NoReturn:
        """Die as a process does that the system kills."""
        os._exit(3)


def test_a_process_that_dies_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "PATIENCE", 0.1)
    with pytest.raises(NumericalError, match="exit code 3"):
        list(relax(random_crystals(8, 3, (2, 4)), Fatal(), SHARED, pressure_gpa=0.0))


def test_an_error_in_a_process_reaches_the_caller():
    def jobs() -> Iterator[Job]:
        yield from (Job(k, atoms, 0.0) for k, atoms in enumerate(random_crystals(8, 3, (2, 4))))
        raise DataError("no structure")

    with pytest.raises(DataError, match="no structure"):
        list(relax_parallel(jobs(), Morse(), SETTINGS, distance_table(None)))
