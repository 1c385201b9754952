"""Installed packages that bring methods, branches, networks or data sources, by their entry points.

The groups are `offramp.methods`, `offramp.branches`, `offramp.models` and `offramp.data`; an entry names a module with
`build`, as `NAME = "package.module"` or `NAME = "package.module:function"`. A module of networks lists the names of
its networks in `NETS`. Nothing is imported to list them.
"""

import ast
import importlib
import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import NamedTuple

from offramp.lookup import ParameterError
from offramp.python_names import Builder, builder, parsed, reason, source

GROUPS = {
    "offramp.methods": "method",
    "offramp.branches": "branch",
    "offramp.models": "net",
    "offramp.data": "data source",
}
"""What the entries of each group are called in sentences."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_loaded: dict[str, str] = {}
"""Packages of which this process has loaded code, with their versions."""


class Plugin(NamedTuple):
    """One entry point.

    Attributes:
        group: one of `GROUPS`.
        names: what users type: the entry's name; of networks, the module's `NETS`.
        module, function: where its `build` is.
        package, version: of the installed distribution.
        text: the docstring of the module.
    """

    group: str
    names: tuple[str, ...]
    module: str
    function: str
    package: str
    version: str
    text: str

    @property
    def origin(self) -> str:
        """Package and version."""
        return f"{self.package} {self.version}"


class Scan(NamedTuple):
    """The plugins of a group, and a sentence for each one that cannot be used."""

    plugins: tuple[Plugin, ...]
    problems: tuple[str, ...]


def usable(group: str, ours: Collection[str]) -> dict[str, Plugin]:
    """{name: plugin} of a group, sorted, without names that belong to this package or to two others.

    Args:
        ours: the names of this package.
    """
    owners = _owners(group)
    return {name: each[0] for name, each in sorted(owners.items()) if len(each) == 1 and name not in ours}


def problems(group: str, ours: Collection[str]) -> tuple[str, ...]:
    """A sentence for each entry of a group that cannot be used, naming its package; arguments as in `usable`."""
    kind = GROUPS[group]
    clashes = [
        f"{kind} {name!r} of the package {plugin.origin} cannot be used: a {kind} of offramp has this name"
        for name, each in sorted(_owners(group).items())
        for plugin in each
        if name in ours
    ]
    doubles = [_double(kind, name, each) for name, each in sorted(_owners(group).items()) if len(each) > 1]
    return (*scan(group).problems, *clashes, *doubles)


def load(group: str, name: str) -> Builder | None:
    """Import the plugin of this name; None if no package has it.

    Raises:
        ParameterError: naming the package, if several have it, or its module cannot be imported or lacks `build`.
    """
    kind, each = GROUPS[group], _owners(group).get(name, [])
    if len(each) > 1:
        raise ParameterError(_double(kind, name, each))
    if not each:
        return None
    plugin = each[0]
    owner = f"{kind} {name!r} of the package {plugin.origin}"
    try:
        module = importlib.import_module(plugin.module)
    except (Exception, SystemExit) as error:  # code from elsewhere fails in many ways
        raise ParameterError(f"{owner} cannot be imported: {reason(error)}") from error
    build = builder(module, plugin.function, owner)
    _loaded[plugin.package] = plugin.version
    return build


def loaded() -> dict[str, str]:
    """{package: version} of the plugins that this process has loaded."""
    return dict(sorted(_loaded.items()))


def _double(kind: str, name: str, each: list[Plugin]) -> str:
    packages = " and ".join(plugin.origin for plugin in each)
    return f"{kind} {name!r} is in several installed packages ({packages}): uninstall all but one of them"


def _owners(group: str) -> dict[str, list[Plugin]]:
    owners: dict[str, list[Plugin]] = {}
    for plugin in scan(group).plugins:
        for name in plugin.names:
            owners.setdefault(name, []).append(plugin)
    return owners


def scan(group: str) -> Scan:
    """All entries of a group among what is installed, in the order of `sys.path`; nothing is imported.

    The working directory is left out, although it may be on `sys.path`: modules there were not installed.
    """
    here = Path.cwd()
    return _scan(group, tuple(path for path in sys.path if Path(path).absolute() != here))


@cache
def _scan(group: str, path: tuple[str, ...]) -> Scan:
    plugins: list[Plugin] = []
    bad: list[str] = []
    for distribution in _distributions(path):
        package, version = distribution.name, distribution.version
        try:
            entries = [entry for entry in distribution.entry_points if entry.group == group]
        except Exception as error:  # files from elsewhere are broken in many ways
            bad.append(f"the entry points of the package {package} {version} cannot be read: {reason(error)}")
            continue
        for entry in entries:
            try:
                plugins.append(_plugin(entry, package, version))
            except Exception as error:  # the same
                bad.append(f"{GROUPS[group]} {entry.name!r} of the package {package} {version} cannot be used: {error}")
    return Scan(tuple(plugins), tuple(bad))


def _distributions(path: tuple[str, ...]) -> Iterator[Distribution]:
    """The installed packages with entry points for us, each once: the first on the path."""
    seen = set()
    for distribution in distributions(path=list(path)):
        ours = "[offramp." in (distribution.read_text("entry_points.txt") or "")
        name = re.sub(r"[-_.]+", "-", distribution.name).lower() if ours and distribution.read_text("METADATA") else ""
        if name and name not in seen:
            seen.add(name)
            yield distribution


def _plugin(entry: EntryPoint, package: str, version: str) -> Plugin:
    """What an entry says, completed from the source of its module."""
    if not _NAME.fullmatch(entry.name):
        raise ValueError("a name has letters, digits, '.', '_', '+' and '-' only")
    matched = re.fullmatch(r"([\w.]+)(?::(\w+))?", entry.value.strip())
    if matched is None:
        raise ValueError(f"{entry.value!r} is not package.module or package.module:function")
    module, function = matched[1], matched[2] or "build"
    file = source(module, installed=True)
    tree = parsed(file) if isinstance(file, Path) and file.suffix == ".py" else ast.Module([], [])
    names = nets(tree, module) if entry.group == "offramp.models" else (entry.name,)
    return Plugin(entry.group, names, module, function, package, version, ast.get_docstring(tree) or "")


def nets(tree: ast.Module, module: str) -> tuple[str, ...]:
    """`NETS` of a family of networks, read from its source: listing names must not cost the import of torch.

    Raises:
        ValueError: if it has none.
    """
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(target, ast.Name) and target.id == "NETS" for target in targets):
                return tuple(map(str, ast.literal_eval(statement.value)))
    raise ValueError(f"{module} has no NETS, a literal tuple of the names that it builds")
