"""A stand-in for VASP: effective medium theory behind VASP's files, for tests of what surrounds the code.

It reads POSCAR and INCAR, calculates with ASE's EMT (shifted to negative energies), relaxes positions and cell where
IBRION is 2, and writes the parts of vasprun.xml, OUTCAR, OSZICAR and CONTCAR that custodian and emmet-core read. All
text is written for this project. Faults are asked for by the number of atoms in ``FAKE_VASP_FAULTS``, as in
``crash:1,unconverged:2,drift:3``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS
from ase.units import GPa

SHIFT = -4.0  # eV/atom: EMT's zero is the bulk, VASP's are free atoms
KBAR = 0.1 * GPa
ELECTRONS = 3
BANDS = 8
FERMI = 5.0
SCF_STEPS = 4
VERSION = "6.4.2"

Frame = tuple[Atoms, float, np.ndarray, np.ndarray]


def read_incar() -> dict[str, str]:
    lines = Path("INCAR").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {tag.strip().upper(): value.strip() for tag, value in pairs}


def calculate(atoms: Atoms, incar: dict[str, str]) -> list[Frame]:
    frames: list[Frame] = []

    def record() -> None:
        energy = atoms.get_potential_energy() + SHIFT * len(atoms)
        frames.append((atoms.copy(), energy, atoms.get_forces(), -atoms.get_stress(voigt=False) / KBAR))

    atoms.calc = EMT()
    if int(incar.get("NSW", 0)) == 0:
        record()
        return frames
    pressure = float(incar.get("PSTRESS", 0)) * KBAR
    optimiser = BFGS(FrechetCellFilter(atoms, scalar_pressure=pressure), logfile=None)
    optimiser.attach(record)
    optimiser.run(fmax=abs(float(incar["EDIFFG"])), steps=int(incar["NSW"]) - 1)
    return frames


def rows(matrix: np.ndarray, tag: str = "v") -> str:
    return "".join(f"<{tag}>{' '.join(f'{x:.10f}' for x in row)}</{tag}>\n" for row in matrix)


def varray(name: str, matrix: np.ndarray) -> str:
    return f'<varray name="{name}">\n{rows(matrix)}</varray>\n'


def item(tag: str, text: str) -> str:
    word = text.strip(".").upper()
    if word in {"TRUE", "FALSE", "T", "F"}:
        return f'<i type="logical" name="{tag}">{word[0]}</i>\n'
    try:
        return f'<i type="int" name="{tag}">{int(text)}</i>\n'
    except ValueError:
        pass
    try:
        return f'<i name="{tag}">{float(text):.8f}</i>\n'
    except ValueError:
        if len(text.split()) > 1 or "*" in text:
            return ""  # lists such as MAGMOM are not looked at
        return f'<i type="string" name="{tag}">{escape(text)}</i>\n'


def structure(atoms: Atoms, name: str = "") -> str:
    attribute = f' name="{name}"' if name else ""
    crystal = varray("basis", atoms.cell.array) + f'<i name="volume">{atoms.get_volume():.8f}</i>\n'
    crystal += varray("rec_basis", np.linalg.inv(atoms.cell.array).T)
    positions = varray("positions", atoms.get_scaled_positions())
    return f"<structure{attribute}>\n<crystal>\n{crystal}</crystal>\n{positions}</structure>\n"


def energies(value: float) -> str:
    names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    return "<energy>\n" + "".join(f'<i name="{name}">{value:.8f}</i>\n' for name in names) + "</energy>\n"


def atom_info(atoms: Atoms) -> str:
    symbols = atoms.get_chemical_symbols()
    kinds = list(dict.fromkeys(symbols))
    sites = "".join(f"<rc><c>{s}</c><c>{kinds.index(s) + 1}</c></rc>\n" for s in symbols)
    types = "".join(
        f"<rc><c>{symbols.count(s)}</c><c>{s}</c><c>1.0</c><c>{ELECTRONS}.0</c><c>PAW_PBE {s} stand-in</c></rc>\n"
        for s in kinds
    )
    fields = "<field>a</field><field>b</field><field>c</field><field>d</field><field>e</field>"
    return (
        f"<atominfo>\n<atoms>{len(atoms)}</atoms>\n<types>{len(kinds)}</types>\n"
        f'<array name="atoms"><dimension dim="1">ion</dimension><field>element</field><field>atomtype</field>'
        f"<set>\n{sites}</set></array>\n"
        f'<array name="atomtypes"><dimension dim="1">type</dimension>{fields}<set>\n{types}</set></array>\n'
        "</atominfo>\n"
    )


def parameters(incar: dict[str, str], n_atoms: int) -> str:
    text = (
        "PREC=Normal EDIFF=1e-4 NELM=60 ISMEAR=1 SIGMA=0.2 ISPIN=1 NSW=0 IBRION=-1 ISIF=2 ISYM=2 NELMDL=-5 LREAL=F "
        "LORBIT=0 GGA=PE LHFCALC=F LDAU=F LUSE_VDW=F IVDW=0 IALGO=38"
    )
    defaults = dict(entry.split("=") for entry in text.split()) | {"ENMAX": incar.get("ENCUT", "520")}
    used = defaults | {tag: value for tag, value in incar.items() if tag in defaults}
    body = "".join(item(tag, value) for tag, value in used.items())
    body += f'<i type="int" name="NBANDS">{BANDS}</i>\n<i name="NELECT">{ELECTRONS * n_atoms}.0</i>\n'
    return f'<parameters>\n<separator name="all">\n{body}</separator>\n</parameters>\n'


def eigenvalues() -> str:
    bands = "".join(f"<r>{e:.4f} {float(e < FERMI):.4f}</r>\n" for e in np.linspace(-5, 15, BANDS))
    fields = "<field>eigene</field><field>occ</field>"
    dims = '<dimension dim="1">band</dimension><dimension dim="2">kpoint</dimension><dimension dim="3">spin</dimension>'
    sets = f'<set>\n<set comment="spin 1">\n<set comment="kpoint 1">\n{bands}</set>\n</set>\n</set>'
    grid = "".join(f"<r>{e:.4f} 1.0 {i}.0</r>\n" for i, e in enumerate(np.linspace(-5, 15, 11)))
    return (
        f"<eigenvalues>\n<array>{dims}{fields}{sets}</array>\n</eigenvalues>\n"
        f'<dos>\n<i name="efermi">{FERMI}</i>\n<total><array><dimension dim="1">gridpoints</dimension>'
        f'<dimension dim="2">spin</dimension><field>energy</field><field>total</field><field>integrated</field>'
        f'<set><set comment="spin 1">\n{grid}</set></set></array></total>\n</dos>\n'
    )


def calculation(frame: Frame, n_scf: int, *, last: bool) -> str:
    atoms, energy, forces, stress = frame
    steps = "".join(f"<scstep>{energies(energy + 0.1 * (n_scf - 1 - i))}</scstep>\n" for i in range(n_scf))
    pv = float(os.environ.get("FAKE_VASP_PV", "0")) * atoms.get_volume()
    body = steps + structure(atoms) + varray("forces", forces) + varray("stress", stress) + energies(energy + pv)
    return f"<calculation>\n{body}{eigenvalues() if last else ''}</calculation>\n"


def write_vasprun(frames: list[Frame], incar: dict[str, str], n_scf: int) -> None:
    atoms = frames[0][0]
    generator = "".join(
        f'<i name="{name}" type="string">{text}</i>\n'
        for name, text in (("program", "vasp"), ("version", VERSION), ("subversion", "stand-in"), ("platform", "none"),
                           ("date", time.strftime("%Y %m %d")), ("time", time.strftime("%H:%M:%S")))
    )  # fmt: skip
    kpoints = (
        '<generation param="Gamma"><v type="int" name="divisions">1 1 1</v><v name="usershift">0 0 0</v></generation>\n'
        '<varray name="kpointlist"><v>0.0 0.0 0.0</v></varray>\n<varray name="weights"><v>1.0</v></varray>\n'
    )
    text = f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<generator>\n{generator}</generator>\n'
    text += "<incar>\n" + "".join(item(tag, value) for tag, value in incar.items()) + "</incar>\n"
    text += f"<kpoints>\n{kpoints}</kpoints>\n" + parameters(incar, len(atoms)) + atom_info(atoms)
    text += structure(atoms, "initialpos")
    text += "".join(calculation(frame, n_scf, last=frame is frames[-1]) for frame in frames)
    Path("vasprun.xml").write_text(text + structure(frames[-1][0], "finalpos") + "</modeling>\n")


def write_oszicar(frames: list[Frame], n_scf: int) -> None:
    lines = []
    for number, (_, energy, _, _) in enumerate(frames, start=1):
        lines.append("       N       E                     dE             d eps       ncg     rms          rms(c)")
        lines += [
            f"DAV: {i + 1:3d} {energy:18.12E} {-(10.0**-i):12.5E} {-(10.0**-i):12.5E} {120:6d} {1e-3:9.3E} {1e-3:9.3E}"
            for i in range(n_scf)
        ]
        lines.append(f"{number:4d} F= {energy:.8E} E0= {energy:.8E}  d E ={energy:.6E}")
    Path("OSZICAR").write_text("\n".join(lines) + "\n")


def write_outcar(frames: list[Frame], incar: dict[str, str]) -> None:
    n_atoms = len(frames[0][0])
    lines = [
        f" vasp.{VERSION} stand-in",
        " running    1 mpi-ranks, with    1 threads/rank, on    1 nodes",
        f"   k-points  NKPTS = 1   k-points in BZ  NKDIM = 1   number of bands    NBANDS= {BANDS:6d}",
        "   total plane-waves  NPLWV =  10000",
        f"   NELECT = {ELECTRONS * n_atoms:12.4f}    total number of electrons",
        f"   IBRION = {int(incar.get('IBRION', -1)):6d}    ionic relax: 0-MD 1-quasi-New 2-CG",
    ]
    for atoms, energy, forces, stress in frames:
        voigt = " ".join(f"{stress[i, j]:.5f}" for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0)))
        lines += [
            f" number of electron {ELECTRONS * n_atoms:12.7f} magnetization {0.0:12.7f}",
            f" E-fermi : {FERMI:9.4f}     XC(G=0):  -9.0000     alpha+bet : -9.0000",
            f"  in kB   {voigt}",
            f"  external pressure = {np.trace(stress) / 3:11.2f} kB  Pullay stress = {0.0:11.2f} kB",
            f"  volume of cell : {atoms.get_volume():11.2f}",
            " POSITION                                       TOTAL-FORCE (eV/Angst)",
            " " + "-" * 80,
            *(" ".join(f"{x:12.5f}" for x in (*p, *f)) for p, f in zip(atoms.positions, forces, strict=True)),
            " " + "-" * 80,
            "    total drift:                    0.000001      0.000001      0.000001",
            f"  free  energy   TOTEN  = {energy:18.8f} eV",
            f"  energy  without entropy= {energy:17.8f}  energy(sigma->0) = {energy:17.8f}",
        ]
    lines += [
        "                  Total CPU time used (sec):        1.000",
        "                            User time (sec):        1.000",
        "                          System time (sec):        0.010",
        "                         Elapsed time (sec):        1.000",
        "                   Maximum memory used (kb):      100000.",
        "                   Average memory used (kb):          N/A",
    ]
    Path("OUTCAR").write_text("\n".join(lines) + "\n")


def main() -> int:
    incar, atoms = read_incar(), read("POSCAR", format="vasp")
    pairs = [entry.split(":") for entry in os.environ.get("FAKE_VASP_FAULTS", "").split(",") if entry]
    fault = {int(n): name for name, n in pairs}.get(len(atoms), "")
    if fault == "crash":
        sys.stderr.write("stand-in: asked to crash\n")
        return 1
    if fault == "drift":
        incar["ENCUT"] = "300"
    frames = calculate(atoms, incar)
    n_scf = int(incar.get("NELM", 60)) if fault == "unconverged" else SCF_STEPS
    sys.stdout.write(f" vasp.{VERSION} stand-in\n entering main loop\n")
    write_vasprun(frames, incar, n_scf)
    write_oszicar(frames, n_scf)
    write_outcar(frames, incar)
    write("CONTCAR", frames[-1][0], format="vasp", direct=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
