"""Under FireWorks: what is lost, failed or forgotten is explained, and only what has to run again runs again."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fireworks import FWAction, FWorker, LaunchPad
from fireworks.core.rocket_launcher import rapidfire
from fireworks.utilities.fw_utilities import get_my_host
from jobflow import SETTINGS

import makers.label
import makers.train
from makers.errors import ConfigError
from makers.labelling import read_labels
from makers.stores import embedded_job_store
from workflows import cli
from workflows.jobs import find_orphans, read_jobs
from workflows.launch import submit_search
from workflows.queue import Queue
from workflows.recover import Action, Case, Trouble, diagnose, orphans, recover, treat
from workflows.results import generations, report
from workflows.run import open_store
from workflows.tables import recovery_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from fireworks import Firework
    from jobflow import JobStore

    from workflows.config import SearchConfig

pytestmark = pytest.mark.integration

CHUNKS = ("label 000.1", "label 000.2")
AT_ONCE = -1.0  # s: every running job counts as lost


@pytest.fixture
def store(tmp_path, monkeypatch) -> JobStore:
    store = embedded_job_store(tmp_path / "store")
    store.connect()
    monkeypatch.setattr(SETTINGS, "JOB_STORE", store)
    return store


def launch(launchpad: LaunchPad, n: int = 0) -> None:
    rapidfire(launchpad, FWorker(), nlaunches=n, sleep_time=0, strm_lvl="CRITICAL")


def states(launchpad: LaunchPad) -> dict[str, str]:
    return {fw["name"]: fw["state"] for fw in launchpad.fireworks.find({}) if fw["name"] != "store_inputs"}


def cases(launchpad: LaunchPad) -> dict[str, tuple[Trouble, Action]]:
    found = diagnose(launchpad, read_jobs(launchpad, "tiny"), AT_ONCE)
    return {case.name: (case.trouble, case.action) for case in found}


def breaking(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails once."""
    left = [1]

    def function(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any signature
        if left:
            left.pop()
            raise RuntimeError("the disk is full")
        return real(*args, **kwargs)

    return function


def lose(launchpad: LaunchPad, name: str) -> int:
    """Let a launcher take a job and die."""
    number = launchpad.fireworks.find_one({"name": name})["fw_id"]
    launchpad.checkout_fw(FWorker(), ".", fw_id=number)
    return number


@pytest.mark.usefixtures("store")
def test_a_silent_job_that_ended_meanwhile_is_left(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad)
    number = lose(launchpad, "generate 000.0")
    jobs = read_jobs(launchpad, "tiny")
    found = diagnose(launchpad, jobs, AT_ONCE)
    assert [(case.name, case.action) for case in found] == [("generate 000.0", Action.RERUN)]
    launchpad.complete_launch(launchpad.fireworks.find_one({"fw_id": number})["launches"][-1], FWAction())
    treat(launchpad, jobs, found)
    assert states(launchpad)["generate 000.0"] == "COMPLETED"


@pytest.mark.usefixtures("store")
def test_a_lost_job_runs_again(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad)
    lose(launchpad, "generate 000.1")
    assert cases(launchpad) == {"generate 000.1": (Trouble.LOST, Action.RERUN)}
    assert diagnose(launchpad, read_jobs(launchpad, "tiny"), 900) == []  # it may well be alive
    found, told = recover(launchpad, "tiny", AT_ONCE, dry_run=True)
    assert states(launchpad)["generate 000.1"] == "RUNNING"
    assert "1 running" in told
    found, told = recover(launchpad, "tiny", AT_ONCE)
    assert states(launchpad)["generate 000.1"] == "READY"
    assert told == "tiny: 7 jobs, 3 ready, 4 waiting"
    text = recovery_table(found, dry_run=False)
    assert "generate 000.1" in text
    assert "no sign of life from" in text
    assert {launch["state"] for launch in launchpad.launches.find({})} == {"FIZZLED"}
    assert cases(launchpad) == {}


def test_a_failed_job_runs_again_and_nothing_else(tiny_config, launchpad, store, monkeypatch, finished):
    submit_search(tiny_config(advance__max_generations=2), launchpad)
    with monkeypatch.context() as patch:
        patch.setattr(makers.train, "train", breaking(makers.train.train))
        launch(launchpad)
    assert states(launchpad)["train 000"] == "FIZZLED"
    [case] = diagnose(launchpad, read_jobs(launchpad, "tiny"), AT_ONCE)
    assert (case.name, case.trouble, case.action) == ("train 000", Trouble.FAILED, Action.RERUN)
    assert case.why == "RuntimeError: the disk is full"
    assert 0 <= case.age < 600
    recover(launchpad, "tiny", AT_ONCE)
    assert Counter(states(launchpad).values())["READY"] == 1
    launch(launchpad)
    assert set(states(launchpad).values()) == {"COMPLETED"}
    assert [g.generation for g in generations(store, "tiny")] == [0, 1]
    labels, undisturbed = (read_labels(s, "tiny", kind="single_point", until=1) for s in (store, open_store(finished)))
    assert [x.label_id for x in labels] == [x.label_id for x in undisturbed]
    # every job has run once, but the one that failed, which has run twice
    launches = Counter(launch["fw_id"] for launch in launchpad.launches.find({}))
    number = launchpad.fireworks.find_one({"name": "train 000"})["fw_id"]
    assert {fw for fw, n in launches.items() if n > 1} == {number}
    assert report(store, "tiny").generations == 2
    assert cases(launchpad) == {}


def test_labels_that_failed_as_a_whole_run_again_before_they_are_counted(tiny_config, launchpad, store, monkeypatch):
    config = tiny_config(label__chunk_size=12, label__max_failed_fraction=0.1, advance__max_generations=1)
    submit_search(config, launchpad)
    with monkeypatch.context() as patch:
        patch.setattr(makers.label, "label_structures", breaking(makers.label.label_structures))
        launch(launchpad)
    [chunk] = [name for name in CHUNKS if states(launchpad)[name] == "FIZZLED"]
    assert cases(launchpad) == {
        chunk: (Trouble.FAILED, Action.RERUN),
        "label 000.collect": (Trouble.FAILED, Action.FOLLOWS),
        "train 000": (Trouble.FAILED, Action.FOLLOWS),  # FireWorks began it, without its input
    }
    recover(launchpad, "tiny", AT_ONCE)
    assert (states(launchpad)[chunk], states(launchpad)["label 000.collect"]) == ("READY", "WAITING")
    launch(launchpad)
    assert set(states(launchpad).values()) == {"COMPLETED"}
    [generation] = generations(store, "tiny")
    assert generation.labels == {"ok": 24}
    assert generation.state.n_asked == 24  # twelve were there when the driver counted, and are counted once


def test_a_failure_that_the_search_bore_is_left(tiny_config, launchpad, store, monkeypatch):
    config = tiny_config(label__chunk_size=12, label__max_failed_fraction=0.6, advance__max_generations=1)
    submit_search(config, launchpad)
    with monkeypatch.context() as patch:
        patch.setattr(makers.label, "label_structures", breaking(makers.label.label_structures))
        launch(launchpad)
    assert states(launchpad)["advance 000"] == "COMPLETED"
    before = states(launchpad)
    found, _ = recover(launchpad, "tiny", AT_ONCE)
    [case] = found
    assert (case.name in CHUNKS, case.action) == (True, Action.LEAVE)
    assert "the search went on without it" in found[0].why
    assert states(launchpad) == before
    [generation] = generations(store, "tiny")
    assert generation.labels == {"ok": 12, "crashed": 12}
    assert (generation.state.n_labels, generation.state.n_asked) == (12, 24)  # the budget counts failed ones too


@pytest.mark.usefixtures("store")
def test_what_was_not_carried_over_is_looked_at_again(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad)
    launch(launchpad, 3)
    fireworks = {fw["name"]: fw["fw_id"] for fw in launchpad.fireworks.find({})}
    # the launcher died between the end of the launch and that of the job, and before it told the child
    for name, state in (("generate 000.0", "RUNNING"), ("select 000", "WAITING")):
        launchpad.fireworks.update_one({"fw_id": fireworks[name]}, {"$set": {"state": state}})
        launchpad.workflows.update_one({}, {"$set": {f"fw_states.{fireworks[name]}": state}})
    assert cases(launchpad) == {"generate 000.0": (Trouble.UNRECORDED, Action.REFRESH)}
    recover(launchpad, "tiny", AT_ONCE)
    assert (states(launchpad)["generate 000.0"], states(launchpad)["select 000"]) == ("COMPLETED", "READY")
    launchpad.fireworks.update_one({"fw_id": fireworks["select 000"]}, {"$set": {"state": "WAITING"}})
    launchpad.workflows.update_one({}, {"$set": {f"fw_states.{fireworks['select 000']}": "WAITING"}})
    assert cases(launchpad) == {"select 000": (Trouble.FORGOTTEN, Action.REFRESH)}
    recover(launchpad, "tiny", AT_ONCE)
    assert states(launchpad)["select 000"] == "READY"


@pytest.mark.usefixtures("store")
def test_what_somebody_holds_is_left_and_what_waits_too_long_is_released(tiny_config, launchpad, monkeypatch):
    submit_search(tiny_config(), launchpad)
    fireworks = {fw["name"]: fw["fw_id"] for fw in launchpad.fireworks.find({})}
    launchpad.pause_fw(fireworks["generate 000.0"])
    launchpad.reserve_fw(FWorker(), ".", fw_id=fireworks["generate 000.1"])
    assert cases(launchpad) == {"generate 000.0": (Trouble.HELD, Action.LEAVE)}
    monkeypatch.setattr("workflows.recover.RESERVATION_EXPIRATION_SECS", -1)
    found, _ = recover(launchpad, "tiny", AT_ONCE)
    assert {c.name: c.action for c in found} == {"generate 000.0": Action.LEAVE, "generate 000.1": Action.RELEASE}
    assert "lpad resume_fws -i" in recovery_table(found, dry_run=False)
    assert states(launchpad)["generate 000.1"] == "READY"
    assert states(launchpad)["generate 000.0"] == "PAUSED"


def reserved(tiny_config: Callable[[], SearchConfig], launchpad: LaunchPad) -> tuple[int, int]:
    """Submit a search and reserve one of its jobs: numbers of firework and launch."""
    submit_search(tiny_config(), launchpad)
    number = launchpad.fireworks.find_one({"name": "generate 000.1"})["fw_id"]
    _, launch_id = launchpad.reserve_fw(FWorker(), ".", fw_id=number)
    return number, launch_id


@pytest.mark.usefixtures("store")
def test_a_reserved_job_is_released_when_the_queue_does_not_know_it(tiny_config, launchpad):
    _, launch_id = reserved(tiny_config, launchpad)
    now = datetime.now(UTC)
    later = now + timedelta(minutes=1)
    empty = Queue(later, frozenset())
    assert recover(launchpad, "tiny", AT_ONCE, queue=empty)[0] == []  # it is about to be submitted
    launchpad.set_reservation_id(launch_id, "17")
    for queue in (None, Queue(later, frozenset({"17"})), Queue(now, frozenset())):  # no answer; known; too early
        assert recover(launchpad, "tiny", AT_ONCE, queue=queue)[0] == []
    launchpad.launches.update_one({"launch_id": launch_id}, {"$set": {"host": "elsewhere"}})
    assert recover(launchpad, "tiny", AT_ONCE, queue=empty)[0] == []  # another machine's queue
    launchpad.launches.update_one({"launch_id": launch_id}, {"$set": {"host": get_my_host()}})
    [case] = recover(launchpad, "tiny", AT_ONCE, queue=empty)[0]
    assert (case.trouble, case.action) == (Trouble.STUCK, Action.RELEASE)
    assert case.why == "its queue job 17 is gone: cancelled, or never began"
    assert states(launchpad)["generate 000.1"] == "READY"


@pytest.mark.usefixtures("store")
def test_a_reserved_job_that_began_meanwhile_is_left(tiny_config, launchpad):
    number, launch_id = reserved(tiny_config, launchpad)
    launchpad.set_reservation_id(launch_id, "17")
    jobs = read_jobs(launchpad, "tiny")
    [case] = diagnose(launchpad, jobs, 900, Queue(datetime.now(UTC) + timedelta(minutes=1), frozenset()))
    launchpad.checkout_fw(FWorker(), ".", fw_id=number)
    treat(launchpad, jobs, [case])
    assert states(launchpad)["generate 000.1"] == "RUNNING"


@pytest.mark.usefixtures("store")
def test_a_job_whose_taker_died_before_noting_its_launch_is_released(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad)
    number = launchpad.fireworks.find_one({"name": "generate 000.1"})["fw_id"]
    launchpad._get_a_fw_to_run(fw_id=number)  # the first thing that a launcher does to the database
    assert states(launchpad)["generate 000.1"] == "RESERVED"
    assert recover(launchpad, "tiny", 900)[0] == []  # it may be about to begin
    [case] = recover(launchpad, "tiny", AT_ONCE)[0]
    assert (case.name, case.trouble, case.action) == ("generate 000.1", Trouble.LOST, Action.RELEASE)
    assert states(launchpad)["generate 000.1"] == "READY"
    assert launchpad.checkout_fw(FWorker(), ".", fw_id=number)[1] is not None


@pytest.mark.usefixtures("store")
def test_a_queue_job_that_died_while_it_took_its_job_releases_it(tiny_config, launchpad):
    number, launch_id = reserved(tiny_config, launchpad)
    launchpad.set_reservation_id(launch_id, "17")
    launchpad.launches.update_one({"launch_id": launch_id}, {"$set": {"state": "RUNNING"}})  # the job itself not yet
    [case] = recover(launchpad, "tiny", 900, queue=Queue(datetime.now(UTC) + timedelta(minutes=1), frozenset()))[0]
    assert (case.fw_id, case.action) == (number, Action.RELEASE)
    assert states(launchpad)["generate 000.1"] == "READY"
    assert launchpad.launches.count_documents({"launch_id": launch_id}) == 1


class Killed(BaseException):
    """As by kill -9: no handler of FireWorks sees it."""


@pytest.mark.parametrize("stored", ["new", "all"])
@pytest.mark.parametrize("victim", ["label 000", "advance 000"])
def test_jobs_that_were_brought_forth_and_not_entered(
    victim, stored, tiny_config, launchpad, store, monkeypatch, finished
):
    submit_search(tiny_config(advance__max_generations=2), launchpad)
    store_fireworks = LaunchPad._upsert_fws

    def killed(self: LaunchPad, fws: list[Firework], reassign_all: bool = False) -> dict[int, int]:  # noqa: FBT001, FBT002
        new = [fw for fw in fws if fw.fw_id < 0]
        if not new or all((fw.name, fw.state) != (victim, "COMPLETED") for fw in fws):
            return store_fireworks(self, fws, reassign_all)
        store_fireworks(self, new if stored == "new" else fws, reassign_all)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LaunchPad, "_upsert_fws", killed)
        with pytest.raises(Killed):
            launch(launchpad)
    assert orphans(launchpad, "tiny", 900) == []  # somebody may be about to enter them
    jobs = read_jobs(launchpad, "tiny")
    before = diagnose(launchpad, jobs, AT_ONCE)
    found = {(case.trouble, case.action) for case in recover(launchpad, "tiny", AT_ONCE)[0]}
    treat(launchpad, jobs, before)  # somebody else saw the same, and comes second
    assert found >= {(Trouble.ORPHANED, Action.REMOVE), (Trouble.UNRECORDED, Action.REFRESH)}
    assert find_orphans(launchpad, "tiny") == []
    launch(launchpad)
    assert set(states(launchpad).values()) == {"COMPLETED"}
    assert len(states(launchpad)) == launchpad.fireworks.count_documents({"name": {"$ne": "store_inputs"}})  # each once
    labels, undisturbed = (read_labels(s, "tiny", kind="single_point", until=1) for s in (store, open_store(finished)))
    assert [x.label_id for x in labels] == [x.label_id for x in undisturbed]


