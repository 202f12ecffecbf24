"""`hullseeker generate`: trial crystals in a file that says where each came from, and the same as a search makes."""

from __future__ import annotations

import numpy as np
import pytest
from ase.io import read

import csp.errors
from csp.generate import generate
from csp.geometry import least_excess
from makers.errors import ConfigError
from makers.stage import Stage, seed_sequence
from workflows.trials import write_trials

N = 24


def test_the_file_holds_the_crystals_of_the_search_and_where_they_came_from(tiny_config, tmp_path):
    config = tiny_config()
    text = write_trials(config, N, tmp_path / "a.extxyz", generation=0, processes=1)
    assert text.startswith(f"made {N} of {N} crystals")
    again = [
        atoms
        for chunk in range(3)
        for atoms in generate(
            config.trial_settings,
            config.first_knowledge,
            elements=config.system,
            n=8,
            seed=seed_sequence(config.seed, 0, Stage.GENERATE, chunk),
        ).atoms
    ]
    written = read(tmp_path / "a.extxyz", index=":")
    for one, two in zip(written, again, strict=True):
        assert one.info == {name: value for name, value in two.info.items() if value != ""}
        assert np.allclose(one.positions, two.positions, atol=1e-7)
    assert {atoms.info["origin"] for atoms in written} == {"random", "prototype"}


def test_cores_do_not_change_the_file(tiny_config, tmp_path):
    for processes in (1, 2):
        write_trials(tiny_config(), N, tmp_path / f"{processes}.extxyz", generation=2, processes=processes)
    assert (tmp_path / "1.extxyz").read_bytes() == (tmp_path / "2.extxyz").read_bytes()


def test_given_distances_and_volumes_are_kept(tiny_config, tmp_path):
    config = tiny_config(
        generate__distances={"Au-Cu": 2.9}, generate__volumes={"Cu": 20.0}, generate__volume_jitter=0.0
    )
    write_trials(config, N, tmp_path / "a.extxyz", generation=0, processes=1)
    frames = read(tmp_path / "a.extxyz", index=":")
    mixed = [atoms for atoms in frames if len(set(atoms.numbers)) == 2]
    assert mixed
    for atoms in mixed:
        limits = np.where(atoms.numbers[:, None] == atoms.numbers, 0.0, 2.9)
        assert least_excess(atoms, limits) > -1e-6
    copper = [atoms.get_volume() / len(atoms) for atoms in frames if atoms.info["formula"] == "Cu"]
    assert copper == pytest.approx([20.0] * len(copper))
    assert copper


@pytest.mark.parametrize(
    ("name", "message"), [("a.cif", "ends in .extxyz"), ("no/a.extxyz", "can be written")], ids=["suffix", "folder"]
)
def test_a_file_that_cannot_be_is_an_error(tiny_config, tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        write_trials(tiny_config(), 2, tmp_path / name, generation=0, processes=1)


def test_an_earlier_file_stays_until_the_new_one_is_whole(tiny_config, tmp_path):
    out = tmp_path / "a.extxyz"
    out.write_text("precious")
    config = tiny_config(generate__space_groups=[225], generate__symmetry_operations=[1, 4])
    with pytest.raises(csp.errors.ConfigError):
        write_trials(config, 2, out, generation=0, processes=1)
    assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


def test_fluorine_is_read_back_as_text(tiny_config, tmp_path):
    config = tiny_config(system="Cu-F", generate__compositions=["F"], generate__prototype_share=0.0)
    write_trials(config, 4, tmp_path / "a.extxyz", generation=0, processes=1)
    assert {atoms.info["formula"] for atoms in read(tmp_path / "a.extxyz", index=":")} == {"F", "Cu"}


def test_no_crystal_at_all_is_an_error(tiny_config, tmp_path):
    config = tiny_config(generate__distance_scale=5.0)
    with pytest.raises(ConfigError, match=r"none of 3 crystals could be made \(3 too_dense\)"):
        write_trials(config, 3, tmp_path / "a.extxyz", generation=0, processes=1)
    assert not list(tmp_path.iterdir())


def test_crystals_alone_need_no_cells_of_the_elements(tiny_config, tmp_path):
    config = tiny_config(generate__atoms=[8, 16], generate__formula_units=[1, 4], generate__compositions=["Cu3Au"])
    write_trials(config, 3, tmp_path / "a.extxyz", generation=0, processes=1)
    assert {atoms.info["formula"] for atoms in read(tmp_path / "a.extxyz", index=":")} == {"AuCu3"}
    with pytest.raises(ConfigError, match=r"a search makes the elements too.*as in atoms: \[1, 16\].*Cu has 1 atoms"):
        config.trial_settings  # noqa: B018 - the property checks
