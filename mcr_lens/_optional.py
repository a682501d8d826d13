"""Which package is missing, and how is it installed?"""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import a module of an optional package, or say how to install it.

    >>> require("json", extra="plots").dumps([])
    '[]'

    Raises:
        ImportError: the package is not installed; one that is installed and broken raises its own error.
    """
    package = module.split(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ImportError(
            f'this needs {package}, which is not installed: pip install "mcr-lens[{extra}]"', name=package
        ) from None
