"""Bulk data in the store: what goes in comes out, what is damaged or too new is refused, nothing is unpickled."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from monty.json import MontyDecoder, MontyEncoder

from makers.blobs import BATCH_FORMAT, ModelBlob, StructureBatch


def through_the_store(thing: object) -> object:
    return MontyDecoder().process_decoded(json.loads(json.dumps(thing, cls=MontyEncoder)))


def frames() -> list[Atoms]:
    return [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.6), bulk("Mg"), bulk("Au", cubic=True)]


def test_structures_and_columns_come_back_exactly():
    columns = {
        "reason": ["stable", "uncertain", "", "é"],
        "energy": [1.5, -2.25, np.nan, 1e-300],
        "times_found": [1, 2, 3, 2**40],
        "good": [True, False, True, True],
    }
    batch = through_the_store(StructureBatch.from_atoms(frames(), columns))
    assert len(batch) == 4
    for before, after, i in zip(frames(), batch.to_atoms(), range(4), strict=True):
        assert np.array_equal(before.numbers, after.numbers)
        assert np.array_equal(before.positions, after.positions)
        assert np.array_equal(before.cell.array, after.cell.array)
        assert after.pbc.all()
        assert {name: type(value) for name, value in after.info.items()} == {
            "reason": str,
            "energy": float,
            "times_found": int,
            "good": bool,
        }
        expected = {name: values[i] for name, values in columns.items()}
        assert after.info["energy"] == pytest.approx(expected.pop("energy"), rel=0, abs=0, nan_ok=True)
        assert {name: after.info[name] for name in expected} == expected


def test_without_columns_the_common_scalars_are_kept():
    atoms = frames()
    for i, frame in enumerate(atoms):
        frame.info = {"origin": "random", "rank": i, "array": np.zeros(3)}
    atoms[0].info["only here"] = 1
    assert set(StructureBatch.from_atoms(atoms).columns) == {"origin", "rank"}
    assert StructureBatch.from_atoms(atoms, {}).columns == {}


def test_empty_batch():
    batch = through_the_store(StructureBatch.from_atoms([], {"reason": []}))
    assert (len(batch), batch.to_atoms(), list(batch.columns)) == (0, [], ["reason"])
    assert batch.positions.shape == (0, 3)
    assert batch.cells.shape == (0, 3, 3)


def test_ten_thousand_structures_are_small():
    rng = np.random.default_rng(0)
    crystals = [
        Atoms(rng.integers(1, 90, 8), positions=rng.random((8, 3)), cell=rng.random((3, 3)), pbc=True)
        for _ in range(1000)
    ]
    size = len(json.dumps(StructureBatch.from_atoms(crystals).as_dict()))
    assert size / 1000 < 8 * (3 * 8 + 2) * 1.6 + 200  # the bare numbers in base64, and little more


def test_batch_of_a_newer_version_is_refused():
    stored = StructureBatch.from_atoms(frames()).as_dict()
    with pytest.raises(ValueError, match="reads up to 1: update hullseeker"):
        StructureBatch.from_dict(stored | {"format": BATCH_FORMAT + 1})


def test_no_pickle_is_read_or_written():
    with pytest.raises(ValueError, match=r"got objects in"):
        StructureBatch.from_atoms(frames(), {"bad": [object()] * 4}).as_dict()
    buffer = io.BytesIO()
    np.savez(buffer, numbers=np.array([{"a": "pickle"}], dtype=object))
    stored = StructureBatch.from_atoms([]).as_dict() | {"npz": base64.b64encode(buffer.getvalue()).decode()}
    with pytest.raises(ValueError, match="allow_pickle"):
        StructureBatch.from_dict(stored)


def test_model_comes_back_and_damage_is_noticed():
    blob = ModelBlob(b"\x00weights\xff" * 100)
    assert through_the_store(blob).content == blob.content
    stored = blob.as_dict()
    other = base64.b64encode(b"\x01" + blob.content[1:]).decode()
    with pytest.raises(ValueError, match="damaged: its hash does not match"):
        ModelBlob.from_dict(stored | {"content": other})


@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 3), (3, 10), (2, 2)])
def test_part_of_a_batch(first, last):
    part = StructureBatch.from_atoms(frames(), {"n": [0, 1, 2, 3]}).part(first, last)
    wanted = frames()[first:last]
    assert len(part) == len(wanted)
    for before, after, n in zip(wanted, part.to_atoms(), range(first, last), strict=False):
        assert np.array_equal(before.positions, after.positions)
        assert np.array_equal(before.numbers, after.numbers)
        assert after.info["n"] == n
