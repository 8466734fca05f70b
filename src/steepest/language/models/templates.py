"""Chat templates: read from text or a file, with values set for the arguments that they know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from steepest.errors import UsageError, brief
from steepest.files.reading import Unusable, parse_json, read_text

_SET = re.compile(r"\{%- set (\w+) = [^\n]*? \+%\}")
_OURS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""What a template is given to render, and what no user sets."""


def template_text(template: str | None) -> str | None:
    """A chat template, given as Jinja text or as the path of a file of it.

    Raises:    UsageError where it is neither
    """
    if template is None or "{" in template:
        return template
    try:
        return read_text(Path(template).expanduser())
    except (Unusable, OSError, ValueError) as error:
        raise UsageError(f"chat_template {template!r} is neither Jinja text nor a file that can be read") from error


def template_arguments(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of a chat template by name, given so or as JSON of them.

    Raises:    UsageError for anything else
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    try:
        found = parse_json(given)
    except Unusable as error:
        raise UsageError(f"template_kwargs is {brief(given)}, which is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(
            f'template_kwargs is {brief(given)}; expected values by name, such as {{"enable_thinking": false}}'
        )
    return cast(dict[str, Any], found)


def with_arguments(template: Any, arguments: Mapping[str, Any]) -> Any:
    """A chat template that renders as if these arguments were given, wherever it goes with its model.

    Raises:    UsageError where there is no template, or it knows no such argument
    Verified:  tests/unit/test_language_data.py::test_a_template_takes_arguments
    """
    if not arguments:
        return template
    while isinstance(template, str) and (ours := _SET.match(template)) and ours[1] in arguments:
        template = template[ours.end() :]  # set before
    if not isinstance(template, str):
        kind = "none" if template is None else "several"
        raise UsageError(f"template_kwargs is given, but the model's tokenizer has {kind}; give one (chat_template)")
    import jinja2
    from jinja2 import meta
    from jinja2.ext import loopcontrols

    try:
        tree = jinja2.Environment(extensions=[loopcontrols], autoescape=True).parse(template)
        known = sorted(meta.find_undeclared_variables(tree) - {*_OURS})
    except jinja2.TemplateError:  # extensions of its own: what it knows cannot be told
        known = [name for name in arguments if re.search(rf"\b{re.escape(name)}\b", template)]
    for name in arguments:
        if name not in known:
            raise UsageError(f"the chat template knows no argument {name!r}; it has {', '.join(known) or 'none'}")
    # Written before it: so it is saved with the model, and renders the same for whoever loads that. The "+" keeps a
    # line end that the template may begin with.
    return "".join(f"{{%- set {name} = {value!r} +%}}" for name, value in arguments.items()) + template
