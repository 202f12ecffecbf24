"""Look at a search file before anything is computed: is it right, can it start, what will it cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import makers
import workflows
from csp.generate import generate
from makers.errors import ConfigError
from makers.labelling import settings_fingerprint
from makers.labelling.calculators import check_labeller
from workflows.config import SearchConfig, load_config
from workflows.search import SearchMaker


def check_search(file: Path) -> str:
    """Check a search file and the labeller on this machine.

    Parameters
    ----------
    file
        Search file.

    Returns
    -------
    str
        What the search will do, in sizes.

    Raises
    ------
    ConfigError
        If anything is wrong; says what to write or install.
    """
    config = load_config(file)
    verify(config)
    check_labeller(config.label)
    return "\n".join([f"{file}: correct", *_sizes(config), *_origins()])


def verify(config: SearchConfig) -> None:
    """Find out whether the search can be made at all, by making one crystal and the first flow.

    Parameters
    ----------
    config
        The search file.

    Raises
    ------
    csp.errors.ConfigError
        If no crystal can meet the settings: compositions, sizes, space groups, seeds.
    ConfigError
        If there are fewer first labels than elements.
    """
    if config.generate.n_initial < len(config.system):
        raise ConfigError(
            f"generate.n_initial: expected at least one label for each of {len(config.system)} elements, "
            f"got {config.generate.n_initial}"
        )
    if config.advance.max_labels is not None and config.advance.max_labels < len(config.system):
        raise ConfigError(
            f"advance.max_labels: expected at least one label for each of {len(config.system)} elements, "
            f"got {config.advance.max_labels}"
        )
    knowledge = config.first_knowledge
    generate(config.trial_settings, knowledge, elements=config.system, n=1, seed=np.random.SeedSequence(config.seed))
    SearchMaker(config).make()


def _sizes(config: SearchConfig) -> list[str]:
    knowledge = config.first_knowledge
    distances = ", ".join(f"{pair} {value:.2f}" for pair, value in sorted(knowledge.distances.items()))
    volumes = ", ".join(f"{symbol} {value:.1f}" for symbol, value in sorted(knowledge.volumes.items()))
    generate, select, advance = config.generate, config.select, config.advance
    labels = generate.n_initial + (advance.max_generations - 1) * select.n_labels
    most = labels if advance.max_labels is None else min(labels, advance.max_labels)
    return [
        (
            f"system {config.chemsys} at {config.pressure_gpa:g} GPa, "
            f"cells of {generate.atoms[0]} to {generate.atoms[1]} atoms"
        ),
        f"minimum distances to start from (Å): {distances}",
        f"volumes to start from (Å³/atom): {volumes}",
        (
            f"generation 0: {generate.n_initial} labels of unrelaxed crystals; then {generate.n_structures} "
            f"trial crystals and up to {select.n_labels} labels a generation"
        ),
        (f"at most {advance.max_generations} generations, {most} labels and {advance.final_max} final relaxations"),
        f"label settings {settings_fingerprint(config.label)} by {config.label.door}",
    ]


def _origins() -> list[str]:
    return [f"{m.__name__} {m.__version__} from {Path(str(m.__file__)).parent}" for m in (makers, workflows)]
