"""Make the crystals that benchmarks/generate.py asks for with PyXtal; runs under the peer's own Python.

Usage: python generate_pyxtal.py REQUESTS.json ANSWERS.json
"""

import json
import signal
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from pyxtal import pyxtal
from pyxtal.lattice import Lattice
from pyxtal.symmetry import Group
from pyxtal.tolerance import Tol_matrix


class TooLongError(Exception):
    """One crystal took longer than its limit."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise TooLongError


def make(request: dict, tolerance: Tol_matrix, limit_s: float) -> dict:
    """Make one crystal.

    Parameters
    ----------
    request
        Space group, species, atoms in the primitive cell, volume of the primitive cell in Å^3.
    tolerance
        Least distances.
    limit_s
        Time limit, CPU seconds: what else runs on the machine is not the peer's fault.

    Returns
    -------
    dict
        Structure (cell, fractions, symbols) of the primitive cell or the reason for none.
    """
    signal.setitimer(signal.ITIMER_PROF, limit_s, 1.0)  # again each second: the peer may swallow an exception
    try:
        group = Group(request["group"])
        lattice = Lattice(group.lattice_type, request["volume"] * group.cellsize())
        crystal = pyxtal()
        crystal.from_random(
            3,
            group,
            request["species"],
            request["counts"],
            lattice=lattice,
            conventional=False,
            tm=tolerance,
            random_state=request["seed"],
        )
        if not crystal.valid:
            return {"reason": "not valid"}
        atoms = crystal.to_ase()
    except TooLongError:
        return {"reason": "time"}
    except Exception as error:  # noqa: BLE001 - whatever the peer raises is its refusal
        return {"reason": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "cell": atoms.cell.tolist(),
        "fractions": atoms.get_scaled_positions().tolist(),
        "symbols": atoms.get_chemical_symbols(),
    }


def main() -> None:
    """Answer every request and say how long it took."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _stop)
    task = json.loads(Path(sys.argv[1]).read_text())
    tolerance = Tol_matrix(*[(a, b, d) for a, b, d in task["distances"]], prototype="atomic")
    for request in task["warm_up"]:
        make(request, tolerance, task["limit_s"])
    started, cpu = time.perf_counter(), time.process_time()
    answers = []
    for request in task["requests"]:
        if time.process_time() - cpu > task["budget_s"] and len(answers) >= task["least"]:
            break
        answers.append(make(request, tolerance, task["limit_s"]))
    result = {
        "version": version("pyxtal"),
        "asked": len(answers),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "answers": answers,
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
