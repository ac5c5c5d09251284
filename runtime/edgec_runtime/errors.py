"""Everything the runtime raises on purpose.

BundleError(Exception)        cause and remedy; `exit_code` is what the command line ends with
├── BundleNotFound            no folder, or no manifest.json in it
├── FolderInTheWay            an archive is to be unpacked where something is
├── ManifestInvalid           manifest.json is not what the format says
├── FormatTooNew              written by a later format than this runtime reads
├── FileDamaged               a file's size or sha256 is not the manifest's
├── PartMissing               a file or a part that the manifest names is absent
├── UnsafePath                a path in the manifest or in a graph leaves the bundle's folder
├── OperatorRefused           a graph asks for an operator that stock onnxruntime does not bring
├── EngineFailed              onnxruntime could not load or run a part
├── ExtraMissing              an optional package is needed (names the pip install)
├── TaskMismatch              the bundle was made for another task
├── TextInvalid               the text cannot be encoded (a lone surrogate), or the input has the wrong shape
└── CheckFailed               the golden vectors were not reproduced
"""

from __future__ import annotations


class BundleError(Exception):
    """A cause (`message`) and a remedy (`hint`), both for the person who runs the program."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BundleNotFound(BundleError):
    exit_code = 2


class FolderInTheWay(BundleError):
    exit_code = 2


class ManifestInvalid(BundleError):
    pass


class FormatTooNew(BundleError):
    pass


class FileDamaged(BundleError):
    pass


class PartMissing(BundleError):
    pass


class UnsafePath(BundleError):
    pass


class OperatorRefused(BundleError):
    pass


class EngineFailed(BundleError):
    pass


class ExtraMissing(BundleError):
    exit_code = 3


class TaskMismatch(BundleError):
    exit_code = 2


class TextInvalid(BundleError):
    exit_code = 2


class CheckFailed(BundleError):
    pass
