"""Everything edgec raises on purpose. `cli.main` turns each into an exit code, in one place.

EdgecError(message, hint)     exit code
├── UserError              2  the input is wrong
│   ├── RecipeError        2  a recipe or target file
│   ├── ModelError         2  a model source
│   ├── DataError          2  a data file
│   └── OutputExists       2  the output folder is in the way
├── GateFailed             1  a check or a budget failed
│   ├── ParityError        1  two forms of one model disagree
│   ├── PassError          1  a pass broke its own promise
│   └── BudgetMissed       1
└── SystemFailure          3  a device or a file system failed
    ├── DeviceError        3
    └── ProcessLost        3  another of the processes that train together has ended
"""

from __future__ import annotations


class EdgecError(Exception):
    """A cause (`message`, with file, key and line where there are any) and a remedy (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(EdgecError):
    exit_code = 2


class RecipeError(UserError):
    pass


class ModelError(UserError):
    pass


class DataError(UserError):
    pass


class OutputExists(UserError):
    pass


class GateFailed(EdgecError):
    exit_code = 1


class ParityError(GateFailed):
    pass


class PassError(GateFailed):
    pass


class BudgetMissed(GateFailed):
    pass


class SystemFailure(EdgecError):
    exit_code = 3


class DeviceError(SystemFailure):
    pass


class ProcessLost(SystemFailure):
    pass
