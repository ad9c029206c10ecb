"""A module that can be called like the function of its own name.

`pipeline.build` is a module (`python -m pipeline.build`, `build.main`) and the public function (`from pipeline import
build`). Both cannot be attributes of the package: as soon as anybody imports the submodule, Python sets the attribute
to the module, whatever stood there before. So the module takes the call itself, and there is one object in any order.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import Any


class CallableModule(types.ModuleType):
    """A module whose call is that of its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """What `help` and editors show."""
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name: the picklers of Beam know plain modules only."""
        return importlib.import_module, (self.__name__,)


def make_callable(name: str) -> None:
    """Makes the module `name`, which is being imported, callable; a module that runs as a script stays as it is."""
    if name != "__main__":
        sys.modules[name].__class__ = CallableModule
