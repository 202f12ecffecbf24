"""Find the structures of ten real alloys among generated and relaxed crystals, against PyXtal's: success curves.

Usage: python benchmarks/generate_success.py --peer-python PYTHON [--seeds 10] [--n 20] [--kept FOLDER]

The reference potential is the effective medium theory of ASE (K. W. Jacobsen et al., Surf. Sci. 366, 394 (1996)),
evaluated for many crystals at once and checked against ASE's own in the same run. For every compound and seed both
generators answer the same requests: contents, space group, volume, least distances. All crystals are relaxed by the
same code. A seed succeeds after k crystals if the known structure is among the first k that were made and relaxed; a
request that a generator refuses costs it no relaxation. PyXtal's crystals take minutes and are kept in FOLDER. Once
more without pushing atoms apart: `unpushed`, as PyXtal does it.

With --attempts only the choice of `unpushed_attempts` is measured: the share of crystals that become the known
structure, and how many do per CPU second if relaxing one takes RELAXING; into generate_attempts.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT, beta
from generate import ours, requests_for, run, theirs
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.composition import Composition
from pymatgen.io.ase import AseAtomsAdaptor

from csp.config import GenerateConfig
from csp.generate.occupation import filler
from csp.generate.prototypes import library
from csp.generate.spread import Batch, Pairs, close_pairs, gather
from csp.generate.trial import plain_trial
from csp.generate.wyckoff import N_GROUPS
from csp.knowledge import Knowledge

Floats = NDArray[np.float64]

HERE = Path(__file__).parent
COMPOUNDS = {
    "Cu3Au": "AB3_cP4_221_a_c",
    "CuAu": "AB_tP2_123_a_d",
    "CuAu3": "AB3_cP4_221_a_c",
    "Ni3Al": "AB3_cP4_221_a_c",
    "NiAl": "AB_cP2_221_b_a",
    "NiPt": "AB_tP2_123_a_d",
    "CuPt": "AB_hR2_166_a_b",
    "Ni3Pt": "AB3_cP4_221_a_c",
    "CuPd": "AB_cP2_221_b_a",
    "Al2Au": "AB2_cF12_225_a_c",
}
STEPS = 150
LIST_EVERY = 5
SKIN = 0.5  # Å
FMAX = 0.03  # eV/Å, also for the strain gradient per atom
RELAXING = (0.006, 0.026, 0.1)  # s per crystal: our batched relaxation at 12 atoms takes the first
UNPUSHED = {"unpushed_attempts": 400, "max_attempts": 400}
PATIENCE = 3600.0  # CPU seconds for all crystals of one compound by the peer
ENERGY_WINDOW = 0.01  # eV/atom around the known structure within which crystals are compared with it


class Reference:
    """Effective medium theory for batches of crystals of some elements."""

    def __init__(self, elements: tuple[str, ...]) -> None:
        calculator = EMT()
        calculator.initialize(Atoms(elements))
        kinds = calculator.ia2iz
        self.par = {name: np.asarray(values)[kinds] for name, values in calculator.par.items()}
        self.chi = np.asarray(calculator.chi)[np.ix_(kinds, kinds)]
        self.rc, self.reach, self.acut = calculator.rc, calculator.rc_list, calculator.acut
        self.cutoffs = np.full((len(elements), len(elements)), self.reach)

    def __call__(self, batch: Batch, pairs: Pairs) -> tuple[Floats, Floats, Floats]:
        """Give energies (n_systems,), forces (n_atoms, 3) and strain gradients (n_systems, 3, 3)."""
        i, j, p = pairs.orbit, pairs.atom, self.par
        d = (batch.points[j] + pairs.image - batch.points[i])[:, None, :] @ batch.cells[batch.system[i]]
        d = d[:, 0]
        r = np.sqrt((d**2).sum(axis=1))
        near = r < self.reach
        i, j, d, r = i[near], j[near], d[near], r[near]
        a, b = batch.kinds[i], batch.kinds[j]
        n = len(batch.kinds)
        w = 1.0 / (1.0 + np.exp(self.acut * (r - self.rc)))
        slope = self.acut * (w - 1.0)
        one = np.exp(-p["eta2"][b] * (r - beta * p["s0"][b])) * self.chi[a, b] * w
        two = np.exp(-p["kappa"][b] * (r / beta - p["s0"][b])) * self.chi[a, b] * w * p["neghalfv0overgamma2"][a]
        sigma = np.maximum(np.bincount(i, one, n), 1e-12)
        k = batch.kinds
        ds = -np.log(sigma * p["inv12gamma1"][k]) / (beta * p["eta2"][k])
        x = p["lambda"][k] * ds
        cohesive, pull = p["E0"][k] * np.exp(-x), 6.0 * p["V0"][k] * np.exp(-p["kappa"][k] * ds)
        per_atom = cohesive * (1.0 + x) + pull + np.bincount(i, two, n) - p["E0"][k]
        deds = -cohesive * p["lambda"][k] * x - p["kappa"][k] * pull
        deds /= -beta * p["eta2"][k] * sigma
        g = deds[i] * one * (slope - p["eta2"][b]) + two * (slope - p["kappa"][b] / beta)
        f = (g / r)[:, None] * d
        forces = np.stack([np.bincount(i, f[:, c], n) - np.bincount(j, f[:, c], n) for c in range(3)], axis=1)
        m = len(batch.cells)
        virial = [np.bincount(batch.system[i], d[:, c] * f[:, e], m) for c in range(3) for e in range(3)]
        energies = np.bincount(batch.system, per_atom, m)
        return energies, forces, np.stack(virial, axis=1).reshape(m, 3, 3)


def relax(crystals: list[Atoms], elements: tuple[str, ...], reference: Reference) -> tuple[list[Atoms], Floats]:
    """Relax cells and positions by FIRE; give the final crystals and energies per atom, eV."""
    batch = batch_of(crystals, elements)
    system, m = batch.system, len(batch.cells)
    atoms_in = np.bincount(system, minlength=m).astype(float)
    velocity, cell_velocity = np.zeros((len(system), 3)), np.zeros((m, 3, 3))
    dt, mix, since = np.full(m, 0.1), np.full(m, 0.1), np.zeros(m)
    energies = np.zeros(m)
    for step in range(STEPS):
        if step % LIST_EVERY == 0:
            pairs = close_pairs(batch, reference.cutoffs, SKIN)
        energies, forces, gradient = reference(batch, pairs)
        pull = -gradient / atoms_in[:, None, None]
        power = _dot(system, velocity, forces, m) + (cell_velocity * pull).sum(axis=(1, 2))
        up = power > 0
        size = np.sqrt(_dot(system, forces, forces, m) + (pull**2).sum(axis=(1, 2))) + 1e-12
        speed = np.sqrt(_dot(system, velocity, velocity, m) + (cell_velocity**2).sum(axis=(1, 2)))
        keep, turn = np.where(up, 1 - mix, 0.0), np.where(up, mix * speed / size, 0.0)
        velocity = keep[system, None] * velocity + turn[system, None] * forces
        cell_velocity = keep[:, None, None] * cell_velocity + turn[:, None, None] * pull
        since = np.where(up, since + 1, 0)
        dt = np.where(up & (since > 5), np.minimum(1.1 * dt, 1.0), np.where(up, dt, 0.5 * dt))
        mix = np.where(up & (since > 5), 0.99 * mix, np.where(up, mix, 0.1))
        velocity += dt[system, None] * forces
        cell_velocity += dt[:, None, None] * pull
        move, strain = dt[system, None] * velocity, dt[:, None, None] * cell_velocity
        length = np.sqrt(_dot(system, move, move, m) + (strain**2).sum(axis=(1, 2)))
        short = np.minimum(1.0, 0.2 / np.maximum(length, 1e-12))
        inverse = np.linalg.inv(batch.cells)
        batch.points += ((short[system, None] * move)[:, None, :] @ inverse[system])[:, 0]
        deformation = (short / atoms_in)[:, None, None] * strain
        batch.cells = batch.cells @ (np.eye(3) + 0.5 * (deformation + deformation.transpose(0, 2, 1)))
    energies, _, _ = reference(batch, close_pairs(batch, reference.cutoffs, SKIN))
    starts = np.searchsorted(system, np.arange(m + 1))
    finished = [
        Atoms(
            [elements[kind] for kind in batch.kinds[starts[s] : starts[s + 1]]],
            cell=batch.cells[s],
            scaled_positions=batch.points[starts[s] : starts[s + 1]],
            pbc=True,
        )
        for s in range(m)
    ]
    return finished, energies / atoms_in


def batch_of(crystals: list[Atoms], elements: tuple[str, ...]) -> Batch:
    """Join crystals, every atom free."""
    return gather(
        [
            plain_trial(
                atoms.cell.array,
                np.array([elements.index(symbol) for symbol in atoms.get_chemical_symbols()]),
                atoms.get_scaled_positions(),
            )
            for atoms in crystals
        ]
    )


def _dot(system: NDArray[np.int64], a: Floats, b: Floats, m: int) -> Floats:
    return np.bincount(system, (a * b).sum(axis=1), m)


def check_reference() -> float:
    """Compare with ASE on a distorted alloy; give the largest difference of energy (eV), force and stress (eV/Å^3)."""
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.symbols[:3] = "Au"
    atoms.rattle(0.2, seed=3)
    elements = ("Au", "Cu")
    reference = Reference(elements)
    batch = batch_of([atoms], elements)
    energy, forces, gradient = reference(batch, close_pairs(batch, reference.cutoffs, SKIN))
    copy = Atoms([elements[kind] for kind in batch.kinds], cell=batch.cells[0], scaled_positions=batch.points, pbc=True)
    copy.calc = EMT()
    stress = copy.get_stress(voigt=False) * copy.get_volume()
    differences = [energy[0] - copy.get_potential_energy(), *(forces - copy.get_forces()).ravel()]
    worst = float(np.abs([*differences, *(gradient[0] - stress).ravel()]).max())
    assert worst < 1e-6, f"the batched potential differs from ASE's by {worst}"
    return worst


def known(compound: str, elements: tuple[str, ...]) -> Atoms:
    """Build the known structure."""
    wanted = Composition(compound).get_el_amt_dict()
    prototype = next(p for p in library() if p.name == COMPOUNDS[compound])
    counts = np.bincount(prototype.kinds)
    order = sorted(elements, key=lambda symbol: wanted[symbol])
    by_count = {kind: order[place] for place, kind in enumerate(np.argsort(counts, kind="stable").tolist())}
    volume = Knowledge.initial(elements, 0.0).volume(wanted) / sum(wanted.values()) * len(prototype.kinds)
    cell = prototype.cell * (volume / abs(np.linalg.det(prototype.cell))) ** (1 / 3)
    symbols = [by_count[kind] for kind in prototype.kinds.tolist()]
    return Atoms(symbols, cell=cell, scaled_positions=prototype.fractions, pbc=True)


def hits(crystals: list[Atoms], elements: tuple[str, ...], target: Atoms, reference: Reference) -> list[bool]:
    """Relax crystals in portions and tell which became the known structure."""
    matcher = StructureMatcher()
    (aim,), (energy,) = relax([target], elements, reference)
    wanted = AseAtomsAdaptor.get_structure(aim)
    found: list[bool] = []
    for start in range(0, len(crystals), 100):
        relaxed, energies = relax(crystals[start : start + 100], elements, reference)
        found.extend(
            bool(abs(value - energy) < ENERGY_WINDOW and matcher.fit(AseAtomsAdaptor.get_structure(atoms), wanted))
            for atoms, value in zip(relaxed, energies, strict=True)
        )
    return found


def curve(indices: list[int], found: list[bool], seeds: int, n: int) -> dict[str, Any]:
    """Turn hits into the share of seeds, blocks of ``n`` requests, that succeeded after each number of crystals."""
    first = np.full(seeds, np.inf)
    relaxed = np.zeros(seeds, dtype=int)
    for index, hit in sorted(zip(indices, found, strict=True)):
        seed = index // n
        relaxed[seed] += 1
        if hit:
            first[seed] = min(first[seed], relaxed[seed])
    return {
        "asked": seeds * n,
        "relaxed": len(found),
        "seeds": seeds,
        "hits": sum(found),
        "success_after": [float((first <= k).mean()) for k in range(1, n + 1)],
    }


def compare(compound: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one compound for both generators."""
    target, elements, knowledge, settings = _task(compound)
    reference = Reference(elements)
    seeds, n = arguments.seeds, arguments.n
    requests = [entry for seed in range(seeds) for entry in requests_for(knowledge, settings, n, seed=100 + seed)]
    row: dict[str, Any] = {"prototype": COMPOUNDS[compound]}
    for name, changed in (("ours", {}), ("unpushed", UNPUSHED)):
        made, refused, seconds = ours(knowledge, settings.model_copy(update=changed), requests)
        indices = [int(atoms.info["request"]) for atoms in made]
        row[name] = curve(indices, hits(made, elements, target, reference), seeds, n)
        row[name] |= {"refused": refused, "generation_cpu_s": seconds}
    if arguments.peer_python:
        answer = kept_or_made(compound, knowledge, requests, arguments)
        crystals = [Atoms(**crystal, pbc=True) for crystal in answer["crystals"]]
        row["pyxtal"] = curve(answer["places"], hits(crystals, elements, target, reference), seeds, n)
        row["pyxtal"] |= {"refused": answer["refused"], "generation_cpu_s": answer["cpu_seconds"]}
        row["pyxtal"]["version"] = answer["version"]
    return row


