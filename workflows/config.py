"""The search file: one YAML document, strict keys, errors that say what to write instead."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pymatgen.core import Composition

import csp.errors
from acnn.config import ModelConfig, RelaxConfig, TrainConfig
from csp.compositions import listed_cells
from csp.config import AdvanceConfig, GenerateConfig, SelectConfig
from csp.knowledge import Knowledge, reduced_formula
from makers.config import LabelConfig
from makers.errors import ConfigError
from makers.labelling import settings_fingerprint

SYMBOLS = frozenset(chemical_symbols[1:])


class TrainSection(TrainConfig):
    """The `train` section: how to train, and the architecture of the potential."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="Architecture of the potential.")


class SearchConfig(BaseModel):
    """Everything a search is, by stage. Machine facts (paths, queues, executables) are not science and not here."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    project: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the search: letters, digits, `.`, `_`, `-`. Searches of one database differ by it.",
    )
    system: tuple[str, ...] = Field(description="Chemical system, as `Mg-Si` or a list of element symbols.")
    pressure_gpa: float = Field(0.0, ge=0, description="Pressure, GPa.")
    seed: int = Field(1, ge=0, description="Root of all random numbers: same file and seed, same trial crystals.")
    generate: GenerateConfig = Field(default_factory=GenerateConfig)
    relax: RelaxConfig = Field(default_factory=RelaxConfig)
    select: SelectConfig = Field(default_factory=SelectConfig)
    label: LabelConfig
    train: TrainSection = Field(default_factory=TrainSection)
    advance: AdvanceConfig = Field(default_factory=AdvanceConfig)

    @field_validator("system", mode="before")
    @classmethod
    def _split_system(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML gives
        return tuple(value.split("-")) if isinstance(value, str) else value

    @field_validator("system")
    @classmethod
    def _elements_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not "".join(value):
            raise ValueError("expected element symbols joined by `-`, as Mg-Si, got none")
        for symbol in value:
            if symbol not in SYMBOLS:
                near = difflib.get_close_matches(symbol.capitalize(), SYMBOLS, n=1, cutoff=0.0)[0]
                raise ValueError(f"expected element symbols joined by `-`, got {symbol!r}; did you mean {near!r}?")
        if len(set(value)) != len(value):
            raise ValueError(f"expected each element once, got {'-'.join(value)}")
        return value

    @model_validator(mode="after")
    def _one_scale_of_bonds(self) -> Self:
        default = RelaxConfig.model_fields["bonds_scale"].default
        if self.relax.bonds_scale not in (default, self.select.bonds_scale):
            raise ValueError(
                "relax.bonds_scale: a search starts from select.bonds_scale and follows the number of unsafe "
                f"structures; expected it there, got {self.relax.bonds_scale:g} here"
            )
        return self

    @model_validator(mode="after")
    def _compositions_are_possible(self) -> Self:
        for formula in self.generate.compositions or ():
            try:
                elements = {str(e) for e in Composition(formula).elements}
            except ValueError as error:
                raise ValueError(f"generate.compositions: expected chemical formulae, got {formula!r}") from error
            if outside := elements - set(self.system):
                raise ValueError(
                    f"generate.compositions: expected formulae of {'-'.join(self.system)}, "
                    f"got {formula!r} with {', '.join(sorted(outside))}"
                )
        return self

    @property
    def chemsys(self) -> str:
        """Chemical system with its elements in alphabetical order, as databases write it."""
        return "-".join(sorted(self.system))

    @property
    def trial_settings(self) -> GenerateConfig:
        """The `generate` section with the elements among its compositions: a hull needs its ends.

        Raises
        ------
        ConfigError
            If the section leaves no room for an element by itself.
        """
        if self.generate.compositions is None:
            return self.generate
        try:
            listed_cells(self.system, self.generate.model_copy(update={"compositions": self.system}))
        except csp.errors.ConfigError as error:
            raise ConfigError(
                f"a search makes the elements too, the ends of its hull; start generate.atoms and formula_units at 1, "
                f"as in atoms: [1, {self.generate.atoms[1]}], and let element_ranges hold 0 and 1 ({error})"
            ) from error
        wanted = dict.fromkeys([*self.generate.compositions, *self.system])
        return self.generate.model_copy(update={"compositions": tuple(wanted)})

    @property
    def first_knowledge(self) -> Knowledge:
        """Volumes and minimum distances that the search starts from: given, or else estimated."""
        given = self.generate
        return Knowledge.initial(self.system, self.pressure_gpa, distances=given.distances, volumes=given.volumes)

    @property
    def reduced_compositions(self) -> tuple[str, ...]:
        """Formulas that the user asked for, reduced; empty when compositions vary."""
        amounts = [Composition(formula).get_el_amt_dict() for formula in self.generate.compositions or ()]
        return tuple(reduced_formula(amount) for amount in amounts)

    def resolved_yaml(self) -> str:
        """Return the search file with every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def fingerprint(self) -> str:
        """Return a hash of what makes it this search: system, pressure, seed, label settings, shape of the potential.

        Budgets, workers, time limits and sizes may change while a search goes on.
        """
        identity = {
            "system": self.system,
            "pressure_gpa": self.pressure_gpa,
            "seed": self.seed,
            "label": settings_fingerprint(self.label),
            "model": self.train.model.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def load_config(path: Path | str) -> SearchConfig:
    """Read and check a search file.

    Parameters
    ----------
    path
        YAML file, see ``examples/``.

    Returns
    -------
    SearchConfig
        The checked settings, defaults filled in.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or a key is unknown or has a bad value; names the key, what was
        expected, what came, and the nearest valid name.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `hullseeker init DIR` writes one to start from") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values such as `project: mg-si`, got {type(content).__name__}")
    _resolve_seeds(content, path.parent)
    return parse_config(content, source=str(path))


class _Loader(yaml.SafeLoader):
    """The safe loader, which reads 1e-7 as a number as everybody means it (YAML 1.1 would read a text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _resolve_seeds(content: dict[str, Any], folder: Path) -> None:
    """Make the paths of seeds absolute: jobs run in folders of their own."""
    section = content.get("generate")
    seeds = section.get("seeds") if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(seeds, list) and all(isinstance(seed, str) for seed in seeds):
        section["seeds"] = [str((folder / seed).resolve()) for seed in seeds]


def parse_config(content: dict[str, Any], *, source: str = "search") -> SearchConfig:
    """Check the content of a search file.

    Parameters
    ----------
    content
        Keys and values as YAML gives them.
    source
        Where it comes from, for messages.

    Returns
    -------
    SearchConfig
        The checked settings.

    Raises
    ------
    ConfigError
        See :func:`load_config`.
    """
    try:
        return SearchConfig.model_validate(content)
    except ValidationError as error:
        lines = [_explain(dict(e)) for e in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(dict.fromkeys(lines))) from error


def _explain(error: dict[str, Any]) -> str:
    """Rewrite one pydantic error: key, what was expected, what came, the nearest valid name."""
    location = [str(part) for part in error["loc"]]
    if location[:1] == ["label"] and location[1:2] in (["ase"], ["atomate2"]):
        del location[1]  # the tag of the union, which nobody wrote
    key = ".".join(location) or "search file"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        names = _valid_names(location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(names))}"
        return f"{key}: unknown option; {hint}"
    if error["type"].startswith("union_tag"):
        came = error["input"].get("door", "no door") if isinstance(error["input"], dict) else error["input"]
        return f"{key}.door: expected `ase` or `atomate2`, got {came!r}"
    if error["type"] == "missing":
        return f"{key}: required, but not given"
    if error["type"] == "value_error":
        return message if not location or message.startswith(key) else f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _valid_names(section: list[str]) -> list[str]:
    """Return the option names of a section, following unions by their tags."""
    models: list[type[BaseModel]] = [SearchConfig]
    for part in section:
        models = [found for model in models for found in _models_under(model, part)] or models
    return [name for model in models for name in model.model_fields]


def _models_under(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    field = model.model_fields.get(name)
    return _models_in(field.annotation) if field is not None else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - any type annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
