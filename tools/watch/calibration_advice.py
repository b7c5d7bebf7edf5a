"""After a run: whether its step is so far from the prediction that the cluster file should be mended, and how."""

from __future__ import annotations

import shlex

from partitioner.cluster import Cluster
from partitioner.hardware.parts import presets
from runtime.report import Report

FAR = 1.5  # times as long as predicted, or as short
LEAST_STEPS = 2  # the first is slower


def calibration_advice(report: Report, path: str | None) -> str | None:
    """One line with the command, of a run far off on a cluster whose figures were not measured here; else None.

    ``path``: where the report was written. A cluster file of the user's own, or one that ``calibrate`` wrote, is taken
    to be measured: those that come with the package are not of this machine.
    """
    ratio, cluster = report.step_seconds / report.predicted.step_seconds, report.asked.machine
    if 1 / FAR <= ratio <= FAR or report.steps < LEAST_STEPS or not _is_preset(cluster):
        return None
    first, file = ("", shlex.quote(path)) if path else ("run again with --report report.json, then ", "report.json")
    return (
        f"calibrate: a step took {ratio:.2f} times what was predicted by {cluster.name}, which was not measured here; "
        f"{first}partitioner calibrate --from {file} -o measured.toml, and plan with --cluster measured.toml"
    )


def _is_preset(cluster: Cluster) -> bool:
    """Whether its figures are those that come with the package."""
    if cluster.name not in presets():
        return False
    own = Cluster.load(cluster.name)
    return (own.device, own.node, own.network, own.software) == (
        cluster.device, cluster.node, cluster.network, cluster.software,
    )  # fmt: skip
