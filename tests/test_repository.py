"""Rules that hold for the whole repository: who may import whom, how long a file is, how often a tool is overruled."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from workflows.config import SearchConfig, load_config, parse_config
from workflows.templates import full_example

ROOT = Path(__file__).parents[1]
PACKAGES = ("acnn", "csp", "makers", "workflows")
MOST_LINES = 400

# The present numbers of `noqa` and `type: ignore`, rounded up to the next ten: they may fall, and only fall.
MOST_SUPPRESSIONS = {"acnn": 30, "csp": 10, "makers": 30, "workflows": 10}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def suppressions(package: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in sources(package):
        text = path.read_text(encoding="utf-8")
        found["noqa"] += len(re.findall(r"#\s*noqa", text))
        found["ignore"] += len(re.findall(r"#\s*type:\s*ignore", text))
    return found


def test_import_contracts():
    done = subprocess.run(  # noqa: S603 - our own tool
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_tools_are_seldom_overruled(package):
    found = suppressions(package)
    assert found.total() <= MOST_SUPPRESSIONS[package], dict(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_suppression_names_its_code(package):
    for path in sources(package):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert not re.search(r"#\s*noqa(?!:\s*[A-Z]+\d)", line), f"{path}:{number}"
            assert not re.search(r"#\s*type:\s*ignore(?!\[)", line), f"{path}:{number}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_long(package):
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sources(package)}
    lengths = {name: len(text.splitlines()) for name, text in files.items()}
    assert lengths
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_full_example_lists_every_option_with_its_default():
    file = ROOT / "examples" / "full.yaml"
    # python -c "from workflows.templates import full_example; print(full_example(), end='')" > examples/full.yaml
    assert file.read_text(encoding="utf-8") == full_example()
    label = {"door": "ase", "calculator": "emt"}
    assert load_config(file) == parse_config({"project": "full", "system": "Mg-Si", "label": label})
    content = yaml.safe_load(full_example())
    for name, field in SearchConfig.model_fields.items():
        assert name in content
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            assert set(content[name]) == set(field.annotation.model_fields)
