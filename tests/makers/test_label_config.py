"""Label settings: strict keys, helpful refusals, and identities that change with the physics only."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from pydantic import TypeAdapter, ValidationError

from makers.config import VASP_LABEL_INCAR, AseLabelConfig, Atomate2LabelConfig, LabelConfig
from makers.documents import LabelKind
from makers.errors import ConfigError
from makers.labelling.calculators import check_labeller
from makers.labelling.identity import label_id, settings_fingerprint, structure_hash

GPAW = {"mode": {"name": "pw", "ecut": 200}, "kpts": {"density": 2.0, "gamma": True}}


def parse(**section: object) -> AseLabelConfig | Atomate2LabelConfig:
    return TypeAdapter(LabelConfig).validate_python(section)


def test_the_door_decides_which_settings_there_are() -> None:
    assert isinstance(parse(door="ase", calculator="emt"), AseLabelConfig)
    assert isinstance(parse(door="atomate2"), Atomate2LabelConfig)
    with pytest.raises(ValidationError, match="incar"):
        parse(door="ase", calculator="emt", incar={})
    with pytest.raises(ValidationError, match="door"):
        parse(door="vasp")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"calculator": "gpav"}, "did you mean 'gpaw'"),
        ({"calculator": "my module:make"}, "expected module:callable"),
        ({"calculator": "emt", "worker": 2}, "worker"),
        ({"calculator": "emt", "workers": 0}, "greater than 0"),
        ({"calculator": "emt", "timeout_s": -1}, "greater than 0"),
        ({"calculator": "emt", "max_failed_fraction": 2}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        parse(door="ase", **section)


def test_wrong_maker_path_is_refused() -> None:
    with pytest.raises(ValidationError, match="import path of a maker"):
        parse(door="atomate2", maker="MatPesGGAStaticMaker")


def test_names_of_calculators_are_found() -> None:
    assert parse(door="ase", calculator="EMT").model_dump()["calculator"] == "emt"
    check_labeller(AseLabelConfig(calculator="emt"))
    check_labeller(AseLabelConfig(calculator="ase.calculators.lj:LennardJones"))


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpaw", None)
    with pytest.raises(ConfigError, match=r"'gpaw' cannot be imported.*hullseeker\[dft\]"):
        check_labeller(AseLabelConfig(calculator="gpaw"))
    with pytest.raises(ConfigError, match="no_such_package"):
        check_labeller(AseLabelConfig(calculator="no_such_package:make"))
    with pytest.raises(ConfigError, match="no_such_function"):
        check_labeller(AseLabelConfig(calculator="ase.calculators.emt:no_such_function"))
    with pytest.raises(ConfigError, match="not callable"):
        check_labeller(AseLabelConfig(calculator="ase.calculators.emt:parameters"))


def test_incar_is_the_preset_with_the_users_tags_over_it() -> None:
    config = Atomate2LabelConfig(door="atomate2", incar={"encut": 800, "KSPACING": None, "NCORE": 4})
    assert config.full_incar["ENCUT"] == 800
    assert config.full_incar["NCORE"] == 4
    assert "KSPACING" not in config.full_incar
    assert Atomate2LabelConfig(door="atomate2").full_incar == VASP_LABEL_INCAR


def test_fingerprint_changes_with_the_physics_only() -> None:
    config = AseLabelConfig(calculator="gpaw", settings=GPAW)
    same = AseLabelConfig(
        calculator="GPAW",
        settings={"kpts": {"gamma": True, "density": 2}, "mode": {"ecut": 200.0, "name": "pw"}},
        workers=8,
        timeout_s=5.0,
        max_force=10.0,
        chunk_size=7,
    )
    other = AseLabelConfig(calculator="gpaw", settings=GPAW | {"kpts": {"density": 2.5, "gamma": True}})
    assert settings_fingerprint(config) == settings_fingerprint(same)
    assert settings_fingerprint(config) != settings_fingerprint(other)

    vasp = Atomate2LabelConfig(door="atomate2")
    assert settings_fingerprint(vasp) == settings_fingerprint(vasp.model_copy(update={"run_vasp": {"vasp_cmd": "v"}}))
    assert settings_fingerprint(vasp) != settings_fingerprint(vasp.model_copy(update={"incar": {"ENCUT": 700}}))
    # a stored identity: if this changes, every label of every database is orphaned
    assert settings_fingerprint(AseLabelConfig(calculator="emt")) == "39143542ff7c9fc20fa282268392ed1f"


def test_structure_hash_forgives_storage_and_nothing_else() -> None:
    atoms = bulk("Cu", cubic=True)
    noisy, moved, swapped = atoms.copy(), atoms.copy(), atoms.copy()
    noisy.positions += np.random.default_rng(0).uniform(-1e-9, 1e-9, noisy.positions.shape)
    moved.positions[0, 0] += 1e-3
    swapped.numbers[0] = 79
    assert structure_hash(noisy) == structure_hash(atoms)
    assert len({structure_hash(a) for a in (atoms, moved, swapped)}) == 3


def test_label_id_counts_pressure_for_relaxations_only() -> None:
    config = AseLabelConfig(calculator="emt")
    tighter = config.model_copy(update={"relax_fmax": 0.001})
    single = {label_id("s", c, LabelKind.SINGLE_POINT, p) for c in (config, tighter) for p in (0.0, 10.0)}
    relaxed = {label_id("s", c, LabelKind.RELAXATION, p) for c in (config, tighter) for p in (0.0, 10.0)}
    assert len(single) == 1
    assert len(relaxed) == 4
    assert single.isdisjoint(relaxed)
