"""What does this version promise its users? One line for each name, command, option, tensor and preset.

`python tests/release/public_api.py` writes the list anew (`make api`).
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("public_api.txt")
SUBMODULES = ("metrics", "presets", "testing")
"""Those whose names users may import; everything in other modules may move."""


def public_api() -> str:
    """The whole list as text. Annotations are left out: they may become more exact at any time."""
    import mcr_lens

    lines = ["# Written by `make api`. A line that goes or changes breaks somebody's program.", ""]
    lines += ["[mcr_lens]", *_names(mcr_lens, sorted(mcr_lens.__all__))]
    for name in SUBMODULES:
        module = importlib.import_module(f"mcr_lens.{name}")
        lines += ["", f"[mcr_lens.{name}]", *_names(module, _exported(name))]
    lines += ["", "[hooks]", *_hooks(), "", "[variables]", *_variables()]
    lines += ["", "[presets]", *sorted(_presets()), "", "[commands]", *_commands()]
    return "\n".join(lines) + "\n"


def _exported(name: str) -> list[str]:
    """What a submodule offers; of `metrics`, what is measured, what that is computed from, and `metric`."""
    module = importlib.import_module(f"mcr_lens.{name}")
    if name == "presets":
        return ["Preset", "preset"]
    if name == "metrics":
        from mcr_lens.metrics._registry import _DERIVED, list_metrics

        read = {m.name for m in list_metrics()} | set(_DERIVED)
        registry = {n for n, t in vars(module).items() if getattr(t, "__module__", "").endswith("._registry")}
        return sorted(n for n in vars(module) if n in read | registry)
    files = (f"mcr_lens.{name}.",)
    return sorted(
        n
        for n, t in vars(module).items()
        if n.isupper() or str(getattr(t, "__module__", "")).startswith(files)
    )


def _names(module: Any, names: list[str]) -> Iterator[str]:
    for name in names:
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            yield f"{name} (module)"
        elif isinstance(thing, type):
            yield from _class(name, thing)
        elif callable(thing):
            yield f"{name}{_signature(thing)}"
        else:
            yield f"{name} ({type(thing).__name__})"


def _class(name: str, thing: type) -> Iterator[str]:
    """A class with its methods; of an error or a warning, what it can be caught as."""
    if issubclass(thing, BaseException):
        yield f"{name} ({', '.join(base.__name__ for base in thing.__bases__)})"
        return
    yield f"{name}{_signature(thing)}"
    given = inspect.signature(thing).parameters  # the fields of a dataclass
    for key in sorted(k for k in vars(thing) if not k.startswith("_") and k not in given):
        if not callable(getattr(thing, key)):
            yield f"{name}.{key}"
        else:
            yield f"{name}.{key}{_signature(getattr(thing, key))}"


def _signature(thing: Any) -> str:
    """Parameters with their kinds and defaults."""
    given = inspect.signature(thing)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in given.parameters.values()]
    plain = [p.replace(default=_Class(p.default)) if _is_class(p) else p for p in plain]
    return str(given.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _is_class(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.default, type) and parameter.default is not inspect.Parameter.empty


class _Class:
    """A class as a default, by its name: where it lives is not promised."""

    def __init__(self, default: type) -> None:
        self.default = default

    def __repr__(self) -> str:
        return self.default.__name__


def _hooks() -> list[str]:
    from mcr_lens.hookpoints import READS

    return [f"{name}: {read.template} [{read.dims}] per {read.axis}" for name, read in sorted(READS.items())]


def _variables() -> list[str]:
    """What stands in a result: the metrics that come with the library."""
    from mcr_lens import list_metrics
    from mcr_lens.schema import KINDS, SCHEMA

    ours = [m for m in list_metrics() if m.function.__module__.startswith("mcr_lens.")]
    found = sorted(f"{m.name} [{', '.join(m.axes)}] {m.units}{' (default)' * m.default}" for m in ours)
    return [f"schema {SCHEMA}", *(f"kind {kind}" for kind in sorted(KINDS)), *found]


def _presets() -> list[str]:
    from mcr_lens.presets import PRESETS

    return [f"{name}: {', '.join(preset.variables)}" for name, preset in PRESETS.items()]


def _commands() -> Iterator[str]:
    from typer.main import get_command

    from mcr_lens.cli import app

    for name, command in sorted(get_command(app).commands.items()):
        arguments = [p.name for p in command.params if p.param_type_name == "argument"]
        yield " ".join([name, *arguments])
        options = [p for p in command.params if p.param_type_name == "option"]
        for option in sorted(options, key=lambda option: option.opts):
            yield f"{name} {' / '.join([*option.opts, *option.secondary_opts])}"


if __name__ == "__main__":
    FILE.write_text(public_api(), "utf-8")
