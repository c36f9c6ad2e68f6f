"""The command `tandem`: finds the verb's module and turns known errors into one clear message and an exit code.

Each verb also runs as `python -m launchers.<verb>`, alone, under torchrun or under srun.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from common.interrupt import INTERRUPTED, interruptible, kill_children, tell
from common.nearby import nearest
from common.printable import PrintableRecord, printable

VERBS = {
    "prepare": "raw logs -> WebDataset shards, with superpixels",
    "pretrain": "train a method on shards; continues where it stopped",
    "finetune": "train a detector on labels, from a run, a file or random; continues where it stopped",
    "evaluate": "linear probe, fine-tuning at label fractions, kNN; beside random initialisation",
    "submit": "queue a run and its evaluations on SLURM, code and config frozen; or --local",
    "sweep": "many runs that differ in some settings, as one array, in one report",
    "cancel": "end the jobs of runs",
    "requeue": "restart running runs, submit failed ones again",
    "status": "one line for each run: how far, how fast, evaluated or not, and why it failed",
    "plan": "what a run would cost on a number of GPUs: batches, memory, traffic, hours",
    "reproduce": "a paper's table from raw data: what is done, what is left; queues it, or --local",
    "report": "gather results of any number of runs into one table and one HTML file",
    "inspect": "look into shards or a run: numbers and pictures",
    "fit": "will weights trained on one sensor serve another set",
    "export": "write trained weights for other code bases",
    "weights": "published image networks: where they come from; what a weight file is",
    "score": "judge anybody's detections or segments as a benchmark does, from files",
    "doctor": "what this machine has, what would run on it, what is missing",
    "demo": "the full pipeline, end to end, on the built-in street world",
}

USAGE_ERROR = 2
FAILURE = 1
TRY_AGAIN = 75
"""Exit code of a run that was stopped by a signal and can be continued (EX_TEMPFAIL of sysexits.h)."""
PEER_LOST = 70
"""Exit code of a run that lost one of its processes; a restart continues from the last checkpoint."""

_ROOM = "free disk space (or quota), or choose another folder; then run the same command again"
_RIGHTS = "repair its permissions (ls -ld shows them), or choose another folder"
_STORAGE = "the storage failed or is away; run the same command again when it is back"
_NAME = "choose another name"
_REMEDIES: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    errno.EROFS: "choose another folder",
    **dict.fromkeys((errno.EACCES, errno.EPERM), _RIGHTS),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.EHOSTDOWN), _STORAGE),
    errno.ENOTDIR: "a file lies where a folder is needed; " + _NAME,
    errno.EEXIST: "something else has that name; " + _NAME,
    errno.EISDIR: "a folder lies where a file is needed; " + _NAME,
    errno.ENAMETOOLONG: _NAME,
}
"""What to do about an error of the file system."""


class VerbParser(argparse.ArgumentParser):
    """Names the nearest option or value where one is not known."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever; remembers the words for `error`."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and leave with code 2."""
        wrong, known = [], [*self._option_string_actions]
        options = [word.partition("=")[0] for word in self._given if word.startswith("--")]
        unknown = [word for word in options if not any(option.startswith(word) for option in known)]
        if unknown and message.startswith("the following arguments are required:"):
            # What is missing is the lesser mistake: `--helpp` needs no CONFIG.
            message = f"unrecognized arguments: {' '.join(unknown)}"
        if message.startswith("unrecognized arguments:"):
            wrong = [word.partition("=")[0] for word in message.split() if word.startswith("-")]
        elif choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            wrong, known = [choice[1]], [word.strip("' ") for word in choice[2].split(",")]
        hints = dict.fromkeys(hint for word in wrong if (hint := nearest(word, known, cutoff=0.65)))
        if wrong and not hints and any(action.dest == "overrides" for action in self._actions):
            hints["; settings are given as section.field=value"] = None
        super().error(message + "".join(hints))


def verb_parser(prog: str, description: str | None) -> VerbParser:
    """A parser whose help shows the module's docstring as it is written."""
    return VerbParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def parser_of(verb: str, rest: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a verb, for the words behind it; imports nothing that is slow."""
    module = importlib.import_module(f"launchers.options.{verb}")
    made: argparse.ArgumentParser = module.parser_for(rest) if hasattr(module, "parser_for") else module.parser()
    return made


def usage() -> str:
    """The text of `tandem --help`."""
    lines = [f"  {verb:<9} {text}" for verb, text in VERBS.items()]
    more = "tandem VERB --help says more, with examples; tandem --version"
    return "\n".join(["usage: tandem VERB ...", "", *lines, "", more])


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tandem VERB ARGUMENTS`; returns the process's exit code."""
    with interruptible():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        return int(importlib.import_module("launchers.options.completion").complete(VERBS))
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(usage())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] in {"-V", "--version"}:
        from launchers.runs.provenance import version_text

        print(version_text())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"tandem: no verb {verb!r}{nearest(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return USAGE_ERROR
    if {"-h", "--help"} & set(rest):  # answered without the verb's own imports, which take seconds
        parser_of(verb, rest).parse_args(rest)
    return guarded(lambda rest: _call(verb, rest), rest)


