"""The search file: what is right is read, what is wrong is explained in one sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from makers.errors import ConfigError
from workflows.config import SearchConfig, load_config, parse_config

GOOD: dict[str, Any] = {"project": "test", "system": "Mg-Si", "label": {"door": "ase", "calculator": "emt"}}


def with_value(path: str, value: object) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    *sections, key = path.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    return content


def test_a_short_file_is_enough():
    config = parse_config(GOOD)
    assert config.system == ("Mg", "Si")
    assert config.chemsys == "Mg-Si"
    assert config.pressure_gpa == 0


def test_resolved_file_reads_back_the_same():
    config = parse_config(GOOD)
    again = parse_config(yaml.safe_load(config.resolved_yaml()))
    assert again == config
    assert again.fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("path", "value"),
    [("pressure_gpa", 5), ("seed", 2), ("system", "Mg-O"), ("train.model.channels", 4), ("label.calculator", "lj")],
)
def test_another_system_or_physics_is_another_search(path: str, value: object):
    assert parse_config(with_value(path, value)).fingerprint() != parse_config(GOOD).fingerprint()


@pytest.mark.parametrize(
    ("path", "value"), [("relax.fmax", 0.011), ("label.workers", 3), ("advance.max_generations", 99)]
)
def test_budgets_and_machine_facts_may_change_in_a_search(path: str, value: object):
    assert parse_config(with_value(path, value)).fingerprint() == parse_config(GOOD).fingerprint()


def test_seeds_are_found_beside_the_search_file(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(with_value("generate.seeds", ["known", "/abs/a.cif"])))
    assert load_config(file).generate.seeds == (str(tmp_path / "known"), "/abs/a.cif")


def test_exponents_are_numbers(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(
        "project: t\nsystem: Mg\nlabel: {door: ase, calculator: emt, settings: {a: 1e-7, b: -2.5E3, c: e-7}}\n"
    )
    assert load_config(file).label.settings == {"a": 1e-7, "b": -2500.0, "c": "e-7"}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("relax.fmx", 0.1, "relax.fmx: unknown option; did you mean `fmax`?"),
        ("presure_gpa", 1, "presure_gpa: unknown option; did you mean `pressure_gpa`?"),
        ("train.model.chanels", 4, "train.model.chanels: unknown option; did you mean `channels`?"),
        ("label.worker", 2, "did you mean `workers`?"),
        ("pressure_gpa", -1, "pressure_gpa: input should be greater than or equal to 0, got -1"),
        ("system", "Mg-Sj", "did you mean"),
        ("system", "Mg-Mg", "expected each element once, got Mg-Mg"),
        ("project", "a b", "project: "),
        ("generate.compositions", ["Mg2O"], "expected formulae of Mg-Si, got 'Mg2O' with O"),
        ("generate.compositions", ["mg2si"], "generate.compositions: expected"),
        ("generate.atoms", [4, 2], "expected 1 <= least <= most, got (4, 2)"),
        ("label.calculator", "gpow", "gpaw"),
        ("label.door", "vasp", "label.door: expected `ase` or `atomate2`, got 'vasp'"),
        ("label.timeout", 3, "label.timeout: unknown option; did you mean `timeout_s`?"),
        ("system", "", "system: expected element symbols joined by `-`, as Mg-Si, got none"),
        ("relax.bonds_scale", 0.5, "relax.bonds_scale: a search starts from select.bonds_scale"),
    ],
)
def test_mistakes_are_explained(path: str, value: object, expected: str):
    with pytest.raises(ConfigError) as error:
        parse_config(with_value(path, value))
    assert expected in str(error.value)
    assert path.split(".", maxsplit=1)[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match="label: required, but not given"):
        parse_config({"project": "test", "system": "Mg-Si"})


@pytest.mark.parametrize(
    ("content", "expected"), [("a: [1", "not valid YAML"), ("- 1", "expected keys and values"), ("", "expected keys")]
)
def test_broken_files_are_explained(tmp_path, content: str, expected: str):
    file = tmp_path / "search.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(file)


def test_missing_file_says_how_to_start(tmp_path):
    with pytest.raises(ConfigError, match="hullseeker init"):
        load_config(tmp_path / "none.yaml")


def test_settings_never_change():
    with pytest.raises(ValueError, match="frozen"):
        SearchConfig.model_validate(GOOD).seed = 2
