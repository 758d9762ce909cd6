"""A chapter's kernel as a fork of the process that executes the chapter, which has its packages."""

import asyncio
import importlib
import os
import signal
import sys
import traceback
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from latebook.preloaded import detach

NAME = "latebook-forked"


def register() -> None:
    """Have Jupyter know the kernels whose specification names NAME."""
    group = KernelProvisionerFactory.GROUP_NAME
    entry = EntryPoint(NAME, f"{__name__}:Provisioner", group)
    KernelProvisionerFactory.instance().provisioners[NAME] = entry


class Process:
    """A fork that runs a kernel, with the methods of a process that Jupyter asks for."""

    stdin = stdout = stderr = None

    def __init__(self, words: list[str], directory: str, environment: dict[str, str]):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, directory, environment)

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self) -> int:
        return self._waited(0)

    def _waited(self, options: int) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, options))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Provisioner(LocalProvisioner):
    """Forks where others start a Python."""

    async def launch_kernel(self, cmd: list[str], **settings) -> dict:
        self.cwd = settings.get("cwd") or os.getcwd()
        # The kernel ends when this process is no longer its parent.
        ends = f"--IPKernelApp.parent_handle={os.getpid()}"
        self.process = Process([*cmd, ends], self.cwd, settings["env"])
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def _become(words: list[str], directory: str, environment: dict[str, str]) -> None:
    """Be the kernel that the words would start: PYTHON -m latebook.kernel ..."""
    try:
        os.setsid()
        detach(directory, environment)
        sys.argv[:] = words[2:]
        sys.path.insert(0, directory)
        asyncio._set_running_loop(None)
        asyncio.set_event_loop(None)
        importlib.import_module("latebook.kernel").main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
