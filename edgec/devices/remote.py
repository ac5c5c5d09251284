"""What runs on a device behind ssh: scripts for its POSIX sh, every word of ours quoted."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Sequence

PACKAGES = ("numpy", "onnxruntime", "tokenizers")

# ORT_DISABLE_TELEMETRY: importing onnxruntime must leave no file outside the cache folder.
_ENVIRONMENT = """
set -e
export ORT_DISABLE_TELEMETRY=1
{python} -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python %d.%d is too old" % v[:2])'
if {python} -c 'import {imports}' 2>/dev/null; then
    {python} -c 'import sys; print(sys.executable)'
    exit 0
fi
venv={root}/venv/{key}
if ! test -e "$venv/.complete"; then
    rm -rf "$venv"
    {python} -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check {requirements} >&2
    touch "$venv/.complete"
fi
echo "$venv/bin/python"
"""

# The archive is unpacked beside its place and renamed: a copy that is cut short leaves no half of a bundle.
_RECEIVE = """
set -e
mkdir -p {root}/content
new=$(mktemp -d {root}/content/new.XXXXXX)
trap 'rm -rf "$new"' EXIT
chmod 755 "$new"
tar -x -o -f - -C "$new"
test -d {folder} || mv "$new" {folder}
"""

# sshd tells a command that its client has gone by nothing but the end of its stdin. So a second process waits
# for that, and ends the first. fd 3, because sh gives a background process /dev/null as stdin.
_WATCHED = """
exec 3<&0
{command} </dev/null 3<&- &
program=$!
(cat <&3; kill "$program") >/dev/null 2>&1 &
watcher=$!
wait "$program"
code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"""


def environment(root: str, python: str) -> str:
    """A script that prints the path of a Python with the runtime's dependencies, set up first if need be.

    The device's own Python is taken where it can import them all; else a venv gets this machine's versions.
    """
    requirements = [f"{package}=={importlib.metadata.version(package)}" for package in PACKAGES]
    key = "-".join(one.replace("==", "") for one in requirements)
    return _ENVIRONMENT.format(
        python=shlex.quote(python),
        imports=", ".join(PACKAGES),
        root=shlex.quote(root),
        key=shlex.quote(key),
        requirements=" ".join(requirements),
    )


def receive(root: str, folder: str) -> str:
    """A script that unpacks the tar archive on its stdin as `folder`, wholly or not at all."""
    return _RECEIVE.format(root=shlex.quote(root), folder=shlex.quote(folder))


def watched(command: Sequence[str]) -> str:
    """A script that runs a command, and ends it when the connection does."""
    return _WATCHED.format(command=shlex.join(command))
