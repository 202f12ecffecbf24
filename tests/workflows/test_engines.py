"""The same flow for any engine: no job needs FireWorks, and every job survives being written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import bson
import pytest
from jobflow import Job
from monty.json import MontyDecoder, jsanitize

from workflows.search import SearchMaker

WITHOUT_FIREWORKS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fireworks":
            raise ImportError("a job wants FireWorks")
sys.meta_path.insert(0, Refuse())
from workflows.config import load_config
from workflows.run import run_search
print(run_search(load_config(sys.argv[1]), sys.argv[2]).stop_reason)
assert not any(name.partition(".")[0] == "fireworks" for name in sys.modules)
"""


def jobs_of(config) -> list[tuple[Job, list[str]]]:
    return list(SearchMaker(config).make().iterflow())


@pytest.mark.integration
def test_no_job_needs_fireworks(search_file, tmp_path):
    file = search_file(advance__max_generations=2, advance__final_max=1)
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-W", "ignore", "-c", WITHOUT_FIREWORKS, str(file), str(tmp_path / "search")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "max_generations"


def test_jobs_survive_being_written_down(tiny_config):
    for job, _ in jobs_of(tiny_config()):
        written = jsanitize(job.as_dict(), strict=True, enum_values=True)
        assert len(bson.encode(written)) < 100_000
        read = MontyDecoder().process_decoded(json.loads(json.dumps(written)))
        assert isinstance(read, Job)
        assert (read.uuid, read.name, read.metadata) == (job.uuid, job.name, job.metadata)
        assert read.input_uuids == job.input_uuids
        assert jsanitize(read.as_dict(), strict=True, enum_values=True) == written


@pytest.mark.remote
def test_jobs_become_documents_of_jobflow_remote(tiny_config):
    data = pytest.importorskip(
        "jobflow_remote.jobs.data", reason="jobflow-remote has its own environment: `make remote`"
    )
    for number, (job, parents) in enumerate(jobs_of(tiny_config())):
        document = data.get_initial_job_doc_dict(
            job, parents, db_id=str(number), worker="cluster", exec_config=None, resources=None, priority=0
        )
        assert document["uuid"] == job.uuid
        assert list(document["parents"] or []) == parents
        bson.encode(document)
