from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from pymatgen.core.structure import Structure

from csp.config import GenerateConfig
from csp.errors import DataError
from csp.generate import Generated, generate
from csp.generate.mutations import Mutations, Parent, soft_modes
from csp.generate.prototypes import Prototypes, library
from csp.generate.seeds import load_seeds
from csp.geometry import least_excess
from csp.knowledge import Knowledge

SYSTEM = ("Mg", "O")
SEED = np.random.SeedSequence(7, spawn_key=(2, 0, 0))


def _generate(n: int, *, parents: tuple[Atoms, ...] = (), **settings: object) -> Generated:
    return generate(
        GenerateConfig.model_validate(settings),
        Knowledge.initial(SYSTEM, 0.0),
        elements=SYSTEM,
        n=n,
        seed=SEED,
        parents=parents,
    )


def _rocksalt() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True)
    atoms.info["name"] = "rocksalt"
    return atoms


def test_the_prototype_library_holds_the_common_structures():
    names = {prototype.name for prototype in library()}
    assert {"A_cF4_225_a", "A_cI2_229_a", "AB_cF8_225_a_b", "AB_cP2_221_b_a", "A2BC4_cF56_227_d_a_e"} <= names
    assert Counter(len(set(p.kinds.tolist())) for p in library()).keys() >= {1, 2, 3}


def test_prototypes_are_decorated_and_scaled():
    knowledge = Knowledge.initial(SYSTEM, 0.0)
    made = _generate(60, random_share=0, prototype_share=1, mutation_share=0, volume_jitter=0.0)
    assert {atoms.info["origin"] for atoms in made.atoms} == {"prototype"}
    for atoms in made.atoms:
        assert atoms.get_volume() == pytest.approx(knowledge.volume(Counter(atoms.get_chemical_symbols())))
        assert len(atoms) <= 16


def test_listed_compositions_hold_for_prototypes_too():
    prototypes = Prototypes(GenerateConfig(compositions=("MgO",)), Knowledge.initial(SYSTEM, 0.0), SYSTEM)
    assert prototypes.formulae == ["MgO"]
    assert "AB_cF8_225_a_b" in {prototype.name for prototype, _ in prototypes.by_formula["MgO"]}


def test_every_mutation_keeps_its_lineage_and_its_distances():
    parents = (_rocksalt(), bulk("Mg"), bulk("MgO", "wurtzite", a=3.3, c=5.1))
    made = _generate(200, parents=parents, random_share=0, prototype_share=0, mutation_share=1)
    knowledge = Knowledge.initial(SYSTEM, 0.0)
    operators = Counter(atoms.info["lineage"].split("(")[0] for atoms in made.atoms)
    assert set(operators) == {"strain", "rattle", "permutation", "soft", "crossover", "substitution", "defect"}
    assert any("rocksalt" in atoms.info["lineage"] for atoms in made.atoms)
    assert {atoms.info["family"] for atoms in made.atoms} == {"rocksalt", "parent1", "parent2"}
    for atoms in made.atoms:
        assert least_excess(atoms, knowledge.distance_matrix(atoms.numbers)) > -1e-9


def test_mutations_stay_within_listed_compositions():
    made = _generate(60, parents=(_rocksalt(),), compositions=("MgO",), random_share=0, mutation_share=1)
    assert {atoms.info["formula"] for atoms in made.atoms} == {"MgO"}


def test_without_parents_mutations_become_random_crystals():
    made = _generate(20, prototype_share=0, mutation_share=1, random_share=1)
    assert {atoms.info["origin"] for atoms in made.atoms} == {"random"}


def test_foreign_parents_are_left_out():
    knowledge = Knowledge.initial(SYSTEM, 0.0)
    large = _rocksalt().repeat(3)
    large.rattle(0.1, seed=0)
    assert not Mutations(GenerateConfig(), knowledge, SYSTEM, [bulk("Cu"), large]).parents


def test_a_smaller_system_than_is_known_stays_itself():
    knowledge = Knowledge.initial(("Mg", "O", "Ca"), 0.0)
    settings = GenerateConfig(mutation_share=5)
    made = generate(settings, knowledge, elements=SYSTEM, n=60, seed=SEED, parents=[_rocksalt(), bulk("Ca")])
    assert set().union(*(atoms.get_chemical_symbols() for atoms in made.atoms)) == set(SYSTEM)


def test_soft_modes_are_normal_patterns():
    atoms = _rocksalt()
    parent = Parent(atoms.cell.array, np.zeros(8, dtype=int), atoms.get_scaled_positions(), "a", "a")
    modes = soft_modes(parent, atoms.get_chemical_symbols())
    assert np.allclose(np.linalg.norm(modes, axis=2).max(axis=1), 1)
    assert np.abs(modes.sum(axis=1)).max() < 1e-6


