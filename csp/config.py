"""Settings of the search's science; defaults live here and nowhere else."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GenerateConfig(Settings):
    """How trial crystals are made."""

    n_initial: int = Field(200, ge=1, description="Random crystals labelled unrelaxed before the first training.")
    n_structures: int = Field(1000, ge=1, description="Trial crystals per generation.")
    chunk_size: int = Field(10_000, ge=1, description="Trial crystals per job, at most.")
    atoms: tuple[int, int] = Field((1, 16), description="Least and most atoms in the primitive cell.")
    compositions: tuple[str, ...] | None = Field(
        None,
        description="Formulae to search, taken literally as one formula unit; null searches every composition.",
    )
    formula_units: tuple[int, int] = Field((1, 8), description="Least and most formula units in the primitive cell.")
    element_ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="Allowed atomic fraction of an element, 0 to 1; absent means any. Binds listed formulae, too.",
    )
    charge_balanced: bool = Field(
        default=False,
        description="Keep only compositions that common oxidation states can balance (elements always stay); a listed "
        "one that they cannot is an error.",
    )
    symmetric_fraction: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of random crystals made with a space group; all are where space_groups are given or "
        "symmetry_operations start above 1.",
    )
    space_groups: tuple[int, ...] | None = Field(
        None, description="Space groups of random crystals and prototypes, 1 to 230; null is all."
    )
    symmetry_operations: tuple[int, int] = Field(
        (1, 48),
        description="Least and most symmetry operations of their primitive cells (lattice translations not counted).",
    )
    volume_jitter: float = Field(0.1, ge=0, lt=1, description="Largest relative deviation from the known volume.")
    volumes: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="Volumes to start from by element, as {Mg: 23.2}, Å^3/atom; absent ones are estimated.",
    )
    distances: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="Minimum distances by pair, as {Mg-O: 1.8}, Å, for good; absent ones are estimated, then learned.",
    )
    distance_scale: float = Field(1.0, gt=0, description="Factor on estimated minimum distances, until learned.")
    max_attempts: int = Field(40, ge=1, description="Attempts per structure before it is refused.")
    unpushed_attempts: int = Field(
        6,
        ge=0,
        description="First attempts that count only if no atoms need pushing apart; such crystals relax better.",
    )
    max_push_steps: int = Field(80, ge=0, description="Steps that push overlapping atoms apart, per attempt.")
    time_limit_s: float = Field(20.0, gt=0, description="Time after which a structure is refused, seconds.")
    random_share: float = Field(0.7, ge=0, description="Weight of random crystals among the trial crystals.")
    prototype_share: float = Field(0.1, ge=0, description="Weight of decorated prototypes.")
    mutation_share: float = Field(0.2, ge=0, description="Weight of mutated parents; random until there are parents.")
    seed_share: float = Field(0.0, ge=0, description="Weight of varied seeds, beyond one plain copy of each.")
    seeds: tuple[str, ...] = Field(
        (),
        description="CIF, POSCAR, extxyz or JSON files, or folders: tried as they are, with a warning for those "
        "outside atoms, formula_units or compositions; foreign elements are substituted.",
    )

    @model_validator(mode="after")
    def _ranges_are_sound(self) -> Self:
        for name in ("atoms", "formula_units", "symmetry_operations"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}: expected 1 <= least <= most, got ({low}, {high})")
        for element, (least, most) in self.element_ranges.items():
            if not 0 <= least <= most <= 1:
                raise ValueError(f"element_ranges.{element}: expected 0 <= least <= most <= 1, got ({least}, {most})")
        if self.space_groups is not None and not self.space_groups:
            raise ValueError("space_groups: expected at least one number from 1 to 230, or null for all, got none")
        wrong = [group for group in self.space_groups or () if not 1 <= group <= 230]
        if wrong:
            raise ValueError(f"space_groups: expected numbers from 1 to 230, got {wrong[0]}")
        if self.compositions is not None and not self.compositions:
            raise ValueError("compositions: expected at least one formula, or null for all, got none")
        if self.random_share + self.prototype_share + self.mutation_share + self.seed_share <= 0:
            raise ValueError("random_share, prototype_share, mutation_share, seed_share: expected one above 0")
        return self


class SelectConfig(Settings):
    """Which structures go to first principles, what counts as one crystal, and when a relaxation is unsafe."""

    n_labels: int = Field(300, ge=1, description="Structures labelled per generation.")
    window_ev: float = Field(2.0, gt=0, description="Candidates further above the model's hull are left out, eV/atom.")
    stable: float = Field(0.5, ge=0, description="Weight of candidates nearest to the hull among the labels.")
    uncertain: float = Field(0.15, ge=0, description="Weight of candidates that the committee disagrees on.")
    unsafe: float = Field(0.2, ge=0, description="Weight of the last safe frames of unsafe structures.")
    diverse: float = Field(0.15, ge=0, description="Weight of candidates unlike all that were chosen.")
    optimism: float = Field(
        1.0, ge=0, description="Standard deviations of the committee that a stable candidate is given the benefit of."
    )
    per_composition: int = Field(4, ge=1, description="Candidates of one composition among the stable, at most.")
    end_members: int = Field(4, ge=1, description="First random crystals of each pure element, at least.")
    uncertain_quantile: float = Field(
        0.8, ge=0, lt=1, description="A candidate is uncertain above this quantile of its generation's spreads."
    )
    committee_factor: float = Field(
        10.0, gt=1, description="A spread this many times the median of its generation is suspicious."
    )
    too_low_ev: float = Field(
        1.5, gt=0, description="Energies this far below the lowest label of similar volume are unphysical, eV/atom."
    )
    pool_size: int = Field(2000, ge=1, description="Distinct candidates remembered for the next generation.")
    enthalpy_tolerance_ev: float = Field(0.01, gt=0, description="Enthalpies of one crystal agree to this, eV/atom.")
    volume_tolerance: float = Field(0.03, gt=0, lt=1, description="Volumes of one crystal agree to this fraction.")
    match_volume: float = Field(
        0.1, gt=0, lt=1, description="Volumes of a phase in two generations agree to this fraction."
    )
    label_volume: float = Field(
        0.02, gt=0, lt=1, description="A label of nearly the same structure counts within this fraction of volume."
    )
    same_distance: float = Field(
        0.001, gt=0, le=1, description="Fingerprints this near are one crystal (distance 0 to 1)."
    )
    max_distance: float = Field(0.05, gt=0, le=1, description="Fingerprints further apart are two crystals.")
    length_tolerance: float = Field(
        0.15, gt=0, lt=1, description="Lattice vectors of one crystal agree to this fraction."
    )
    site_tolerance: float = Field(
        0.15, gt=0, lt=1, description="Sites of one crystal agree to this fraction of the atoms' mean distance."
    )
    angle_tolerance: float = Field(5.0, gt=0, description="Cell angles of one crystal agree to this, degrees.")
    symmetry_tolerances: tuple[float, ...] = Field(
        (0.02, 0.1, 0.3), min_length=1, description="Two crystals need a common space group at any of these, Å."
    )
    bonds_scale: float = Field(
        0.7, gt=0, le=1, description="A pair closer than this times its minimum distance is unsafe, at first."
    )
    bonds_scale_bounds: tuple[float, float] = Field((0.4, 0.9), description="Least and greatest such scale.")
    bonds_scale_step: float = Field(0.05, gt=0, lt=1, description="Its change from one generation to the next.")
    unsafe_fractions: tuple[float, float] = Field(
        (0.02, 0.2), description="Fewer unsafe relaxations raise the scale, more lower it (fractions of all)."
    )

    @model_validator(mode="after")
    def _selection_is_sound(self) -> Self:
        if self.stable + self.uncertain + self.unsafe + self.diverse <= 0:
            raise ValueError("stable, uncertain, unsafe, diverse: expected one above 0")
        if self.same_distance > self.max_distance:
            raise ValueError(
                f"same_distance: expected at most max_distance ({self.max_distance:g}), got {self.same_distance:g}"
            )
        least, greatest = self.bonds_scale_bounds
        if not 0 < least <= self.bonds_scale <= greatest <= 1:
            raise ValueError(
                f"bonds_scale_bounds: expected 0 < least <= bonds_scale ({self.bonds_scale:g}) <= greatest <= 1, "
                f"got ({least:g}, {greatest:g})"
            )
        few, many = self.unsafe_fractions
        if not 0 <= few < many <= 1:
            raise ValueError(f"unsafe_fractions: expected 0 <= few < many <= 1, got ({few:g}, {many:g})")
        wrong = [tolerance for tolerance in self.symmetry_tolerances if tolerance <= 0]
        if wrong:
            raise ValueError(f"symmetry_tolerances: expected lengths above 0 Å, got {wrong[0]:g}")
        return self


class AdvanceConfig(Settings):
    """When the search ends, how it grows, and what is relaxed by first principles at the end."""

    max_generations: int = Field(20, ge=1, description="Generations at most, the first random one included.")
    max_labels: int | None = Field(
        None, ge=1, description="Structures sent to first principles at most, failed ones too; null is no limit."
    )
    max_hours: float | None = Field(
        None, gt=0, description="Wall time since the first job began at most, pauses too, hours; null is no limit."
    )
    unchanged_generations: int = Field(
        3, ge=1, description="The set of phases near the hull must not have changed for so many generations."
    )
    near_hull_ev: float = Field(
        0.03, gt=0, description="Phases this near the hull, as labelled, are the set that must stand still, eV/atom."
    )
    near_hull_slack_ev: float = Field(
        0.002, ge=0, description="A phase that crosses the edge of that set by less is no change, eV/atom."
    )
    walk_forward_mev: float = Field(
        20.0, gt=0, description="Converged only if new labels near the hull were predicted this well, meV/atom."
    )
    rediscoveries: int = Field(3, ge=1, description="Every hull member must have been found so often, independently.")
    min_attempts: int = Field(50, ge=0, description="Trial crystals that every composition must have had.")
    grow_below_mev: float = Field(
        100.0, gt=0, description="Generations grow once new labels are predicted this well, meV/atom."
    )
    growth: float = Field(2.0, ge=1, description="Factor on the trial crystals of a generation when it grows.")
    max_structures: int = Field(20_000, ge=1, description="Trial crystals per generation, at most.")
    final_window_ev: float = Field(
        0.05, gt=0, description="Phases this near the hull are relaxed by first principles at the end, eV/atom."
    )
    final_max: int = Field(50, ge=1, description="Phases relaxed by first principles at the end, at most.")
