"""The runs of a report, those that differ only in their seed put together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.study.run_report import RunReport
from offramp.study.seeds import CurveGroup, group_curves, together


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in their seed, or one run.

    Attributes:
        curves: means and deviations over the runs; its name is that of the run if there is one.
        policy: what the policies do on test, None unless every run has one.
    """

    curves: CurveGroup
    policy: dict[str, Any] | None


def groups_of(runs: Sequence[RunReport]) -> list[RunGroup]:
    """Every run in one group."""
    by_folder = {run.folder: run for run in runs}
    groups = []
    for group in group_curves([run.config for run in runs], [run.folder for run in runs], [run.curves for run in runs]):
        members = [by_folder[folder] for folder in group.runs]
        leaving = [run.leaving for run in members if run.leaving]
        name = members[0].name if len(members) == 1 else f"{group.name}, {len(members)} seeds"
        policy = together(leaving) if len(leaving) == len(members) else None
        groups.append(RunGroup(replace(group, name=name), policy))
    return groups
