"""Figures of what density goes with: properties of inputs, other models, the tokens of a text."""

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportReturnType=false, reportCallIssue=false
# (by pandas' own annotations a selection may be anything)

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from masklearn.density.bank import Bank
from masklearn.density.findings import of_bank
from masklearn.density.relations import WORDS
from masklearn.report.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Drawn,
    blank,
    drawable,
    legend,
    look,
    one_axes,
    size_axis,
)  # fmt: skip

Tables = dict[str, pd.DataFrame]
RHO = LinearSegmentedColormap.from_list("rho", ["#d55e00", "#f4f4f6", "#0072b2"])
MOST_TOKENS = 40


def relations(bank: Bank, tables: Tables) -> Iterator[Drawn]:
    table = of_bank(tables["relations"], bank.name)
    table = table[table["rho"].notna()]
    if len(table):
        names = [name for name in WORDS if name in set(table["with"])]
        kinds = [kind for kind in bank.kinds if kind in set(table["kind"])]
        figure, axes = one_axes(COLUMN, 0.7 + 0.34 * len(names))
        axes.axvline(0, color=INK, linewidth=0.6, linestyle=":")
        for i, kind in enumerate(kinds):
            rows = table[table["kind"] == kind].set_index("with").reindex(names)
            y = np.arange(len(names)) + (i - (len(kinds) - 1) / 2) * 0.7 / len(kinds)
            spread = np.stack([rows["rho"] - rows["low"], rows["high"] - rows["rho"]]).astype(float).clip(min=0)
            axes.errorbar(rows["rho"], y, xerr=spread, label=kind, elinewidth=0.8, **look(kind, linestyle="none"))
        axes.set_yticks(range(len(names)), [WORDS[name] for name in names])
        axes.invert_yaxis()
        axes.set_xlim(-1, 1)
        axes.set_xlabel("rank correlation with density")
        legend(figure, axes, 4)
        alt = f"Rank correlation of density with properties of the inputs of {bank.name}, with bootstrap intervals"
        yield Drawn("relations", "relations", bank.name, alt, figure)
    inputs = of_bank(tables["inputs"], bank.name)
    if inputs["density_learned"].notna().any():
        figure, axes = one_axes()
        axes.scatter(inputs["entropy"], inputs["density_learned"], s=5, color=BLUE, alpha=0.5, linewidths=0)
        axes.set_xlabel("entropy of the full model's distribution (nats)")
        axes.set_ylabel("computation density\n(TV x decades of size)")
        alt = f"Computation density of every input of {bank.name} against the full model's entropy"
        yield Drawn("density-entropy", "relations", bank.name, alt, figure)


def across(banks: list[Bank], tables: Tables) -> Iterator[Drawn]:
    table, names = tables["across"], [bank.name for bank in banks]
    if len(table) and table["rho"].notna().any():
        side = max(2.0, min(COLUMN, 1.2 + 0.55 * len(names)))
        figure, axes = one_axes(COLUMN, side)
        matrix = pd.DataFrame(np.eye(len(names)), names, names).replace(0, np.nan)
        for _, pair in table.iterrows():
            matrix.loc[pair["one"], pair["other"]] = matrix.loc[pair["other"], pair["one"]] = pair["rho"]
        axes.pcolormesh(matrix.to_numpy(float), cmap=RHO, vmin=-1, vmax=1, edgecolors="white", linewidth=0.8)
        for (y, x), rho in np.ndenumerate(matrix.to_numpy(float)):
            color = "white" if abs(rho) > 0.6 else "#1b1b20"  # on the cell, whatever the page's own ink
            if not np.isnan(rho):
                axes.text(x + 0.5, y + 0.5, f"{rho:.2f}", ha="center", va="center", fontsize=6, color=color)
        places = np.arange(len(names)) + 0.5
        axes.set_xticks(places, [drawable(name, 18) for name in names], rotation=30, ha="right")
        axes.set_yticks(places, [drawable(name, 18) for name in names])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        figure.colorbar(ScalarMappable(Normalize(-1, 1), RHO), ax=axes, label="rank correlation of density", shrink=0.8)
        yield Drawn("across", "across", "all", "Rank correlation of the inputs' densities between banks", figure)
    overlap = tables["overlap"]
    if len(overlap):
        figure, axes = one_axes()
        colors = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
        pairs = overlap[["one", "other"]].drop_duplicates().to_dict("records")
        for i, pair in enumerate(pairs):
            rows = overlap[(overlap["one"] == pair["one"]) & (overlap["other"] == pair["other"])]
            color, label = colors[i % len(colors)], f"{drawable(pair['one'], 16)} / {drawable(pair['other'], 16)}"
            axes.plot(rows["fraction"], rows["overlap"], color=color, marker="o", label=label if i < 8 else None)
            axes.plot(rows["fraction"], rows["by_chance"], color=color, linestyle=":", linewidth=0.8)
        axes.plot([], [], color=GREY, linestyle=":", linewidth=0.8, label="by chance")
        size_axis(axes, float(overlap["fraction"].min()))
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("overlap of mean masks")
        legend(figure, axes, 2)
        yield Drawn("overlap", "across", "all", "Overlap of the mean masks of banks against relative size", figure)


def by_token(bank: Bank, tables: Tables) -> Iterator[Drawn]:
    table = of_bank(tables["by_token"], bank.name)
    if not len(table) or table["density"].isna().all():
        return
    first = table[table["text"] == table["text"].iloc[0]].head(MOST_TOKENS)
    figure = blank(2 * COLUMN, 2.0)
    axes = figure.subplots()
    axes.bar(range(len(first)), first["density"], color=BLUE, width=0.8)
    axes.set_xticks(range(len(first)), [drawable(token, 12) for token in first["token"]], rotation=90, fontsize=6)
    axes.set_xlim(-0.6, len(first) - 0.4)
    axes.set_ylabel("computation density\n(TV x decades of size)")
    alt = f"The density that each token of text {first['text'].iloc[0]} of {bank.name} takes, in order"
    yield Drawn("by-token", "by_token", bank.name, alt, figure)
