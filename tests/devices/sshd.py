"""A throwaway ssh server on a loopback port, with keys, known hosts and configuration of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# An installation on the "device" must not reach a package index.
_OFFLINE = "PIP_NO_INDEX=1 PIP_CONFIG_FILE=/dev/null"


@dataclass(frozen=True)
class Server:
    """url: the device. options: for EDGEC_SSH_OPTIONS. home: the folder that sessions take for their home."""

    url: str
    options: str
    home: Path
    log: Path


def why_not() -> str | None:
    """Why no server can be started here, or None."""
    for tool in ("ssh", "ssh-keygen"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if not _sshd():
        return "sshd is not installed (Debian: openssh-server)"
    return None


@contextmanager
def serve(folder: Path, home: Path, path: str) -> Iterator[Server]:
    """Run sshd until the context ends; sessions get `home` as HOME and `path` as PATH."""
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd as root wants its empty folder
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    port = _free_port()
    host_key = (folder / "host.pub").read_text()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    server, client, log = folder / "sshd_config", folder / "ssh_config", folder / "log"
    server.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nUsePAM no\nSetEnv HOME={home} PATH={path} {_OFFLINE}\n"
    )
    client.write_text(
        f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\nUserKnownHostsFile {folder / 'known'}\n"
        "GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
    )
    daemon = subprocess.Popen([_sshd(), "-D", "-f", server, "-E", log])
    try:
        _wait_for(port, daemon, log)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        yield Server(f"ssh://{user}@127.0.0.1:{port}", f"-F {client}", home, log)
    finally:
        daemon.terminate()
        daemon.wait()


def _sshd() -> str | None:
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(port: int, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and daemon.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"sshd did not start: {log.read_text() if log.exists() else 'no log'}")
