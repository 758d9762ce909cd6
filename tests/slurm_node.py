"""A SLURM cluster of one node on the loopback address, without systemd and without accounting.

    python tests/slurm_node.py up FOLDER      prints the variables that lead SLURM's commands to it
    python tests/slurm_node.py down FOLDER

Everything lives in FOLDER: configuration, sockets, logs, the numbers of the processes. It needs
Debian's packages slurm-wlm and munge and runs as whoever starts it. What the node claims to have
is written there and not looked for: two cores, 64 GB, and a GPU that is a name and no device, so
that jobs that ask for one can be told from others.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol")
# In the order in which they start: each needs those before it.
DAEMONS = ("munged", "slurmctld", "slurmd")
SECONDS = 30

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class NotUp(Exception):
    """A daemon did not start; says which, and what its log ends with."""


def missing() -> list[str]:
    """The commands that are not installed."""
    return [name for name in COMMANDS if shutil.which(name, path=_path()) is None]


def up(folder: Path) -> dict[str, str]:
    """Start the cluster and return the environment in which SLURM's commands find it.

    Raises NotUp if the node takes no jobs after half a minute; what had started is then stopped.
    """
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _configure(folder)
        environment = _environment(folder)
        munge = {"key-file": "munge.key", "socket": "munge.socket", "seed-file": "munge.seed"}
        munge |= {"pid-file": "munged.pid", "log-file": "munged.log"}
        options = [f"--{option}={folder / name}" for option, name in munge.items()]
        _start(folder, "munged", "--force", "--num-threads=2", *options)
        _start(folder, "slurmctld")
        _start(folder, "slurmd", "-N", _host())
        _wait(folder, "slurmd", lambda: _state(environment) == "idle")
    except BaseException:
        down(folder)
        raise
    return environment


def down(folder: Path) -> None:
    """Stop the jobs and the daemons that `up` started, the last one first."""
    folder = folder.resolve()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        user = getpass.getuser()
        _asked(_environment(folder), "scancel", "--user", user, "--signal=KILL")
    for name in reversed(DAEMONS):
        with contextlib.suppress(FileNotFoundError, ValueError):
            _stop(int((folder / f"{name}.pid").read_text()))


def _configure(folder: Path) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = CONFIG.format(folder=folder, host=_host(), user=getpass.getuser(), ports=_free_ports())
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text(f"NodeName={_host()} Name=gpu Count=1 File=/dev/null\n")
    # Snakemake's job step takes SLURM's variables from srun, also the one that names its cluster.
    srun = folder / "bin" / "srun"
    real = shutil.which("srun", path=_path())
    srun.write_text(f'#!/bin/sh\nSLURM_CONF="{folder}/slurm.conf" exec {real} "$@"\n')
    srun.chmod(0o755)


def _environment(folder: Path) -> dict[str, str]:
    path = f"{folder}/bin:{_path()}"
    return {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        return [server.getsockname()[1] for server in taken]


def _start(folder: Path, name: str, *words: str) -> None:
    """Start a daemon, which goes to the background by itself and writes its number down."""
    command = [shutil.which(name, path=_path()), *words]
    done = _asked(_environment(folder), *command)
    if done.returncode != 0:
        raise NotUp(f"{name} did not start: {done.stdout}{done.stderr}")


def _stop(process: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + SECONDS / 3
        try:
            os.kill(process, number)
            while time.monotonic() < deadline:
                os.kill(process, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def _wait(folder: Path, name: str, is_up) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_up():
        if time.monotonic() > deadline:
            tail = (folder / f"{name}.log").read_text()[-1500:]
            raise NotUp(f"{name} did not come up in {SECONDS} s: {tail}")
        time.sleep(0.1)


def _state(environment: dict[str, str]) -> str:
    done = _asked(environment, "sinfo", "--noheader", "--format=%T")
    return done.stdout.strip()


def _asked(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=SECONDS
    )


def main(words: list[str]) -> int:
    """Bring the cluster up or down; 0, 1 if it does not start, 2 for anything else."""
    if len(words) != 2 or words[0] not in ("up", "down"):
        print(__doc__, file=sys.stderr)
        return 2
    if absent := missing():
        print(f"slurm_node: not installed: {', '.join(absent)}", file=sys.stderr)
        return 2
    if words[0] == "down":
        down(Path(words[1]))
        return 0
    try:
        for name, value in up(Path(words[1])).items():
            print(f"export {name}='{value}'")
    except NotUp as error:
        print(f"slurm_node: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
