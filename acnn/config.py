"""Settings of the potential, of its training and of its relaxations; every default lives here, once."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


DeviceName = Literal["auto", "cpu", "cuda"]
"""Where a potential runs; auto takes a GPU where there is one."""

MOST_THREADS = 1024
"""A number of threads beyond which it is a mistake."""


class ModelConfig(Settings):
    """Shape of the potential: embedding, optional attention, fitting, committee."""

    radial_cutoff: float = Field(5.0, gt=0.5, le=15.0, description="Reach of the two-body terms, Å.")
    angular_cutoff: float = Field(5.0, gt=0.5, le=15.0, description="Reach of the terms of three and more bodies, Å.")
    n_radial: int = Field(10, ge=2, le=40, description="Radial functions per neighbour channel.")
    l_max: int = Field(4, ge=0, le=4, description="Highest degree of the spherical harmonics of the two-factor terms.")
    max_factors: int = Field(4, ge=1, le=4, description="Largest number of density factors in one invariant.")
    channels: int = Field(8, ge=1, le=64, description="Mixed radial-element channels of the two-factor invariants.")
    mixed_channels: int = Field(16, ge=1, le=128, description="Channels of the three- and four-factor invariants.")
    element_channels: int = Field(
        4, ge=1, le=32, description="Most channels of the learned neighbour-element embedding."
    )
    hidden: tuple[int, ...] = Field((64, 32), description="Widths of the hidden layers of the fitting network.")
    attention_blocks: int = Field(
        0, ge=0, le=8, description="Attention blocks between embedding and fitting; 0 is off."
    )
    attention_width: int = Field(32, ge=2, le=512, description="Width of the feature vectors that attention couples.")
    attention_heads: int = Field(2, ge=1, le=16, description="Heads of each attention block.")
    attention_cutoff: float = Field(5.0, gt=0.5, le=15.0, description="Reach of the attention, Å.")
    members: int = Field(4, ge=1, le=16, description="Committee members; they share the descriptor.")
    dtype: Literal["float32", "float64"] = Field("float32", description="Arithmetic of the network.")

    @property
    def cutoff(self) -> float:
        """The largest cutoff in use, Å."""
        reach = max(self.radial_cutoff, self.angular_cutoff)
        return max(reach, self.attention_cutoff) if self.attention_blocks else reach

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_width % self.attention_heads:
            msg = f"attention_width: must be a multiple of attention_heads ({self.attention_heads})"
            raise ValueError(msg)
        if any(width < 1 for width in self.hidden):
            msg = f"hidden: every width must be at least 1, got {self.hidden}"
            raise ValueError(msg)
        return self


class TrainConfig(Settings):
    """How the potential is fitted; the defaults serve any element and any size of data set."""

    max_steps: int | None = Field(
        None, ge=1, description="Most optimiser steps; None: chosen from the size of the data."
    )
    max_time: float | None = Field(None, gt=0, description="Most seconds of training; None: no limit.")
    batch_atoms: int = Field(256, ge=1, description="Atoms per minibatch, about (no structure is cut).")
    learning_rate: float = Field(
        8e-3,
        gt=0,
        description="Highest learning rate of a training from scratch with ten structures in a minibatch and a "
        "thousand steps planned; it goes with the root of the structures, and beyond that falls with the fourth root "
        "of the steps.",
    )
    warm_learning_rate: float = Field(6e-3, gt=0, description="The same of a warm start.")
    energy_weight: float = Field(30.0, ge=0, description="Final weight of the energy per atom in the loss.")
    force_weight: float = Field(1.0, ge=0, description="Weight of the force components in the loss.")
    virial_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the virial per atom in the loss; where forces of more than eight atoms are learned too "
        "it falls with their number.",
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="Decoupled weight decay of the fitting network, per unit learning rate."
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="Decay of the moving average of the weights, at most.")
    validation_fraction: float = Field(
        0.05, ge=0, lt=0.9, description="Part of the structure families held out; of few labels twice as many."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations without improvement before the best weights settle early, and then before the end; "
        "None: a fifth of those planned, fifty at least, in the second half.",
    )
    evaluate_every: int = Field(50, ge=1, description="Optimiser steps between two evaluations on the held-out part.")
    threads: int = Field(
        1,
        ge=1,
        le=MOST_THREADS,
        description="CPU threads; two gain a tenth, and lose much where cores are shared.",
    )
    max_force: float = Field(50.0, gt=0, description="Labels with a larger force component are set aside, eV/Å.")
    max_energy: float = Field(
        20.0, gt=0, description="Labels this far above the fitted references are set aside, eV/atom."
    )
    max_pressure_gpa: float = Field(
        1000.0, gt=0, description="Labels with a larger stress component are set aside, GPa."
    )


# Settings of the relaxations follow.


class RelaxConfig(Settings):
    """Settings of the batched variable-cell relaxation."""

    fmax: float = Field(0.02, gt=0, description="Converged when no atom feels a larger force, eV/Å.")
    stress_gpa: float = Field(
        0.1, gt=0, description="Converged when no component of stress plus pressure is larger, GPa."
    )
    max_steps: int = Field(500, ge=1, description="Calls of the potential allowed for one structure.")
    max_step: float = Field(0.2, gt=0, description="Longest displacement of an atom in one step, Å.")
    history: int = Field(20, ge=1, description="Pairs of steps and gradients that the optimiser remembers.")
    bonds_scale: float = Field(0.7, gt=0, description="A pair closer than this times its minimum distance is unsafe.")
    volume_shrink: float = Field(0.2, gt=0, lt=1, description="Unsafe below this times the starting volume.")
    volume_growth: float = Field(5.0, gt=1, description="Unsafe above this times the starting volume.")
    energy_drop: float = Field(30.0, gt=0, description="Unsafe when the energy falls further than this, eV/atom.")
    stress_limit_gpa: float = Field(5000.0, gt=0, description="Unsafe above this largest component of stress, GPa.")
    skin: float = Field(0.5, ge=0, description="Neighbours are searched this far beyond the cutoff, Å.")
    batch_atoms: int | None = Field(
        None, ge=1, description="Atoms relaxed at once; chosen from the memory of the device if not given."
    )
    device: DeviceName = Field("auto", description="cpu, cuda, or auto: a GPU where there is one.")
    workers: int = Field(
        1, ge=1, description="Processes among which structures are shared; each takes one GPU in turn."
    )