def test_seeds_are_read_from_everything(tmp_path: Path):
    atoms = _rocksalt()
    write(tmp_path / "a.cif", atoms)
    write(tmp_path / "POSCAR_b", atoms, format="vasp")
    write(tmp_path / "c.extxyz", [atoms, atoms])
    structure = Structure.from_file(tmp_path / "a.cif")
    seeds = load_seeds([tmp_path, str(tmp_path / "a.cif"), structure, atoms])
    assert [seed.info["seed"] for seed in seeds[:4]] == ["POSCAR_b", "a.cif", "c.extxyz:0", "c.extxyz:1"]
    assert all(sorted(seed.get_chemical_symbols()) == ["Mg"] * 4 + ["O"] * 4 for seed in seeds)
    assert len(seeds) == 7


def test_seeds_come_once_plain_and_then_varied(tmp_path: Path):
    write(tmp_path / "a.cif", _rocksalt())
    made = _generate(20, seeds=(str(tmp_path),), seed_share=1.0, random_share=1.0)
    seeds = [atoms for atoms in made.atoms if atoms.info["origin"] == "seed"]
    assert seeds[0].info["lineage"] == "a.cif"
    assert seeds[0].get_volume() == pytest.approx(_rocksalt().get_volume())
    assert len(seeds) > 5
    assert {atoms.info["family"] for atoms in seeds} == {"a.cif"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.cif", None, "does not exist"),
        ("POSCAR", "nonsense", "cannot be read"),
        ("a.xyz", "1\n\nMg 0 0 0\n", "no cell"),
    ],
    ids=["missing", "nonsense", "molecule"],
)
def test_bad_seeds_are_named(tmp_path: Path, name: str, content: str | None, message: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_seeds([tmp_path / name])


def test_every_data_block_of_a_cif_is_a_seed(tmp_path: Path):
    write(tmp_path / "two.cif", [_rocksalt(), bulk("Mg", "bcc", a=3.6, cubic=True)], format="cif")
    assert [len(seed) for seed in load_seeds([tmp_path / "two.cif"])] == [8, 2]


def test_partly_occupied_sites_are_refused_whatever_the_case_of_the_name(tmp_path: Path):
    write(tmp_path / "a.cif", _rocksalt(), format="cif")
    structure = Structure.from_file(tmp_path / "a.cif")
    structure[0] = {"Mg": 0.5}
    structure.to(str(tmp_path / "a.cif"))
    (tmp_path / "a.cif").rename(tmp_path / "b.CIF")
    with pytest.raises(DataError, match="partly occupied"):
        load_seeds([tmp_path / "b.CIF"])


def test_a_folder_is_read_whatever_the_case_and_tells_what_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path / "a.CIF", _rocksalt(), format="cif")
    write(tmp_path / "b.poscar", _rocksalt(), format="vasp")
    write(tmp_path / "mp-1.POSCAR", _rocksalt(), format="vasp")
    write(tmp_path / "c.json", _rocksalt())
    (tmp_path / "notes.txt").write_text("notes")
    seeds = load_seeds([tmp_path])
    assert [seed.info["seed"] for seed in seeds] == ["a.CIF", "b.poscar", "c.json", "mp-1.POSCAR"]
    assert "skipped notes.txt" in caplog.text


def test_a_seed_with_coordinates_that_are_no_numbers_is_named():
    broken = _rocksalt()
    broken.positions[3, 1] = np.nan
    with pytest.raises(DataError, match="seed 1 has coordinates"):
        load_seeds([_rocksalt(), broken])


def test_an_empty_folder_and_a_seed_with_too_many_foreign_elements_are_errors(tmp_path: Path):
    with pytest.raises(DataError, match="holds none of"):
        load_seeds([tmp_path])
    atoms = _rocksalt()
    atoms.symbols[0] = "Cu"
    write(tmp_path / "a.cif", atoms)
    with pytest.raises(DataError, match="contains Cu"):
        _generate(3, seeds=(str(tmp_path),))


def test_foreign_ions_of_seeds_are_substituted(tmp_path: Path):
    write(tmp_path / "salt.cif", bulk("NaCl", "rocksalt", a=5.64))
    write(tmp_path / "lime.cif", bulk("CaO", "rocksalt", a=4.81))
    made = _generate(3, seeds=(str(tmp_path),), volume_jitter=0.0)
    found = {atoms.info["lineage"]: atoms for atoms in made.atoms}
    assert set(found) == {"lime.cif(Mg for Ca)", "salt.cif(Mg for Cl, O for Na)", "salt.cif(O for Cl, Mg for Na)"}
    knowledge = Knowledge.initial(SYSTEM, 0.0)
    for atoms in found.values():
        assert atoms.info["formula"] == "MgO"
        assert atoms.get_volume() == pytest.approx(knowledge.volume({"Mg": 1, "O": 1}))
        assert np.allclose(atoms.get_distance(0, 1, mic=True), 0.5 * (4 * atoms.get_volume()) ** (1 / 3))
