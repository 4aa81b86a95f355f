"""Packages that only pass on names get each name when somebody asks for it, not all of them when they are imported.

OpenAI's SDK imports its 470 modules of types at once, one agent that talks uses 130: the others took 0.2 s of CPU at
every start and 8 MB in every process. What is imported later is the same module from the same file.
"""

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_PACKAGE = "openai.types"


def import_types_late() -> None:
    """From here on import OpenAI's types as they are used. What is imported already stays as it is."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Python's own way to a module, with another loader for the packages of `_PACKAGE`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PACKAGE and not name.startswith(f"{_PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.submodule_search_locations is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _LateLoader(spec.loader.name, spec.loader.path)
        return spec


class _LateLoader(SourceFileLoader):
    """Runs a package as any other, unless all that it does is to pass on names."""

    def exec_module(self, module: ModuleType) -> None:
        source = self.get_source(module.__name__)
        homes = None if source is None else passed_on(source)
        if homes is None:
            super().exec_module(module)
            return
        package = module.__name__

        def get(name: str) -> object:
            if name in homes:
                home, its_name = homes[name]
                value: object = getattr(import_module(f"{package}.{home}"), its_name)
            elif name.startswith("__"):
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            else:
                # Importing the names would have left their modules here too.
                value = _submodule(package, name)
            setattr(module, name, value)
            return value

        vars(module).update(__getattr__=get, __dir__=lambda: sorted({*vars(module), *homes}), __all__=sorted(homes))


def _submodule(package: str, name: str) -> ModuleType:
    try:
        return import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}") from None


def passed_on(source: str) -> dict[str, tuple[str, str]] | None:
    """From each name to the submodule that has it and its name there; `None` for a source that does anything else."""
    homes: dict[str, tuple[str, str]] = {}
    for step in ast.parse(source).body:
        match step:
            case ast.ImportFrom(module="__future__"):
                pass
            case ast.ImportFrom(module=str(home), level=1):
                homes |= {one.asname or one.name: (home, one.name) for one in step.names}
            case _:
                return None
    return None if "*" in homes else homes
