"""Which worker and which queue settings each stage's jobs ask the workflow manager for."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobflow import Job

Resources = dict[str, dict[str, Any]]
"""By stage: the ``manager_config`` of its jobs, as in ``{"label": {"_category": "dft"}}``."""


BOOKKEEPING = "advance"
"""Stage whose resources serve the small jobs that only collect and store."""


def with_resources(job: Job, stage: str, resources: Resources) -> Job:
    """Give a job the resources of its stage, and keep them from the jobs that it spawns.

    A driver's ``manager_config`` would else overwrite that of all its children (jobflow's default), and first
    principles would land on the worker of the driver.

    Parameters
    ----------
    job
        The job; changed in place.
    stage
        Its stage.
    resources
        All stages' resources.

    Returns
    -------
    Job
        The same job.
    """
    job.config = replace(job.config, manager_config=deepcopy(resources.get(stage, {})), pass_manager_config=False)
    bookkeeping = deepcopy(resources.get(BOOKKEEPING, {}))
    if bookkeeping:
        # jobflow adds a job that stores the output of a driver; without a worker's category no worker would run it
        job.update_config({"manager_config": bookkeeping}, name_filter="store_inputs", dynamic=True)
    return job
