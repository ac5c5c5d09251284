"""Runs and measures bundles on devices: this machine, one behind ssh, an emulated one."""

from __future__ import annotations

from edgec.errors import UserError

from .device import Completed, Device

__all__ = ["Completed", "Device", "open_device"]

_KNOWN = "local, ssh://user@host[:port], qemu://CPU"


def open_device(url: str) -> Device:
    """The device that `url` names, not yet connected: `with open_device(url) as device: ...`.

    Raises UserError for a URL that names no kind of device, DeviceError where it cannot be set up.
    """
    if url == "local":
        from .local import LocalDevice

        return LocalDevice()
    if url.startswith("ssh://"):
        from .ssh import SshDevice

        return SshDevice(url)
    if url.startswith("qemu://"):
        from .emulated import EmulatedDevice

        return EmulatedDevice(url)
    raise UserError(f"no such kind of device: {url!r}", f"a device is one of {_KNOWN}")
