"""Measure how fast trial crystals are made, and check them: against PyXtal, on equal requests.

Usage: python benchmarks/generate.py [--peer-python PYTHON] [--n 300] [--sections rate,twelve,groups,distances]

Every request is a composition, a space group that can hold it and a volume; both generators get the same ones with the
same least distances. A rate is valid crystals per CPU second of one core; a crystal is valid if its least distances
hold over all periodic images (checked by pymatgen's neighbour search for both). PyXtal runs in its own environment:
python -m venv /tmp/pyxtal-venv && /tmp/pyxtal-venv/bin/pip install pyxtal
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from generate_checks import excess, keeps_symmetry, letters, nasty

from csp.compositions import plan_compositions
from csp.config import GenerateConfig
from csp.generate import generate
from csp.generate.occupation import filler
from csp.generate.pool import Pool, Request
from csp.generate.symmetric import RandomCrystals
from csp.generate.wyckoff import N_GROUPS
from csp.knowledge import Knowledge

HERE = Path(__file__).parent
ALL_GROUPS = range(1, N_GROUPS + 1)
ROUNDING = 1e-6  # Å
CLATHRATE = ("Ca6d H6c H16i H24k Mg2a", "Ca6c H6d H16i H24k Mg2a")  # one crystal: 6c and 6d change places by a shift
CHUNK = 1000  # crystals made by one call in the distance check
ENOUGH = 0.99  # of the crystals have at least the symmetry asked for
SYSTEMS: dict[str, tuple[tuple[str, ...], float, dict[str, Any]]] = {
    "Mg-Ca-H at 200 GPa, 8-60 atoms": (("Mg", "Ca", "H"), 200.0, {"atoms": (8, 60), "formula_units": (1, 16)}),
    "Be-P-N-O, 6-40 atoms": (("Be", "P", "N", "O"), 0.0, {"atoms": (6, 40), "formula_units": (1, 16)}),
    "TiO2, 6-24 atoms": (("Ti", "O"), 0.0, {"atoms": (6, 24), "compositions": ("TiO2",)}),
    "Si, 4-24 atoms": (("Si",), 0.0, {"atoms": (4, 24), "compositions": ("Si",), "formula_units": (4, 24)}),
}


def requests_for(knowledge: Knowledge, settings: GenerateConfig, n: int, seed: int) -> list[dict[str, Any]]:
    """Draw requests: contents by the plan, a group evenly from those that can hold them, the known volume."""
    rng = np.random.default_rng(seed)
    drawn: list[dict[str, Any]] = []
    for counts in plan_compositions(knowledge.elements, settings, rng, n):
        atoms = tuple(counts.get(symbol, 0) for symbol in knowledge.elements)
        possible = [number for number in settings.space_groups or ALL_GROUPS if filler(number).possible(atoms)]
        if possible:
            drawn.append(
                {
                    "group": int(rng.choice(possible)),
                    "species": list(counts),
                    "counts": list(counts.values()),
                    "volume": knowledge.volume(counts),
                    "seed": int(rng.integers(2**31)),
                }
            )
    return drawn


def ours(
    knowledge: Knowledge, settings: GenerateConfig, requests: list[dict[str, Any]]
) -> tuple[list[Atoms], dict[str, int], float]:
    """Answer the requests with this generator; give crystals, refusals and CPU seconds."""
    crystals = {
        number: RandomCrystals(settings.model_copy(update={"space_groups": (number,)}), knowledge)
        for number in {request["group"] for request in requests}
    }
    made: list[Atoms] = []
    started = time.process_time()
    tasks = [
        Request(
            i,
            partial(crystals[request["group"]].propose, dict(zip(request["species"], request["counts"], strict=True))),
            np.random.default_rng(request["seed"]),
        )
        for i, request in enumerate(requests)
    ]

    def accept(request: Request, atoms: Atoms) -> None:
        atoms.info |= {"request": request.index, "trial": request.proposal.trial}
        made.append(atoms)

    refused = Pool(settings, knowledge, knowledge.elements).work(tasks, accept)
    return made, refused, time.process_time() - started


def theirs(
    python: str,
    knowledge: Knowledge,
    requests: list[dict[str, Any]],
    budget_s: float,
    *,
    least: int = 0,
    keep: bool = False,
) -> dict[str, Any]:
    """Answer the requests with PyXtal in its own environment, for some CPU seconds but at least so many of them.

    The crystals and their places are kept if asked.
    """
    pairs = [(*(pair.split("-")), distance) for pair, distance in knowledge.distances.items()]
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder, "requests.json"), Path(folder, "answers.json")
        task = {"distances": pairs, "requests": requests, "warm_up": requests[:3], "limit_s": 20.0}
        question.write_text(json.dumps(task | {"budget_s": budget_s, "least": least}))
        command = [python, str(HERE / "generate_pyxtal.py"), str(question), str(answer)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # noqa: S603 - our own script
        result: dict[str, Any] = json.loads(answer.read_text())
    answers = result.pop("answers")
    places = [i for i, entry in enumerate(answers) if "cell" in entry]
    crystals = [
        Atoms(answers[i]["symbols"], cell=answers[i]["cell"], scaled_positions=answers[i]["fractions"], pbc=True)
        for i in places
    ]
    result["refused"] = Counter(entry["reason"] for entry in answers if "reason" in entry)
    good = sum(holds(atoms, knowledge) for atoms in crystals)
    result |= {"made": len(crystals), "valid": good, "rate": good / result["cpu_seconds"]}
    return result | {"crystals": crystals, "places": places} if keep else result


def holds(atoms: Atoms, knowledge: Knowledge) -> bool:
    """Tell whether a crystal keeps its least distances."""
    return excess(atoms, knowledge) > -ROUNDING


def rate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare rates on four systems."""
    table: dict[str, Any] = {}
    for name, (elements, pressure, options) in SYSTEMS.items():
        knowledge = Knowledge.initial(elements, pressure)
        settings = GenerateConfig(symmetric_fraction=1.0, volume_jitter=0.0, **options)
        requests = requests_for(knowledge, settings, arguments.n, seed=1)
        runs = [ours(knowledge, settings, requests) for _ in range(arguments.repeats)]
        made, refused, _ = runs[0]
        seconds = float(np.median([run[2] for run in runs]))
        good = sum(holds(atoms, knowledge) for atoms in made)
        assert good == len(made), f"{name}: {len(made) - good} crystals below their least distances"
        symmetric = sum(keeps_symmetry(atoms, atoms.info["trial"]) for atoms in made)
        assert symmetric > ENOUGH * len(made), f"{name}: {len(made) - symmetric} crystals lack symmetry asked for"
        row = {
            "asked": len(requests),
            "mean_atoms": float(np.mean([sum(request["counts"]) for request in requests])),
            "valid": good,
            "refused": refused,
            "cpu_seconds": seconds,
            "rate": good / seconds,
            "symmetry_kept": symmetric / max(len(made), 1),
        }
        if arguments.peer_python:
            row["pyxtal"] = theirs(arguments.peer_python, knowledge, requests, arguments.budget, least=arguments.least)
            row["ratio"] = row["rate"] / max(row["pyxtal"]["rate"], 1e-9)
        table[name] = row
        print(
            f"{name}: {row['rate']:.0f}/s valid {good}/{len(requests)} {refused} {row.get('pyxtal')} {row.get('ratio')}"
        )
    return table


