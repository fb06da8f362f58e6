"""Writes the pages of docs/reference from the code: `python docs/generate.py`; with `--check` only compares them."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
from celery import Celery, Task  # noqa: E402
from docstrings import INTERNAL, described, entries, sections, signature, table  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from nitro import errors  # noqa: E402
from nitro.cli import nitro as commands  # noqa: E402
from nitro.domain.entities.base_entity import Entity  # noqa: E402
from nitro.infrastructure.events import Emission, Event, Namespace  # noqa: E402
from nitro.infrastructure.offload.delivery import Delivery  # noqa: E402
from nitro.infrastructure.offload.options import MessageOptions, Offload, TaskOptions  # noqa: E402
from nitro.infrastructure.worker import control  # noqa: E402
from nitro.infrastructure.worker.supervisor import WITHOUT_RELAY_OPTION  # noqa: E402
from nitro.infrastructure.worker.task import LATE_ACK_OPTIONS, RETRY_DEFAULTS  # noqa: E402
from nitro.invocation import celery_command  # noqa: E402
from nitro.settings import VARIABLE_NAMES, Settings  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
HEADER = "<!-- Written by docs/generate.py from {source}. Change the code, then run `make docs`. -->\n"
OPTION_GROUPS: tuple[tuple[type[Any], str, str], ...] = (
    (Offload, "Nitro's options", "`on_missing` and `base` belong to the task, the others to one `@on`."),
    (
        MessageOptions,
        "Options of the message",
        "They belong to one `@on`. Celery describes them under *Calling Tasks*.",
    ),
    (TaskOptions, "Options of the task", "A function has them once, for all its events. Celery: *Tasks*."),
)
TELEMETRY = (
    ("nitro.telemetry", "carry"),
    ("nitro.telemetry.opentelemetry", "instrument"),
    ("nitro.telemetry.sentry", "instrument"),
    ("nitro.telemetry.prometheus", "instrument"),
    ("nitro.telemetry.prometheus", "OutboxCollector"),
)


def field_docs(model: type[Any]) -> dict[str, str]:
    """Returns the text below each field of a model, or beside its name in the `Args:` of the class."""
    [cls] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(cls, ast.ClassDef)
    found = entries(sections(model.__doc__).get("Args", ""))
    for node, below in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(below, ast.Expr):
            found[node.target.id] = ast.literal_eval(below.value)
    return found


def field_types(model: type[Any]) -> dict[str, str]:
    """Returns the type of each field as the code spells it."""
    [cls] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(cls, ast.ClassDef)
    fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
    found = {ast.unparse(node.target): ast.unparse(node.annotation) for node in fields}
    return {name: plain_type(text, model) for name, text in found.items()}


def plain_type(text: str, model: type[Any]) -> str:
    """Returns a type without the house's own names for it."""
    names = vars(sys.modules[model.__module__])
    for name in ("DeliveryGuarantee", "EntityMode", "OnMissing", "BrokerDown"):
        if text.startswith(name):
            return " or ".join(f"`{value!r}`" for value in names[name].__args__)
    text = re.sub(r"Annotated\[(\w+), Field\(ge=(\d+), le=(\d+)\)\]", r"\1 from \2 to \3", text)
    text = re.sub(r"Annotated\[(\w+), Field\(ge=0\)\]", r"\1", text)
    for house, plain in {
        "Seconds": "seconds",
        "Moment": "datetime",
        "ErrorTypes": "exception classes",
        "TaskHook": "function",
        "Any": "text or kombu object",
        "dict[str, text or kombu object]": "dict",
        "Literal['json']": "`'json'`",
    }.items():
        text = text.replace(house, plain)
    return text.replace(" | None", "").replace(" | ", " or ")


def default_of(name: str, model: type[Any]) -> str:
    """Returns what holds where an option is not given: Nitro's own value, a setting of the app, or Celery's."""
    settings = dict(Task.from_config)
    own: Mapping[str, Any] = {**LATE_ACK_OPTIONS, **RETRY_DEFAULTS}
    if name == "delivery":
        return "`NITRO_DELIVERY`"
    if name in own:
        value = own[name]
        return "`(Exception,)`" if name == "autoretry_for" else f"`{value!r}`"
    if name in settings:
        return f"the app's `{settings[name]}` (`{Celery(set_as_current=False).conf[settings[name]]!r}`)"
    value = model.model_fields[name].default
    inherited = getattr(Task, name, value) if model is TaskOptions else value
    if inherited is None or inherited is PydanticUndefined or callable(inherited):
        return "none"
    return f"`{inherited!r}`"


