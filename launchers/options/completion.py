"""Completion in the shell, by argcomplete: verbs, options, names of configs and data sets, folders of runs.

`eval "$(register-python-argcomplete tandem)"` switches it on in bash and zsh. The shell then calls `tandem` with the
line so far in its environment; only the parser of the line's verb is built.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import argcomplete

from launchers.cli import parser_of, verb_parser

_SKIP = "_ARGCOMPLETE"
"""argcomplete's variable: how many words of the line, from the first, the parser is not shown."""


def complete(verbs: Iterable[str]) -> int:
    """Answer the shell; argcomplete ends the process."""
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    words = line[:point].split(" ")
    typed = [word for word in words[int(os.environ[_SKIP]) :] if word]
    finished = typed if words[-1] == "" else typed[:-1]  # the last word is being typed
    if finished[:1] == ["help"]:
        os.environ[_SKIP] = str(int(os.environ[_SKIP]) + 1)
        finished = finished[1:]
    if finished and finished[0] in verbs:
        os.environ[_SKIP] = str(int(os.environ[_SKIP]) + 1)
        parser = parser_of(finished[0], finished[1:])
    else:
        parser = verb_parser("tandem", None)
        parser.add_argument("verb", choices=[*verbs, "help"])
        parser.add_argument("--version", action="store_true")
    argcomplete.autocomplete(parser, always_complete_options=False)
    return 0
