"""A comparison as a figure: α of every layer, or how much of its numbers each layer changed."""

import re

import numpy as np

from sst_ui.jobs.audit.findings import Audit
from sst_ui.jobs.layer_figure import by_layer
from sst_ui.maths.audit.kernel_fit import CLOSE
from sst_ui.maths.kernel import gaussian
from sst_ui.recipe import KINDS

NUMBER = re.compile(r"(?:^|\.)(\d+)\.")  # of a layer, in the name of a tensor


def figure(audit: Audit) -> str:
    """The SVG: α of attention and MLP with the kernel that fits; of other changes the relative
    size, the largest of each layer's tensors and their root mean square."""
    if audit.verdict.kind not in ("ablation", "filter"):
        lines = _sizes(audit)
        most = max((float(line.max()) for line in lines.values()), default=0.0)
        return by_layer(lines, audit.layers, "Relative change of each layer", most or 1.0)
    what = "α" if audit.verdict.kind == "ablation" else "share"
    lines = {f"{what}, {kind}": audit.alpha[:, column] for column, kind in enumerate(KINDS)}
    best = next((row for row in audit.kernels if row.misfit <= CLOSE), None)
    if best is not None and best.strength:
        curve = gaussian(audit.layers, best.peak, best.width)
        curve = np.where(curve >= best.threshold, curve, 0.0)
        lines[f"kernel {best.name}"] = max(best.strength.values(), key=abs) * curve
    return by_layer(lines, audit.layers, f"{audit.verdict.title}, by layer")


def _sizes(audit: Audit) -> dict[str, np.ndarray]:
    """Name -> [layers] of the relative change of the tensors in each layer."""
    rows: list[list[float]] = [[0.0] for _ in range(audit.layers)]
    for finding in audit.findings:
        found = NUMBER.search(finding.name)
        if found and int(found[1]) < audit.layers and np.isfinite(finding.size):
            rows[int(found[1])].append(finding.size)
    parts = [np.array(row[1:] or row) for row in rows]
    return {
        "largest change of a tensor, relative": np.array([part.max() for part in parts]),
        "root mean square": np.array([np.sqrt(np.mean(part**2)) for part in parts]),
    }
