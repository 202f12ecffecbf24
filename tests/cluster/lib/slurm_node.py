"""A Slurm of one node on this machine's loopback: munged, slurmctld and slurmd, started without systemd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
PATIENCE = 30.0  # s for daemons to start
ENDING = 5.0  # s for daemons to end
SLOTS = 4  # cores that Slurm believes in: as many launchers at once, whatever the machine has
HOSTS = Path("/etc/hosts")
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")
MUNGE_FOLDERS = {"/run/munge": 0o755, "/var/log/munge": 0o700, "/var/lib/munge": 0o700}

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPort={ctld}
SlurmdPort={slurmd}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
ReturnToService=2
SlurmdTimeout=300
KillWait=2
JobRequeue=0
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={slots} RealMemory=1000 State=UNKNOWN
PartitionName=DEFAULT Nodes={host} MaxTime=INFINITE OverSubscribe=NO State=UP
PartitionName=debug Default=YES
PartitionName=light
PartitionName=ml
PartitionName=dft
"""


def missing() -> str | None:
    """Say why there can be no Slurm here; None if there can."""
    if os.geteuid() != 0:
        return "the daemons of Slurm want to be started by root"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (apt-get install slurm-wlm munge)"
    return None


_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class SlurmNode:
    """The daemons; ``start`` and ``stop``, and what a test asks of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.configuration = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.configuration)}
        self.own_munge = False

    def start(self) -> None:
        """Start what does not run, and wait until jobs can be submitted."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.configuration.write_text(
            CONFIGURATION.format(
                host=self.host, ctld=free_port(), slurmd=free_port(), folder=self.folder, slots=SLOTS
            ).lstrip()
        )
        _know_host(self.host)
        self._start_munge()
        self.run("slurmctld", "-f", str(self.configuration))
        self.run("slurmd", "-f", str(self.configuration), "-N", self.host)
        limit = time.monotonic() + PATIENCE
        while self.node_state() != "idle":
            if time.monotonic() > limit:
                raise TimeoutError(f"the node is {self.node_state()}: {self._tail()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End all jobs and daemons that were started here."""
        with suppress(subprocess.CalledProcessError):
            self.cancel()
        for name in ("slurmd", "slurmctld"):
            self._signal(name, signal.SIGCONT)
            self._signal(name, signal.SIGTERM)
            self._wait_until_gone(name)
        if self.own_munge:
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(Path("/run/munge/munged.pid").read_text()), signal.SIGTERM)

    def cancel(self) -> None:
        """End all jobs, and wait until they are gone."""
        for job in self.jobs():
            self.run("scancel", job)
        limit = time.monotonic() + PATIENCE
        while self.jobs() and time.monotonic() < limit:
            time.sleep(0.2)

    def jobs(self, what: str = "%A", *where: str) -> list[str]:
        """Return the numbers of the jobs that wait or run, or what else squeue says of them."""
        return self.run("squeue", "-h", "-o", what, *where).split()

    def open(self, partition: str, *, to_all: bool = True) -> None:
        """Let a partition begin jobs, or only take them."""
        self.run("scontrol", "update", f"partition={partition}", f"state={'up' if to_all else 'down'}")

    def node_state(self) -> str:
        """Return what Slurm thinks of the node, in one word."""
        return self.run("sinfo", "-h", "-o", "%t").strip()

    def freeze(self) -> None:
        """Let the node stop answering, and Slurm notice it."""
        self._signal("slurmd", signal.SIGSTOP)
        self.run("scontrol", "update", f"nodename={self.host}", "state=down", "reason=frozen")

    def thaw(self) -> None:
        """Let the node answer again, and Slurm use it."""
        self._signal("slurmd", signal.SIGCONT)
        if self.node_state() not in ("idle", "mix", "alloc"):
            self.run("scontrol", "update", f"nodename={self.host}", "state=resume")

    def run(self, program: str, *arguments: str) -> str:
        """Run one of Slurm's programs and return what it says."""
        path = shutil.which(program, path=_PATH) or program
        done = subprocess.run(  # noqa: S603 - Slurm's own programs
            [path, *arguments],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout

    def _signal(self, name: str, number: signal.Signals) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.folder / f"{name}.pid").read_text()), number)

    def _wait_until_gone(self, name: str) -> None:
        limit = time.monotonic() + ENDING
        while (self.folder / f"{name}.pid").exists():  # they remove it at the very end
            if time.monotonic() > limit:
                self._signal(name, signal.SIGKILL)
                return
            time.sleep(0.1)

    def _start_munge(self) -> None:
        if MUNGE_SOCKET.is_socket() and _munge_answers():
            return
        for folder, mode in MUNGE_FOLDERS.items():
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder).chmod(mode)
            shutil.chown(folder, "munge", "munge")
        self.run("runuser", "-u", "munge", "--", "/usr/sbin/munged", "--force")
        self.own_munge = True

    def _tail(self) -> str:
        log = self.folder / "slurmctld.log"
        return log.read_text()[-1000:] if log.exists() else "slurmctld wrote no log"


def _know_host(host: str) -> None:
    """Give the node's name an address, which Slurm asks for even on loopback."""
    if not any(host in line.split("#")[0].split()[1:] for line in HOSTS.read_text().splitlines()):
        with HOSTS.open("a") as file:
            file.write(f"127.0.0.1 {host}\n")


def _munge_answers() -> bool:
    path = shutil.which("munge", path=_PATH)
    if path is None:
        return False
    done = subprocess.run([path, "-n"], capture_output=True, timeout=PATIENCE, check=False)  # noqa: S603
    return done.returncode == 0