def sweep(compounds: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each number of first attempts without pushing, on requests that no other figure is taken from."""
    shares: dict[int, list[float]] = {tries: [] for tries in arguments.attempts}
    seconds, made = dict.fromkeys(shares, 0.0), dict.fromkeys(shares, 0)
    for compound in compounds:
        target, elements, knowledge, settings = _task(compound)
        drawn = [requests_for(knowledge, settings, arguments.n, seed=500 + seed) for seed in range(arguments.seeds)]
        requests = [entry for entries in drawn for entry in entries]
        for tries, found_shares in shares.items():
            changed = {"unpushed_attempts": tries, "max_attempts": max(40, tries + 30)}
            crystals, _, passed = ours(knowledge, settings.model_copy(update=changed), requests)
            found = hits(crystals, elements, target, Reference(elements))
            found_shares.append(sum(found) / len(found))
            seconds[tries], made[tries] = seconds[tries] + passed, made[tries] + len(found)
    table: dict[str, Any] = {}
    for tries, values in shares.items():
        share, making = float(np.mean(values)), seconds[tries] / made[tries]
        per_second = {f"relaxing {relaxing} s": share / (making + relaxing) for relaxing in RELAXING}
        table[str(tries)] = {"crystals": made[tries], "share": share, "making_s": making, "hits_per_s": per_second}
        print(tries, table[str(tries)], flush=True)
    return table


def _task(compound: str) -> tuple[Atoms, tuple[str, ...], Knowledge, GenerateConfig]:
    """Give a compound's known structure, its elements, first knowledge and settings."""
    target = known(compound, tuple(sorted(set(_symbols(compound)))))
    elements = tuple(dict.fromkeys(target.get_chemical_symbols()))
    settings = GenerateConfig(
        symmetric_fraction=1.0, volume_jitter=0.0, compositions=(compound,), atoms=(2, 8), formula_units=(1, 8)
    )
    return target, elements, Knowledge.initial(elements, 0.0), settings


def kept_or_made(
    compound: str, knowledge: Knowledge, requests: list[dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Give the peer's answers to all requests, from an earlier run where the requests are the same."""
    file = arguments.kept / f"{compound}.json" if arguments.kept else None
    if file and file.exists() and (kept := json.loads(file.read_text()))["requests"] == requests:
        answer: dict[str, Any] = kept["answer"]
        return answer
    answer = theirs(arguments.peer_python, knowledge, requests, PATIENCE, keep=True)
    answer["crystals"] = [
        {
            "symbols": atoms.get_chemical_symbols(),
            "cell": atoms.cell.tolist(),
            "scaled_positions": atoms.get_scaled_positions().tolist(),
        }
        for atoms in answer["crystals"]
    ]
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"requests": requests, "answer": answer}))
    return answer


