"""Makes a module callable like its function of the same name.

`pipeline.build` is a module (`python -m pipeline.build`, `build.main`) and a public function (`from pipeline import
build`). The package has only one attribute `build`: each import of the submodule sets it to the module. So the module
itself is callable. Then both imports give the same object, in any order.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from typing import Any


class CallableModule(types.ModuleType):
    """A module that calls its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that `help` and editors show."""
        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the module by name: Beam's picklers support ordinary modules only."""
        return importlib.import_module, (self.__name__,)


def make_callable(name: str) -> None:
    """Makes the module `name` callable while it is being imported. A module that runs as a script is not changed."""
    if name != "__main__":
        sys.modules[name].__class__ = CallableModule
