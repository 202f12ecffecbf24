"""Settings of the first-principles stage, through its two doors: any ASE calculator, or makers of atomate2."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from ase.calculators.names import names as ase_names
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

VASP_LABEL_INCAR: dict[str, Any] = {
    "ALGO": "Normal",
    "EDIFF": 1e-7,
    "ENCUT": 650,
    "GGA": "PE",
    "ISMEAR": 0,
    "ISPIN": 1,
    "ISYM": 0,
    "KSPACING": 0.25,
    "LCHARG": False,
    "LREAL": False,
    "LWAVE": False,
    "NELM": 200,
    "NELMIN": 6,
    "PREC": "Normal",
    "SIGMA": 0.05,
}
"""INCAR of labels, over the maker's own: one plane-wave basis and one k-spacing for the whole search, no spin, no
symmetry, so that every label is comparable with every other. ENCUT in eV, KSPACING in 1/Å, SIGMA and EDIFF in eV."""


class _LabelSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    relax_fmax: PositiveFloat = Field(
        default=0.02, description="Final relaxations stop below this force and cell gradient, eV/Å."
    )
    relax_max_steps: PositiveInt = Field(default=100, description="Steps of a final relaxation before it is given up.")
    max_force: PositiveFloat = Field(
        default=50.0, description="A label with a larger force component is rejected (kept and counted), eV/Å."
    )
    pressure_tolerance_gpa: PositiveFloat = Field(
        default=2.0, description="A relaxation whose pressure is farther from the target has not converged, GPa."
    )
    max_failed_fraction: NonNegativeFloat = Field(
        default=0.5,
        le=1.0,
        description="The stage fails, after having stored everything, if more labels than this fail.",
    )


class AseLabelConfig(_LabelSettings):
    """Labels by any ASE calculator, in worker processes of one job."""

    door: Literal["ase"] = Field(default="ase", description="This door: any ASE calculator.")
    calculator: str = Field(
        description="Calculator by its ASE name (gpaw, emt, espresso, ...), or module:callable that returns one."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the calculator, in its own units."
    )
    workers: PositiveInt = Field(default=1, description="Labels calculated at the same time, one core each.")
    timeout_s: PositiveFloat = Field(default=3600.0, description="Longest time for one single point, s.")
    relax_timeout_s: PositiveFloat = Field(default=36000.0, description="Longest time for one final relaxation, s.")
    chunk_size: PositiveInt = Field(default=100, le=1000, description="Labels in one job.")

    @field_validator("calculator")
    @classmethod
    def _known(cls, name: str) -> str:
        if ":" in name:
            module, _, attribute = name.partition(":")
            if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
                raise ValueError(f"expected module:callable, such as mypackage.calculators:make, got {name!r}")
            return name
        if name.lower() not in ase_names:
            close = get_close_matches(name.lower(), ase_names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"{name!r} is not a calculator that ASE knows; {hint}"
                f"Known: {', '.join(ase_names)}; any other as module:callable"
            )
        return name.lower()


class Atomate2LabelConfig(_LabelSettings):
    """Labels by a VASP maker of atomate2, one job each."""

    door: Literal["atomate2"] = Field(description="This door: makers of atomate2.")
    maker: str = Field(
        default="atomate2.vasp.jobs.matpes.MatPesGGAStaticMaker", description="Import path of the static maker."
    )
    relax_maker: str | None = Field(
        default=None,
        description="Import path of the maker of final relaxations; by default the static maker with variable cell, "
        "so that functional and pseudopotentials are those of the labels.",
    )
    incar: dict[str, Any] = Field(
        default_factory=dict,
        description="INCAR tags over the preset VASP_LABEL_INCAR; null leaves a tag to the maker.",
    )
    run_vasp: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of atomate2.vasp.run.run_vasp, such as vasp_cmd."
    )
    potcar_spec: bool = Field(
        default=False, description="Write POTCAR.spec instead of POTCAR; for stand-in executables only."
    )

    @field_validator("maker", "relax_maker")
    @classmethod
    def _dotted(cls, path: str | None) -> str | None:
        if path is not None and ("." not in path or not all(part.isidentifier() for part in path.split("."))):
            raise ValueError(f"expected the import path of a maker, such as package.module.Maker, got {path!r}")
        return path

    @property
    def full_incar(self) -> dict[str, Any]:
        """The preset with the user's tags over it."""
        merged = VASP_LABEL_INCAR | {tag.upper(): value for tag, value in self.incar.items()}
        return {tag: value for tag, value in merged.items() if value is not None}


LabelConfig = Annotated[AseLabelConfig | Atomate2LabelConfig, Field(discriminator="door")]
"""The `label` section of a search file."""
