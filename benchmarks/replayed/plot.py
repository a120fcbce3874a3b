"""The regret by budget as a picture."""

from __future__ import annotations

from pathlib import Path

from replayed.summary import Comparison


def draw(comparison: Comparison, path: Path, reference: str = "autotune") -> None:
    """Write mean regret against epochs, both logarithmic, a line a method, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    means = comparison.means()
    order = sorted(means, key=lambda name: float(means[name][-1]))
    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), dpi=160)
    colours = matplotlib.colormaps["tab10"]
    for index, name in enumerate(order):
        own = name == reference
        axes.plot(
            comparison.budgets,
            means[name],
            label=name.replace("_", " "),
            color="black" if own else colours(index % 10),
            linestyle="-" if index < 10 else "--",
            linewidth=2.6 if own else 1.2,
            marker="o" if own else None,
            markersize=4,
            zorder=3 if own else 2,
        )
    axes.set(xscale="log", yscale="log", xlabel="epochs trained", ylabel="mean normalised regret")
    axes.set_xticks(comparison.budgets, [str(budget) for budget in comparison.budgets])
    axes.minorticks_off()
    ticks = [
        tick
        for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
        if tick > min(map(min, means.values())) / 2
    ]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(True, alpha=0.3, linewidth=0.6)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(
        f"{len(comparison.files)} recorded tables, {len(set(comparison.suites))} suites, "
        f"{len(comparison.seeds)} seeds",
        fontsize=9,
    )
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
