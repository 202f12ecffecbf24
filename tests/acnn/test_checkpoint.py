"""Models are refused with a sentence when they are damaged, foreign or too new."""

import json
import pickle

import pytest
import safetensors.torch
import torch

from acnn import checkpoint
from acnn.config import ModelConfig
from acnn.errors import ModelError
from acnn.nn.potential import Potential

SMALL = ModelConfig(n_radial=4, channels=3, mixed_channels=3, hidden=(6,), members=2)


@pytest.fixture
def data() -> bytes:
    potential = Potential(SMALL, ["Mg", "Ca"], seed=1)
    potential.metadata = {"label_fingerprint": "PBE", "trainings": [{"steps": 3}]}
    return checkpoint.dumps(potential)


def with_header(**changes: object) -> bytes:
    header = {"version": 2, "config": SMALL.model_dump(mode="json"), "elements": ["Mg"], **changes}
    return safetensors.torch.save({"x": torch.zeros(1)}, metadata={checkpoint.FORMAT: json.dumps(header)})


def test_bytes_round_trip(data):
    loaded = checkpoint.loads(data)
    assert checkpoint.dumps(loaded) == data
    assert loaded.elements == ("Mg", "Ca")
    assert loaded.metadata["label_fingerprint"] == "PBE"
    header = checkpoint.read_header(data)
    assert header["cutoff"] == loaded.cutoff
    assert header["units"]["energy"] == "eV"


def test_reference_energies_stay_exact_in_single_precision():
    potential = Potential(SMALL, ["Mg", "Ca"])
    potential.reference.fill_(-12345.678901234567)
    loaded = checkpoint.loads(checkpoint.dumps(potential.to(torch.float32)))
    assert loaded.reference.dtype == torch.float64
    assert float(loaded.reference[0]) == -12345.678901234567


def test_file_round_trip(data, tmp_path):
    path = tmp_path / "a.acnn"
    checkpoint.save(checkpoint.loads(data), path)
    assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["a.acnn"]
    assert checkpoint.load(path).elements == ("Mg", "Ca")


BROKEN = {
    "empty": b"",
    "zeros": bytes(64),
    "pickle": pickle.dumps({"weights": 1}),
    "foreign safetensors": safetensors.torch.save({"x": torch.zeros(2)}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_foreign_bytes_are_refused(content):
    with pytest.raises(ModelError, match="not a potential"):
        checkpoint.loads(content)


@pytest.mark.parametrize("kept", [200, -100], ids=["header cut", "tensors cut"])
def test_cut_bytes_are_refused(data, kept):
    with pytest.raises(ModelError, match=r"not a potential|damaged"):
        checkpoint.loads(data[:kept])


def test_newer_version_is_refused():
    with pytest.raises(ModelError, match=r"format version 99 .written by acnn 9\.9., this program reads up to 4"):
        checkpoint.loads(with_header(version=99, written_by="9.9"))


@pytest.mark.parametrize("metadata", [None, [1], "text"])
def test_metadata_of_no_kind_is_refused(metadata):
    header = {"version": 2, "config": SMALL.model_dump(mode="json"), "elements": ["Mg"], "metadata": metadata}
    tensors = dict(Potential(SMALL, ["Mg"]).state_dict())
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.loads(safetensors.torch.save(tensors, metadata={checkpoint.FORMAT: json.dumps(header)}))


@pytest.mark.parametrize("text", ['{"version": Infinity}', "[" * 100_000], ids=["infinity", "nested"])
def test_headers_that_no_parser_survives_are_refused(text):
    with pytest.raises(ModelError, match="not a potential"):
        checkpoint.loads(safetensors.torch.save({}, metadata={checkpoint.FORMAT: text}))


def test_the_one_factor_of_version_1_calibrates_both_spreads(data):
    potential = checkpoint.loads(data)
    tensors = potential.state_dict() | {"calibration": torch.tensor(3.0, dtype=torch.float64)}
    header = {"version": 1, "config": SMALL.model_dump(mode="json"), "elements": list(potential.elements)}
    loaded = checkpoint.loads(safetensors.torch.save(tensors, metadata={checkpoint.FORMAT: json.dumps(header)}))
    assert loaded.calibration.tolist() == [3.0, 3.0]


def test_a_flipped_bit_anywhere_is_refused(data):
    length = int.from_bytes(data[:8], "little")
    text = data[: 8 + length].rstrip(b" ")  # a header is filled up with spaces, which mean nothing
    places = [*range(0, len(text), 7), *range(8 + length, len(data), 131)]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(ModelError, match=r"damaged|not a potential|format version"):
            checkpoint.loads(bytes(damaged))


@pytest.mark.parametrize("version", [1, 2])
def test_versions_without_a_hash_are_read(data, version):
    tensors = checkpoint.loads(data).state_dict()
    if version == 1:
        tensors["calibration"] = tensors["calibration"][0]
    header = {"version": version, "config": SMALL.model_dump(mode="json"), "elements": ["Mg", "Ca"]}
    loaded = checkpoint.loads(safetensors.torch.save(tensors, metadata={checkpoint.FORMAT: json.dumps(header)}))
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), checkpoint.loads(data).state_dict().values(), strict=True)
    )


def test_missing_tensors_and_unknown_settings_are_refused():
    with pytest.raises(ModelError, match="does not fit its header"):
        checkpoint.loads(with_header())
    with pytest.raises(ModelError, match="does not fit its header"):
        checkpoint.loads(with_header(config={"no_such_key": 1}))


def test_numbers_that_are_not_finite_are_refused():
    potential = Potential(SMALL, ["Mg"])
    with torch.no_grad():
        potential.fitting.linear.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        checkpoint.loads(checkpoint.dumps(potential))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"missing\.acnn: cannot be read"):
        checkpoint.load(tmp_path / "missing.acnn")
