"""Code of the user's own, found by name: "module:name" from the working folder, or an entry point's name.

    grade = load_plugin("mymodule:grade", "grader")
    Call("mymodule:grade", "grader", grade, ("problem", "response"))({"problem": ..., "response": ...})

A plug-in's function is called by the names of its parameters: it takes what it needs of what there is.
docs/plugins.md shows one of each kind.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError, did_you_mean

Kind = Literal["reward", "grader", "benchmark", "reader", "prm_format", "scorer", "splitter"]

_NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.<>]*")
_GIVEN: dict[str, Any] = {}
"""Objects of this process that settings, which hold texts, name."""


def is_plugin(name: object) -> bool:
    """Return whether a setting's value has the form "module:name"."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def installed(kind: Kind) -> list[str]:
    """Return the names under which installed packages offer plug-ins (entry point group stepwell.KINDs)."""
    return sorted(entry.name for entry in entry_points(group=f"stepwell.{kind}s"))


def name_of(plugin: Any) -> str:
    """Return a name by which `load_plugin` finds the object again; of a lambda or an object in this process
    only. Others of the same name are numbered."""
    module = getattr(plugin, "__module__", None) or type(plugin).__module__
    stem = name = f"{module}:{getattr(plugin, '__qualname__', type(plugin).__qualname__)}"
    count = 1
    while name in _GIVEN and _GIVEN[name] != plugin:
        count += 1
        name = f"{stem}_{count}"
    _GIVEN[name] = plugin
    return name


def load_plugin(name: str, kind: Kind) -> Any:
    """Return what "module:name" or an entry point names; the working folder's modules come last.

    Raises UserError when there is none, or when importing it raises.
    """
    if name in _GIVEN:
        return _GIVEN[name]
    if not is_plugin(name):
        entries = [entry for entry in entry_points(group=f"stepwell.{kind}s") if entry.name == name]
        if not entries:
            raise UserError(
                f"{kind} '{name}' is unknown; name your own as module:name, where module.py is in the "
                f"working folder or installed (installed: {', '.join(installed(kind)) or 'none'})"
            )
        try:
            return entries[0].load()
        except Exception as error:
            raise UserError(f"{kind} '{name}' ({entries[0].value}): {described(error)}") from error
    module_name, _, path = name.partition(":")
    # Last: a file that is called like a library must not take that library's place.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{kind} '{name}': no module '{error.name}' in the working folder ({Path.cwd()}) or among "
                "the installed packages"
            ) from error
        raise UserError(f"{kind} '{name}': importing {module_name} raised {described(error)}") from error
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            known = [one for one in vars(module) if not one.startswith("_")]
            place = getattr(module, "__file__", None) or module_name
            raise UserError(f"{kind} '{name}': {place} has no '{path}'" + did_you_mean(path, known))
        found = getattr(found, part)
    return found


def described(error: BaseException) -> str:
    """Return an error's type, first line and place, for a message without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = str(error).strip().splitlines()
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}{place}"


def made(name: str, kind: Kind, plugin: Any) -> Any:
    """Return a plug-in, of a class an object made without arguments. Raises UserError when that raises."""
    try:
        return plugin() if isinstance(plugin, type) else plugin
    except Exception as error:
        raise UserError(f"{kind} '{name}': making one without arguments raised {described(error)}") from error


class Call:
    """A plug-in's function, called by the names of its parameters.

    offered: all names that it may take; a plug-in that asks for another one, without a default, is refused
    when it is loaded, unless `open_ended`: then what is offered depends on the data and is known at the call.
    needs: of these it must take at least one.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        function: Any,
        offered: Collection[str],
        *,
        needs: Sequence[str] = (),
        open_ended: bool = False,
    ) -> None:
        function = made(name, kind, function)
        if not callable(function):
            raise UserError(f"{kind} '{name}' is {type(function).__name__}, and no function or class")
        self.name, self.kind, self.function = name, kind, function
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise UserError(f"{kind} '{name}': its parameters are not known; wrap it in a def") from error
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind not in variable]
        self.takes = {p.name for p in named if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
        self.required = [p.name for p in named if p.default is inspect.Parameter.empty]
        if needs and not self.takes & set(needs):
            raise self._refusal(f"takes ({', '.join(p.name for p in named)})", needs)
        if not open_ended:
            self._check(offered)

    def _refusal(self, what: str, names: Collection[str]) -> UserError:
        return UserError(
            f"{self.kind} '{self.name}' {what}; name its parameters as what they are: {', '.join(names)}"
        )

    def _check(self, offered: Collection[str]) -> None:
        unknown = [name for name in self.required if name not in offered or name not in self.takes]
        if unknown:
            raise self._refusal(f"asks for '{unknown[0]}', which there is not", offered)

    def __call__(self, values: Mapping[str, Any], about: str) -> Any:
        """Return what it returns. Raises UserError, naming `about` (the problem), for whatever it raises."""
        self._check(values)
        chosen = values if self.takes_all else {k: v for k, v in values.items() if k in self.takes}
        return self.run(about, **chosen)

    def run(self, about: str, *args: Any, **values: Any) -> Any:
        """Return what it returns for arguments as they are; raises as a call by names does."""
        try:
            return self.function(*args, **values)
        except Exception as error:
            raise UserError(f"{self.kind} '{self.name}' raised {described(error)} on {about}") from error
