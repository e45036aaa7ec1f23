"""A bank with its metrics: what `learn` and `evaluate` return, and how it is shown, drawn and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from masklearn import evaluation
from masklearn.data import MaskData, SplitName
from masklearn.errors import UserError
from masklearn.files import atomic_write
from masklearn.mask_file import MASK_FILE, Mask
from masklearn.masking import MaskedLM, gated

if TYPE_CHECKING:
    from masklearn.report.style import ShownFigure


@dataclass(frozen=True, eq=False)
class LearnedBank:
    """Masks, the model they belong to, and their metrics on some texts."""

    mask: Mask
    """The masks, as a mask file holds them."""
    masked_lm: MaskedLM
    """The model under the ablation of the evaluation."""
    data: MaskData
    """The texts of the evaluation, which are those of `split`."""
    results: dict[str, Any]
    """The metrics, as in `metrics.json`."""
    texts: str
    """The texts of the evaluation in words."""
    split: SplitName = "test"
    """The split of `data` that was evaluated: `test` of the masks' own texts, `all` of others."""
    learned_on: MaskData | None = None
    """The texts that the masks were learned on; None if unknown, as for masks from a file."""

    @property
    def lm(self) -> PreTrainedModel:
        """The model."""
        return self.masked_lm.lm

    @property
    def sizes(self) -> list[int]:
        """Nodes kept by each mask, ascending."""
        return self.mask.sizes.tolist()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that have masks of their own."""
        return self.mask.groups

    @property
    def metrics(self) -> pd.DataFrame:
        """A row for each size; KL, JS and cross-entropies in nats per scored token, TV, top-1 and such as shares.

        Columns of baselines have their name in front, such as `random kl_mean`.
        """
        rows = []
        for row in self.results["sizes"]:
            controls = row.get("controls", {})
            named = {f"{name} {metric}": value for name, found in controls.items() for metric, value in found.items()}
            rows.append({key: value for key, value in row.items() if not isinstance(value, dict)} | named)
        return pd.DataFrame(rows).set_index("s")

    @property
    def by_group(self) -> pd.DataFrame:
        """KL (nats per scored token) and TV of every group and size, indexed by both; empty with a single group."""
        rows = [
            {"group": name, "s": s, "kl": kl, "tv": tv}
            for name, found in self.results.get("groups", {}).items()
            for s, kl, tv in zip(self.sizes, found["kl"], found["tv"], strict=True)
        ]
        return pd.DataFrame(rows, columns=["group", "s", "kl", "tv"]).set_index(["group", "s"])

    def select(self, s: int | float, group: str | int | None = None) -> Tensor:
        """One mask, boolean of shape (nodes,): see `Mask.select`."""
        return self.mask.select(s, group)

    def nodes(self, s: int | float, group: str | int | None = None) -> list[str]:
        """Names of the nodes that a mask keeps, in forward order."""
        return [name for name, kept in zip(self.mask.graph.names, self.select(s, group).tolist(), strict=True) if kept]

    @contextmanager
    def gated(self, s: int | float, group: str | int | None = None) -> Iterator[PreTrainedModel]:
        """Run the model under a mask while the context is open: see `masklearn.gated`."""
        with gated(self.lm, self.select(s, group), self.masked_lm.ablation) as lm:
            yield lm

    def plot(self) -> "ShownFigure":
        """The masks, or the share of groups that keep each node; and KL and TV against size.

        Raises:
            UserError: If matplotlib is not installed.
        """
        require_matplotlib()
        from masklearn import report  # optional

        return report.run_overview(self.mask, self.results["sizes"])

    def report(self, path: str | Path) -> Path:
        """Write a self-contained page with the figure, the metrics and the nodes of every mask.

        Raises:
            UserError: If matplotlib is not installed, or if the file cannot be written.
        """
        require_matplotlib()
        from masklearn import report  # optional

        file = Path(path).expanduser()
        page = report.bank_page(self.mask, self.results, str(self))
        atomic_write(file, page.encode())
        return file

    def save(self, path: str | Path) -> Path:
        """Write the mask file; a folder, or a name without a suffix, gets a `mask.safetensors`.

        Raises:
            UserError: If the file cannot be written.
        """
        file = Path(path).expanduser()
        file = file / MASK_FILE if file.is_dir() or not file.suffix else file
        self.mask.with_metrics(self.results["sizes"]).save(file)
        return file

    def _table(self) -> str:
        return evaluation.html_table(evaluation.table(self.results["sizes"]))

    def __str__(self) -> str:
        n_groups = f" for each of {len(self.groups)} groups" if len(self.groups) > 1 else ""
        graph = self.mask.graph
        return (
            f"Masks of {', '.join(map(str, self.sizes))} of {graph.n_nodes} nodes of {self.mask.model.lm}{n_groups}, "
            f"{self.masked_lm.ablation.name} ablation; metrics on {self.texts}"
        )

    def __repr__(self) -> str:
        return f"{self}\n\n{evaluation.format_report(self.results)}"

    def _repr_html_(self) -> str:
        picture = ""
        if find_spec("matplotlib"):
            from masklearn import report  # optional

            picture = report.png_element(report.run_overview(self.mask, self.results["sizes"]))
        return f"<p>{escape(str(self))}</p>{self._table()}<p>KL, JS and CE in nats per scored token.</p>{picture}"


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        UserError: How to install it.
    """
    if not find_spec("matplotlib"):
        raise UserError("figures need matplotlib. Get it with: pip install matplotlib jinja2")