def options() -> str:
    """Returns the page about the options of an offloaded handler."""
    parts = [
        "# Options of an offloaded handler\n",
        "`@on(…, offload=…)` takes `True`, a dict or `Offload(…)` with these options. They are checked when the module",
        "is imported: an unknown one, or a value that is not allowed, is an error there.\n",
        "Celery's options have Celery's names and meaning. Retry options that the app's task class sets are kept.\n",
    ]
    for model, title, about in OPTION_GROUPS:
        docs, types = field_docs(model), field_types(model)
        names = [name for name in inspect.get_annotations(model) if name in model.model_fields]
        rows = ((f"`{name}`", types[name], default_of(name, model), docs.get(name, "")) for name in sorted(names))
        parts += [f"## {title}\n", f"{about}\n", table("option | type | default | meaning", rows), ""]
    return "\n".join(parts)


def function(name: str, found: Callable[..., Any], level: str = "###") -> str:
    """Returns the section about a function."""
    drop = 1 if "." in name and not inspect.ismethod(found) else 0
    code = f"```py\n{signature(name, found, drop=drop)}\n```"
    return f"{level} {name}\n\n{code}\n\n{described(found.__doc__)}"


def methods(cls: type[Any], *, of: str) -> Iterator[str]:
    """Yields the sections about the public methods and properties that a class defines itself."""
    for name, member in vars(cls).items():
        if name.startswith("_") or f"{of}.{name}" in INTERNAL:
            continue
        if isinstance(member, property):
            yield f"### {of}.{name}\n\n{described(member.__doc__)}"
        elif inspect.isfunction(member) or isinstance(member, classmethod):
            yield function(f"{of}.{name}", getattr(cls, name))


def entity() -> str:
    """Returns the page about Entity."""
    parts = ["# Entity\n", "`from nitro import Entity`\n", described(Entity.__doc__)]
    return "\n".join([*parts, "## Methods\n", *methods(Entity, of="Entity")])


def events() -> str:
    """Returns the page about the functions and classes that are neither options nor entities nor errors."""
    light, offload = import_module("nitro.infrastructure.events"), import_module("nitro.infrastructure.offload")
    transaction = import_module("nitro").transaction
    names = ("event", "on", "emit", "emit_async", "drain", "drain_async", "filter_signals")
    parts = [
        "# Functions and classes\n",
        "`from nitro import` gives `ANY`, `Entity`, `Event`, `Namespace`, `Offload`, `current_delivery`, `drain`,",
        "`emit`, `emit_async`, `event`, `on` and `transaction`. The others come from the module that the section",
        "names. [Entity](entity.md) and [Offload](options.md) have pages of their own.\n",
        "## nitro.infrastructure.events\n",
        *(function(name, getattr(light, name)) for name in names),
        "### ANY\n\nThe sender of an emit that names none; `sender=ANY` of a handler means every sender.\n",
        "### default_namespace\n\nThe `Namespace` in which `event(name)` and `on(name)` look.\n",
    ]
    for cls in (Emission, Event, Namespace):
        parts += [f"## {cls.__name__}\n", described(cls.__doc__, cls.__name__), *methods(cls, of=cls.__name__)]
    parts += ["## nitro.infrastructure.offload\n"]
    parts += [function(name, getattr(offload, name)) for name in ("bind", "cancel", "current_delivery")]
    parts += ["## Delivery\n", described(Delivery.__doc__), *methods(Delivery, of="Delivery")]
    parts += ["## nitro.transaction\n", function("transaction", transaction), "## nitro.telemetry\n"]
    parts += [_telemetry(module, name) for module, name in TELEMETRY]
    return "\n".join(parts)


def _telemetry(module: str, name: str) -> str:
    found = getattr(import_module(module), name)
    section = f"### {module}.{name}\n\n{described(found.__doc__)}"
    return (
        section
        if inspect.isclass(found)
        else section.replace("\n\n", f"\n\n```py\n{signature(name, found)}\n```\n\n", 1)
    )