def _symbols(formula: str) -> list[str]:
    """List the elements of a formula."""
    return [str(symbol) for symbol in Atoms(formula).get_chemical_symbols()]


def main() -> None:
    """Run all compounds and keep the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default="", help="Python of an environment with PyXtal")
    parser.add_argument("--n", type=int, default=20, help="requests per seed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--kept", type=Path, help="folder for the peer's crystals")
    parser.add_argument("--compounds", default=",".join(COMPOUNDS))
    parser.add_argument("--attempts", type=int, nargs="+", help="numbers of first attempts without pushing to compare")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "generate_success.json")
    arguments = parser.parse_args()
    if arguments.attempts:
        for number in range(1, N_GROUPS + 1):
            filler(number)  # tables are derived once per process; not part of the times
        answer = {"run": run(), "result": sweep(arguments.compounds.split(","), arguments)}
        arguments.out.with_name("generate_attempts.json").write_text(json.dumps(answer, indent=1) + "\n")
        return
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    difference = check_reference()
    for compound in arguments.compounds.split(","):
        row = {"run": run(), "difference_from_ase": difference, **compare(compound, arguments)}
        results[compound] = row
        short = {
            name: (row[name]["hits"], row[name]["relaxed"], row[name]["success_after"][-1])
            for name in ("ours", "unpushed", "pyxtal")
            if name in row
        }
        print(compound, row["prototype"], short, flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