@pytest.mark.usefixtures("store")
def test_other_searches_are_left_alone(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad)
    submit_search(tiny_config(project="other"), launchpad)
    nodes = launchpad.workflows.find_one({"metadata.project": "other"})["nodes"]
    ready = launchpad.fireworks.find_one({"fw_id": {"$in": nodes}, "state": "READY"})
    launchpad.checkout_fw(FWorker(), ".", fw_id=ready["fw_id"])
    assert recover(launchpad, "tiny", AT_ONCE)[0] == []
    assert len(recover(launchpad, "other", AT_ONCE)[0]) == 1
    with pytest.raises(ConfigError, match="holds no search 'third'; it knows other, tiny"):
        recover(launchpad, "third", AT_ONCE)


@pytest.mark.usefixtures("store")
def test_resume_on_the_command_line(tiny_config, launchpad, monkeypatch, capsys):
    monkeypatch.setattr("workflows.launch.open_launchpad", lambda: launchpad)
    submit_search(tiny_config(), launchpad)
    lose(launchpad, "generate 000.1")

    def say(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hullseeker", "resume", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr()
        return said.out + said.err

    assert "no job is lost, failed or forgotten" in say("--project", "tiny")
    told = say("--project", "tiny", "--dry-run", "--expiration", "-1")
    assert "generate 000.1" in told
    assert "nothing was changed: leave out --dry-run" in told
    assert states(launchpad)["generate 000.1"] == "RUNNING"
    assert "now start workers" in say("--project", "tiny", "--expiration", "-1")
    assert states(launchpad)["generate 000.1"] == "READY"
    assert "expected with --project" in say("--dry-run")


def test_ages_are_readable():
    ages = [Case(1, "x", Trouble.LOST, age, "", Action.LEAVE) for age in (5, 600, 8000, 200_000)]
    text = recovery_table(ages, dry_run=True)
    assert all(word in text for word in ("5 s", "10 min", "2 h", "2 d", "would be done"))
