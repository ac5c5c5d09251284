"""Frozen dataclasses that are cheap to define.

`@dataclass(frozen=True)` writes and compiles six methods for every class, a third of a millisecond each time a process
starts. A cold start defines some twenty such classes before its first answer; here they share their methods.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, dataclass
from typing import Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Base of a frozen dataclass: declare fields as in one. dataclasses.fields, replace and asdict work on it."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields = self.__dataclass_fields__
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} arguments, not {len(args)}")
        values = dict(zip(fields, args, strict=False))
        for name, value in kwargs.items():
            if name not in fields or name in values:
                raise TypeError(f"{type(self).__name__} got an unexpected or second {name!r}")
            values[name] = value
        for name, field in fields.items():
            if name not in values:
                if field.default is not MISSING:
                    values[name] = field.default
                elif field.default_factory is not MISSING:
                    values[name] = field.default_factory()
                else:
                    raise TypeError(f"{type(self).__name__} misses {name!r}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._names())})"

    def _names(self) -> tuple[str, ...]:
        return tuple(self.__dataclass_fields__)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._names())
