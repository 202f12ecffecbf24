"""From the name of a calculator in the search file to a calculator, or to a sentence that says what to do."""

from __future__ import annotations

import shlex
import shutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ase.calculators.calculator import get_calculator_class

from makers.config import AseLabelConfig, Atomate2LabelConfig
from makers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase.calculators.calculator import Calculator

INSTALL_HINTS = {"gpaw": "pip install 'hullseeker[dft]' (GPAW; needs a C compiler)", "asap": "pip install asap3"}


def load_factory(calculator: str) -> Callable[..., Calculator]:
    """Import what makes the calculator.

    Parameters
    ----------
    calculator
        ASE name, or module:callable.

    Returns
    -------
    Callable
        Called with the settings it returns a calculator.

    Raises
    ------
    ConfigError
        If it cannot be imported; says what to install or to correct.
    """
    module, _, attribute = calculator.partition(":")
    try:
        if not attribute:
            return get_calculator_class(calculator)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
        target: Any = import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as exc:
        hint = INSTALL_HINTS.get(calculator, "install the package that provides it, or correct the name")
        raise ConfigError(f"label.calculator: {calculator!r} cannot be imported ({exc}): {hint}") from exc
    if not callable(target):
        raise ConfigError(
            f"label.calculator: {calculator!r} is not callable: name a function that returns a calculator"
        )
    return target  # type: ignore[no-any-return]


def build_calculator(calculator: str, settings: dict[str, Any]) -> Calculator:
    """Build a fresh calculator.

    Parameters
    ----------
    calculator
        ASE name, or module:callable.
    settings
        Keyword arguments.

    Returns
    -------
    Calculator
        An ASE calculator.
    """
    quiet = {"txt": None} if calculator == "gpaw" else {}
    return load_factory(calculator)(**quiet | settings)


def calculator_versions(calculator: Calculator) -> dict[str, str]:
    """Return the versions of ASE and of the package that the calculator comes from.

    Parameters
    ----------
    calculator
        Any calculator.

    Returns
    -------
    dict
        Version by package.
    """
    found = {}
    for package in ("ase", type(calculator).__module__.split(".", maxsplit=1)[0]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = str(getattr(import_module(package), "__version__", "unknown"))
    return found


def _check_calculator(config: AseLabelConfig) -> None:
    """Build the calculator once, and look for the program that it starts."""
    load_factory(config.calculator)
    try:
        calculator = build_calculator(config.calculator, config.settings)
    except Exception as exc:
        raise ConfigError(
            f"label.settings: {config.calculator!r} does not start with them ({type(exc).__name__}: "
            f"{' '.join(str(exc).split())[:300]}): correct the keywords, or install and configure the program"
        ) from exc
    command = getattr(getattr(calculator, "profile", None), "command", None)
    program = shlex.split(command)[0] if isinstance(command, str) and command.strip() else None
    if program is not None and shutil.which(program) is None:
        raise ConfigError(
            f"label.calculator: the executable {program!r} of {config.calculator!r} was not found: install it, or "
            "name it in ASE's configuration file"
        )


def check_labeller(config: AseLabelConfig | Atomate2LabelConfig) -> None:
    """Find out on this machine, without calculating anything, whether the labeller can start.

    Parameters
    ----------
    config
        The `label` section.

    Raises
    ------
    ConfigError
        If a package or an executable is missing, or a setting is not accepted; one paragraph.
    """
    if isinstance(config, AseLabelConfig):
        _check_calculator(config)
        return
    from makers.labelling.vasp import build_maker, vasp_command  # noqa: PLC0415 - imports atomate2, eight seconds

    build_maker(config)
    command = vasp_command(config)
    program = next(iter(shlex.split(command)), "")
    if not program or shutil.which(program) is None:
        raise ConfigError(
            f"label.run_vasp.vasp_cmd: the executable {program!r} was not found: load VASP's module, or set VASP_CMD "
            f"in ~/.atomate2.yaml or ATOMATE2_VASP_CMD in the environment of the worker"
        )