def _call(verb: str, rest: list[str]) -> int:
    if verb not in {"pretrain", "finetune"}:  # these read their options by themselves, and tell other ranks of mistakes
        check_options(verb, rest)
    return int(importlib.import_module(f"launchers.{verb}").main(rest))


def check_options(verb: str, rest: Sequence[str]) -> None:
    """Leave with a word and code 2 where the options are wrong, before the verb's own imports, which take seconds."""
    module = importlib.import_module(f"launchers.options.{verb}")
    if hasattr(module, "parse"):
        module.parse(rest)
        return
    p = parser_of(verb, rest)
    overrides = any(action.dest == "overrides" for action in p._actions)  # these may stand between options
    (p.parse_intermixed_args if overrides else p.parse_args)(rest)


def guarded(verb_main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Call a verb; expected errors are printed without a traceback.

    Returns:
        The verb's own code; 2 for a mistake in config or arguments, 1 for a named failure, 70 for a run that lost one
        of its processes, 75 for one that got a stop signal before it had begun, 130 after Ctrl-C.
    """
    logging.setLogRecordFactory(PrintableRecord)
    try:
        with interruptible():
            return verb_main(argv)
    except KeyboardInterrupt:
        tell()
        kill_children()
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`tandem inspect ... | head`); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        return _print_error(error)


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr)


def _print_error(error: Exception) -> int:
    """One line for an expected error; any other is raised again, with its traceback."""
    # Imported here, so that verbs that only look at files do not wait for torch.
    from configs.load import ArgumentError, ConfigError
    from engine import errors
    from launchers.runs.slurm import SlurmError

    if isinstance(error, ConfigError):
        _tell(f"{'tandem' if isinstance(error, ArgumentError) else 'config error'}: {error}")
        return USAGE_ERROR
    if isinstance(error, errors.StopRequested):
        _tell(str(error))
        return TRY_AGAIN
    if isinstance(error, errors.PeerLostError):
        _tell(f"PeerLostError: {error}")
        return PEER_LOST
    named: list[type[Exception]] = [errors.CheckpointError, errors.DivergenceError, errors.DryBatchError]
    named += [errors.RunLockedError, errors.PeerFailedError, SlurmError]
    if "data.storage.shard" in sys.modules:  # else a ShardError cannot have been raised
        from data.storage.shard import ShardError

        named.append(ShardError)
    if isinstance(error, OSError) and error.errno == errno.ENOENT and error.filename is None:
        # tempfile's: it tries to write, so a full disk is one of the reasons.
        print(f"file error: {error.strerror}; free disk space there, or set TMPDIR to another folder", file=sys.stderr)
        return FAILURE
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        # Not only of writing: what cannot be read for want of a right needs the same remedy.
        where = error.filename2 or error.filename or "a file, or the output itself"
        _tell(f"file error: {where}: {error.strerror}; {_REMEDIES[error.errno]}")
        return FAILURE
    if not isinstance(error, tuple(named)):
        raise error
    _tell(f"{type(error).__name__}: {error}")
    return FAILURE


if __name__ == "__main__":
    sys.exit(main())
