"""What one GLUE task is: its files, columns, labels and metrics, as facts that the rest of the folder works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Declaration:
    """One of the tasks of GLUE (Wang et al., ICLR 2019, arXiv 1804.07461).

    Attributes:
        name: as the hub's ``nyu-mll/glue`` spells it; also the configuration of the metric.
        folder: as the original download spells it.
        columns: the text columns, in the order in which a model reads them.
        original_columns: their names in the original TSVs, where those differ.
        original_label: the label's column in the original TSVs.
        original_header: the columns of the original TSVs, if they have no header line.
        labels: the classes in the order of their numbers; empty for a regression.
        sizes: official number of rows of each split. The splits are ``train`` and ``validation``; MNLI has
            ``validation_matched`` and ``validation_mismatched``.
        metric: the name, in the metric's result, of the figure that papers report and that selects.
        empty_texts: rows with an empty text in the official training split, which are left out.
        has_short_lines: whether the original TSVs have lines that are cut short, which are left out.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    sizes: Mapping[str, int]
    metric: str
    original_columns: tuple[str, ...] | None = None
    original_label: str = "label"
    original_header: tuple[str, ...] | None = None
    empty_texts: int = 0
    has_short_lines: bool = False

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The splits that are scored."""
        return tuple(split for split in self.sizes if split != "train")