def settings() -> str:
    """Returns the page about the environment variables."""
    meaning = entries(sections(Settings.__doc__)["Attributes"])
    with tempfile.TemporaryDirectory() as folder:
        here, _ = Path.cwd(), os.chdir(folder)
        defaults, place = Settings.load({}), str(Path.cwd())
        os.chdir(here)
    rows = []
    for name in VARIABLE_NAMES:
        attribute = name.removeprefix("NITRO_").lower()
        value = getattr(defaults, attribute)
        text = {False: "off", None: "", (): ""}.get(value, str(value)).replace(f"{place}/", "").replace("\\", "/")
        rows.append((f"`{name}`", f"`{text}`" if text else "none", allowed(name), meaning[attribute]))
    parts = [
        "# Settings\n",
        "Nitro reads these environment variables, and nothing else. A wrong value is an error at start that names the",
        "variable, the value and what is allowed. Celery's own settings stay where the app has them.\n",
        table("variable | default | allowed | meaning", iter(rows)),
        "\n`NO_COLOR` in the environment switches the colours of the commands off.\n",
    ]
    return "\n".join(parts)


def allowed(name: str) -> str:
    """Returns what a setting takes, as its own error says it."""
    try:
        Settings.load({name: "!"})
    except errors.SettingError as error:
        return str(error.args[2])
    return "any text"


def error_tree() -> str:
    """Returns the page about the errors."""
    parts = [
        "# Errors\n",
        "All of them are in `nitro.errors`, and `except NitroError` catches each. The class in brackets is one of",
        "Python's own that the error is as well.\n",
        *_below(errors.NitroError, ""),
        "",
    ]
    return "\n".join(parts)


def _below(cls: type[Exception], indent: str) -> Iterator[str]:
    known = [base.__name__ for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception]
    builtin = f" ({', '.join(f'`{name}`' for name in known)})" if known else ""
    yield f"{indent}- **`{cls.__name__}`**{builtin}: {' '.join(sections(cls.__doc__)[''].split())}"
    for below in cls.__subclasses__():
        if below.__name__ in errors.__all__:
            yield from _below(below, indent + "    ")


def cli() -> str:
    """Returns the page about the commands."""
    parts = [
        "# Commands\n",
        "`myapp` stands for the module with your Celery app. Each command exits with 0 when all is fine, 1 when",
        "something is wrong and 2 when it was called wrongly.\n",
        *_command(commands, click.Context(commands, info_name="nitro"), "celery -A myapp nitro"),
        "## celery -A myapp worker\n",
        f"- `{WITHOUT_RELAY_OPTION.opts[0]}`: {WITHOUT_RELAY_OPTION.help}\n",
        "## celery -A myapp inspect\n",
        *(f"- `{ask.__name__}`: {ask.__doc__}" for ask in (control.nitro_handlers, control.nitro_outbox)),
        "",
    ]
    return "\n".join(parts).replace(celery_command(""), "celery -A myapp ")


def _command(command: click.Command, context: click.Context, path: str) -> Iterator[str]:
    yield f"## {path}\n"
    yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(f"{command.help or ''}\n\n{command.epilog or ''}")):
        examples = re.findall(r"^Example: (.*)", paragraph.replace("\b\n", ""), re.MULTILINE)
        yield "```text\n" + "\n".join(examples) + "\n```\n" if examples else f"{' '.join(paragraph.split())}\n"
    yield "\n".join(_parameter(param, context) for param in command.params) + "\n"
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from _command(below, click.Context(below, parent=context, info_name=name), f"{path} {name}")


def _parameter(param: click.Parameter, context: click.Context) -> str:
    if isinstance(param, click.Argument):
        number = "any number of them" if param.nargs == -1 else "one"
        return f"- `{param.make_metavar(context)}`: argument, {number}{', required' if param.required else ''}."
    names, text = param.get_help_record(context) or ("", "")
    return f"- `{names}`: {re.sub(r' +', ' ', text)}"


PAGES: Mapping[str, tuple[Callable[[], str], str]] = {
    "options.md": (options, "nitro/infrastructure/offload/options.py"),
    "entity.md": (entity, "nitro/domain/entities/base_entity.py"),
    "events.md": (events, "the docstrings of the public functions"),
    "settings.md": (settings, "nitro/settings.py"),
    "errors.md": (error_tree, "nitro/errors"),
    "cli.md": (cli, "nitro/cli"),
}


def main(arguments: list[str]) -> int:
    """Writes the pages, or with `--check` names those that are not as the code is; 1 when there are any."""
    stale = []
    for name, (page, source) in PAGES.items():
        text = re.sub(r"\n{3,}", "\n\n", HEADER.format(source=source) + "\n" + page()).rstrip() + "\n"
        place = REFERENCE / name
        if not place.exists() or place.read_text() != text:
            stale.append(name)
            if "--check" not in arguments:
                place.write_text(text)
    sys.stdout.write("".join(f"{'stale' if '--check' in arguments else 'written'}: {name}\n" for name in stale))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