def twelve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the rate at 12 atoms by the public call, table look-up warm."""
    table: dict[str, Any] = {}
    for name, elements, formula, pressure in (
        ("Si12", ("Si",), "Si12", 0.0),
        ("Mg6O6", ("Mg", "O"), "Mg6O6", 0.0),
        ("Ti4O8", ("Ti", "O"), "Ti4O8", 0.0),
        ("BePN4O6", ("Be", "P", "N", "O"), "BePN4O6", 0.0),
        ("MgCaH10 at 200 GPa", ("Mg", "Ca", "H"), "MgCaH10", 200.0),
    ):
        knowledge = Knowledge.initial(elements, pressure)
        settings = GenerateConfig(atoms=(12, 12), compositions=(formula,), prototype_share=0.0, mutation_share=0.0)
        times = []
        for repeat in range(arguments.repeats + 1):
            started = time.process_time()
            made = generate(settings, knowledge, elements=elements, n=arguments.n, seed=np.random.SeedSequence(repeat))
            times.append((time.process_time() - started) / made.made)
        table[name] = {"rate": 1.0 / float(np.median(times[1:])), "refused": made.refused}
        print(f"{name}: {table[name]['rate']:.0f}/s")
    return table


def groups(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reach every space group; spglib finds each operation asked for."""
    knowledge = Knowledge.initial(("Mg", "O"), 0.0)
    asked = made = kept = 0
    missed = []
    for number in ALL_GROUPS:
        settings = GenerateConfig(
            space_groups=(number,), symmetric_fraction=1.0, atoms=(4, 60), prototype_share=0.0, formula_units=(1, 60)
        )
        requests = requests_for(knowledge, settings, 20 * arguments.per_group, seed=number)[: arguments.per_group]
        crystals = ours(knowledge, settings, requests)[0]
        asked, made = asked + len(requests), made + len(crystals)
        kept += sum(keeps_symmetry(atoms, atoms.info["trial"]) for atoms in crystals)
        if not crystals:
            missed.append(number)
    print(f"groups: {made}/{asked} made, {kept} with every operation asked for, never reached: {missed}")
    assert kept > ENOUGH * made
    assert not missed
    return {"asked": asked, "made": made, "symmetry_kept": kept / made, "never_reached": missed}


