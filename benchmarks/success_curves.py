"""Draw the success curves of benchmarks/generate_success.py.

Usage: python benchmarks/success_curves.py [--out docs/success_curves.png]
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "generate_success.json"
STYLES = {
    "ours": ("Hullseeker", "#0072B2", "-"),
    "unpushed": ("without pushing atoms apart", "#009E73", "--"),
    "pyxtal": ("PyXtal", "#D55E00", ":"),
}


def draw() -> Figure:
    """Draw one panel for each compound: the share of seeds that have found it against the crystals relaxed."""
    compounds = json.loads(RESULTS.read_text())
    with mpl.rc_context({"font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        panels = figure.subplots(2, 5, sharey=True).ravel()
        for panel, (compound, row) in zip(panels, sorted(compounds.items()), strict=True):
            for name, (label, color, style) in STYLES.items():
                shares = [0.0, *row[name]["success_after"]]
                panel.step(range(len(shares)), shares, where="post", color=color, linestyle=style, label=label)
            panel.set_title(f"{compound}, {row['ours']['seeds']} seeds")
            panel.set_ylim(-0.03, 1.03)
        figure.supxlabel("crystals relaxed")
        figure.supylabel("share of seeds that found the compound")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "success_curves.png")
    draw().savefig(parser.parse_args().out, dpi=160)


if __name__ == "__main__":
    main()
