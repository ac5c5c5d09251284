"""Everything the passage store raises on purpose.

StoreError(BundleError)       cause and remedy; `exit_code` is what the command line ends with
├── StoreNotFound             no folder, or no whole store in it
├── StoreExists               something is where a store is to be made
├── StoreTooNew               written by a later format than this runtime reads
├── StoreDamaged              a file is cut short, or a checksum differs
├── StoreMismatch             made by another build, of another width, or with other options
├── StoreInUse                another writer has the store open
├── StoreFull                 no space left; what was committed is whole
├── StoreInaccessible         the file system refused something else
├── StoreEmpty                no passage in it
├── HeaderInvalid             a store cannot be described like this
├── PassageInvalid            a passage cannot be stored like this
├── DuplicateId               an id is in the store already, or twice among what is merged
└── PassageUnknown            no passage of this id or row, or it was deleted
"""

from __future__ import annotations

from edgec_runtime.errors import BundleError


class StoreError(BundleError):
    pass


class StoreNotFound(StoreError):
    exit_code = 2


class StoreExists(StoreError):
    exit_code = 2


class StoreTooNew(StoreError):
    pass


class StoreDamaged(StoreError):
    pass


class StoreMismatch(StoreError):
    pass


class StoreInUse(StoreError):
    exit_code = 3


class StoreFull(StoreError):
    exit_code = 3


class StoreInaccessible(StoreError):
    exit_code = 3


class StoreEmpty(StoreError):
    exit_code = 2


class HeaderInvalid(StoreError):
    exit_code = 2


class PassageInvalid(StoreError):
    exit_code = 2


class DuplicateId(StoreError):
    exit_code = 2


class PassageUnknown(StoreError):
    exit_code = 2
