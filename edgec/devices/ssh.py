"""A device behind ssh: the user's own ssh client and configuration, python3 on the device, nothing else.

All that is left on the device is one folder, ~/.cache/edgec or what EDGEC_DEVICE_CACHE names:

    content/DIGEST/NAME    a bundle or the runtime's source, by the sha256 of its content
    venv/KEY               numpy, onnxruntime and tokenizers, where the device's python3 has not got them
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from edgec.errors import DeviceError, UserError

from .content import Content
from .device import Completed, last_words, read_facts, run_process
from .remote import environment, receive, watched

_CONNECT_SECONDS = 10
# ssh's own exit code where it could not connect or lost the connection.
_SSH_FAILED = 255
_URL = re.compile(
    r"ssh://(?:(?P<user>[^-@/:\s][^@/:\s]*)@)?"
    r"(?P<host>[^-@/:\s\[\]][^@/:\s\[\]]*|\[[\w:.%]+\])"
    r"(?::(?P<port>\d{1,5}))?/?"
)


class SshDevice:
    """`ssh://user@host[:port]`; user, port and a host alias may come from the user's ssh configuration.

    EDGEC_SSH_OPTIONS: further options for ssh, as on its command line ("-F FILE -i KEY"). EDGEC_DEVICE_CACHE:
    the cache folder on the device. EDGEC_DEVICE_PYTHON: the Python on the device, else `python3`.
    """

    emulated = False

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if not match:
            raise UserError(f"not an ssh device: {url!r}", "write it as ssh://user@host or ssh://user@host:port")
        self.name = url
        self._host = match["host"].strip("[]")
        self._login = [
            *(["-l", match["user"]] if match["user"] else []),
            *(["-p", match["port"]] if match["port"] else []),
        ]
        self._options = shlex.split(os.environ.get("EDGEC_SSH_OPTIONS", ""))
        self._python = os.environ.get("EDGEC_DEVICE_PYTHON", "python3")
        self._control: tempfile.TemporaryDirectory[str] | None = None
        self._root = ""
        self._runtime: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        # Not the user's TMPDIR: the path of a socket may have about a hundred characters.
        self._control = tempfile.TemporaryDirectory(prefix="edgec-ssh-", dir="/tmp")
        try:
            self._connect()
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._disconnect()

    def place(self, folder: Path) -> str:
        """Copy the bundle into the device's cache, unless that holds the same content already."""
        return self._place(Content.of_bundle(folder))

    def runtime(
        self,
        args: Sequence[str],
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        if self._runtime is None:
            self._runtime = self._prepare()
        python, source = self._runtime
        command = ["env", f"PYTHONPATH={source}", python, "-P", "-m", "edgec_runtime", *args]
        return self._shell(watched(command), timeout=timeout, on_line=on_line)

    def facts(self) -> dict[str, Any]:
        return read_facts(self.runtime(["facts", "--json", "-"]), self.name)

    def _prepare(self) -> tuple[str, str]:
        """The Python on the device that has the runtime's dependencies, and the runtime's PYTHONPATH."""
        import edgec_runtime

        package = Path(edgec_runtime.__file__).parent
        source = self._place(Content.of_package(package))
        done = self._shell(environment(self._root, self._python))
        if done.code:
            raise DeviceError(
                f"{self.name}: no Python environment could be set up there: {last_words(done)}",
                "the device needs Python 3.11 or later with venv and a package index, or one that has numpy, "
                "onnxruntime and tokenizers (EDGEC_DEVICE_PYTHON names it)",
            )
        return done.stdout.strip(), source.rpartition("/")[0]

    def _place(self, content: Content) -> str:
        folder = f"{self._root}/content/{content.digest}"
        path = f"{folder}/{content.name}"
        if self._shell(f"test -d {shlex.quote(path)}").code == 0:
            return path
        done = self._shell(receive(self._root, folder), feed=content.write_tar)
        if done.code:
            raise DeviceError(
                f"{self.name}: copying {content.name} failed: {last_words(done)}",
                f"look for space and permissions in {self._root} on the device",
            )
        return path

    def _connect(self) -> None:
        """Open the one connection that all later calls share, and find the cache folder."""
        assert self._control
        # The master stays in the background and would hold a pipe of ours open: its words go to a file.
        with tempfile.TemporaryFile() as words:
            try:
                started = subprocess.run(
                    self._ssh("-M", "-N", "-f"), stdin=subprocess.DEVNULL, stdout=words, stderr=words
                )
            except FileNotFoundError:
                raise DeviceError("the program ssh is not installed", "install an OpenSSH client") from None
            words.seek(0)
            said = words.read().decode(errors="replace")
        if started.returncode:
            raise self._unreachable(Completed(started.returncode, "", said))
        cache = os.environ.get("EDGEC_DEVICE_CACHE", "~/.cache/edgec")
        place = "$HOME/" + shlex.quote(cache[2:]) if cache.startswith("~/") else shlex.quote(cache)
        done = self._shell(f"mkdir -p {place} && cd {place} && pwd -P")
        if done.code:
            raise DeviceError(
                f"{self.name}: no cache folder {cache} there: {last_words(done)}",
                "EDGEC_DEVICE_CACHE names another folder on the device",
            )
        self._root = done.stdout.strip()

    def _disconnect(self) -> None:
        if self._control:
            if shutil.which("ssh"):
                subprocess.run(self._ssh("-O", "exit"), capture_output=True)
            self._control.cleanup()
            self._control = None

    def _shell(
        self,
        script: str,
        *,
        timeout: float | None = None,
        on_line: Callable[[str], None] | None = None,
        feed: Callable[[IO[bytes]], None] | None = None,
    ) -> Completed:
        # One quoted word for `sh -c`, so that the user's login shell may be any.
        command = [*self._ssh("-T"), f"sh -c {shlex.quote(script)}"]
        try:
            done = run_process(command, timeout=timeout, on_line=on_line, feed=feed)
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.name}: no end after {timeout:g} s") from None
        if done.code == _SSH_FAILED:
            raise self._unreachable(done)
        return done

    def _ssh(self, *options: str) -> list[str]:
        assert self._control
        return [
            "ssh",
            *self._options,
            *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"),
            *("-o", "ServerAliveInterval=15", "-o", "RemoteCommand=none", "-o", "RequestTTY=no"),
            *("-o", f"ControlPath={self._control.name}/%C", "-o", "ControlPersist=600"),
            *self._login,
            *options,
            self._host,
        ]

    def _unreachable(self, done: Completed) -> DeviceError:
        return DeviceError(
            f"{self.name} cannot be reached: {last_words(done)}",
            f"see that `ssh {self._host}` logs in without a question (a key or an agent, a known host)",
        )
