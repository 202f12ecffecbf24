"""The search files to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel

from makers.config import AseLabelConfig
from makers.errors import ConfigError
from workflows.config import SearchConfig


def write_template(folder: Path, template: str) -> Path:
    """Write an annotated search file.

    Parameters
    ----------
    folder
        Where; made here.
    template
        Name of a file in ``workflows/configs``, without suffix.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        If there is no such template, the file exists or cannot be written.
    """
    known = {Path(entry.name).stem: entry for entry in files("workflows").joinpath("configs").iterdir()}
    if template not in known:
        raise ConfigError(f"--template: expected one of {', '.join(sorted(known))}, got {template!r}")
    path = folder / "search.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(known[template].read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder that can be written, got: {error.strerror}") from error
    return path


def full_example() -> str:
    """Return a search file that lists every option with its default and what it means: ``examples/full.yaml``.

    Returns
    -------
    str
        YAML, for labels by an ASE calculator.
    """
    label = AseLabelConfig(calculator="emt")
    config = SearchConfig(project="full", system=("Mg", "Si"), label=label)
    head = "# Every option of a search file with its default. Only project, system and label have to be given."
    return "\n".join([head, *_lines(config, "")]) + "\n"


def _lines(settings: BaseModel, indent: str) -> list[str]:
    lines = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_lines(value, f"{indent}  ")]
        else:
            plain = settings.model_dump(mode="json", include={name})
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000).strip()[1:-1]
            lines += [f"{indent}# {field.description}", f"{indent}{text}"]
    return lines