def distances(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make many crystals of four systems from every source; check every pair and the number of atoms of every one."""
    table: dict[str, Any] = {}
    for name, (elements, pressure, options) in SYSTEMS.items():
        knowledge = Knowledge.initial(elements, pressure)
        settings = GenerateConfig(**options)
        asked, worst = 0, np.inf
        refused, origins = Counter[str](), Counter[str]()
        parents: list[Atoms] = []
        started = time.process_time()
        for chunk in range(-(-arguments.large // (len(SYSTEMS) * CHUNK))):
            seed = np.random.SeedSequence(3, spawn_key=(0, 0, chunk))
            result = generate(settings, knowledge, elements=elements, n=CHUNK, seed=seed, parents=parents)
            parents = parents or result.atoms[:20]
            asked, refused = asked + result.asked, refused + Counter(result.refused)
            for atoms in result.atoms:
                origins[atoms.info["origin"]] += 1
                worst = min(worst, excess(atoms, knowledge))
                assert settings.atoms[0] <= len(atoms) <= settings.atoms[1], f"{name}: {len(atoms)} atoms"
            assert worst > -ROUNDING, f"{name}: a pair is {-worst} Å too close"
        table[name] = {"asked": asked, "checked": origins.total(), "origins": origins, "refused": refused}
        table[name] |= {"closest_less_minimum": worst, "cpu_seconds": time.process_time() - started}
        print(f"distances: {name}: {table[name]}")
    return table


def clathrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Count how often an attempt in Pm-3n, pushed apart at once or not, gives Mg2Ca6H46 on 2a, 6d, 6c + 16i + 24k."""
    elements = ("Mg", "Ca", "H")
    knowledge = Knowledge.initial(elements, 200.0)
    options = {"atoms": (54, 54), "compositions": ("Mg2Ca6H46",), "prototype_share": 0.0, "mutation_share": 0.0}
    settings = GenerateConfig(
        space_groups=(223,), symmetric_fraction=1.0, max_attempts=1, unpushed_attempts=0, **options
    )
    started = time.process_time()
    asked = 20 * arguments.n
    result = generate(settings, knowledge, elements=elements, n=asked, seed=np.random.SeedSequence(1))
    seconds = time.process_time() - started
    sites = Counter(letters(atoms) for atoms in result.atoms)
    as_drawn = settings.model_copy(update={"unpushed_attempts": 1})
    unpushed = generate(as_drawn, knowledge, elements=elements, n=asked, seed=np.random.SeedSequence(1))
    everyday = GenerateConfig(symmetric_fraction=0.9, **options)
    again = time.process_time()
    plain = generate(everyday, knowledge, elements=elements, n=arguments.n, seed=np.random.SeedSequence(2))
    rate_54 = plain.made / (time.process_time() - again)
    table = {
        "attempts": asked,
        "valid": result.made,
        "valid_per_attempt": result.made / asked,
        "wanted_sites": (wanted := sum(sites[text] for text in CLATHRATE)),
        "wanted_per_attempt": wanted / asked,
        "unpushed_valid": unpushed.made,
        "unpushed_wanted_sites": sum(letters(atoms) in CLATHRATE for atoms in unpushed.atoms),
        "attempts_per_cpu_second": asked / seconds,
        "sites": dict(sites.most_common(8)),
        "rate_54_atoms_any_group": rate_54,
        "refused_any_group": plain.refused,
    }
    print(f"clathrate: {table}")
    return table


def run() -> dict[str, Any]:
    """Describe what ran where; paths of this machine are left out of the command."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    secret = {"--peer-python": "PYTHON", "--kept": "FOLDER", "--out": "FILE"}
    command = [secret.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=True, cwd=HERE)  # noqa: S603 - fixed words
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "command": " ".join(["python", f"benchmarks/{command[0]}", *command[1:]]),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "spglib", "ase", "pymatgen")},
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


SECTIONS = {
    "rate": rate,
    "twelve": twelve,
    "groups": groups,
    "distances": distances,
    "nasty": lambda arguments: nasty(arguments.limit, arguments.repeats),
    "clathrate": clathrate,
}


def main() -> None:
    """Run the chosen sections and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default="", help="Python of an environment with PyXtal; none: no comparison")
    parser.add_argument("--n", type=int, default=300, help="requests per system")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts")
    parser.add_argument("--budget", type=float, default=60.0, help="CPU seconds per system for the peer")
    parser.add_argument("--least", type=int, default=40, help="requests per system that the peer gets, at least")
    parser.add_argument("--large", type=int, default=100_000, help="crystals in the distance check")
    parser.add_argument("--limit", type=float, default=0.5, help="time limit per structure in the nasty section, s")
    parser.add_argument("--per-group", type=int, default=20, help="crystals per space group")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "generate.json")
    arguments = parser.parse_args()
    for number in ALL_GROUPS:
        filler(number)  # tables are derived once per process; not part of the rates
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.sections.split(","):
        results[name] = {"run": run(), "result": SECTIONS[name](arguments)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
