"""What every job's command line does: --config, --set, --dry-run, exit codes, one clear
line for bad input."""

import argparse
import errno
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from pipeline import config as configuration
from pipeline.errors import InputError
from pipeline.redaction import redact
from pipeline.retries import StorageError
from pipeline.runtime.stop_request import Terminated, raise_terminated

ConfigT = TypeVar("ConfigT", bound=configuration.JobConfig)
STORAGE_VARIABLE = "UNLEARN_STORAGE"
GATE_FAILED = 4  # exit code: all was done, and the result does not hold what the gate asks
Run = Callable[[ConfigT, bool], int | None]  # an exit code, None for 0
# of a file: a person has to make room or mend permissions before another try
REFUSED_BY_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in the one line that every other bad input gets."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; --help shows how it is called", file=sys.stderr)
        raise SystemExit(2)


def main(
    kind: type[ConfigT],
    run: Run[ConfigT] | Mapping[str, Run[ConfigT]],
    description: str,
    argv: list[str] | None = None,
    *,
    shorthands: Sequence[str] = (),
    flags: Sequence[str] = (),
    default_config: str | None = None,
) -> int:
    """Parse, check, run. Returns 0 done (or the code that `run` returns), 1 failed, 2 bad input (one line on
    stderr, no traceback, nothing written) or a disk that is read-only or full (one line); 143 by SIGTERM.

    A job with verbs gives `run` as a mapping from verb to function; the verb is then the first argument.
    `shorthands` are keys that may also be given as `--key value`, `flags` those that `--key` alone makes
    true. `default_config` is read where --config is absent. UNLEARN_STORAGE in the environment is the storage
    root where no --set gives one.
    """
    parser = _parser(description, run, shorthands, flags, default_config)
    if argv is not None:
        return _main(kind, run, parser.parse_args(argv), shorthands, flags)
    signal.signal(signal.SIGTERM, raise_terminated)
    # a third of what importing torch and MLflow takes is collecting garbage that is none
    gc.set_threshold(50_000, 20, 100)
    try:
        return _main(kind, run, parser.parse_args(sys.argv[1:]), shorthands, flags)
    finally:
        gc.freeze()  # the process ends: nothing of what it imported need be collected one by one


def _parser(
    description: str,
    run: Run[ConfigT] | Mapping[str, Run[ConfigT]],
    shorthands: Sequence[str],
    flags: Sequence[str],
    default_config: str | None,
) -> argparse.ArgumentParser:
    absent = f"; absent: {default_config}" if default_config else ""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if isinstance(run, Mapping):
        parser.add_argument("verb", choices=list(run))
    parser.add_argument(
        "--config",
        required=default_config is None,
        default=default_config,
        metavar="YAML",
        help=f"the job's configuration, such as those in jobs/configs/{absent}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        dest="overrides",
        help="override one key; may be repeated",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be done, write nothing"
    )
    for key in shorthands:
        parser.add_argument(f"--{key}", metavar="VALUE", help=f"the same as --set {key}=VALUE")
    for key in flags:
        option = f"--{key.replace('_', '-')}"
        parser.add_argument(option, action="store_true", help=f"the same as --set {key}=true")
    return parser


def _main(
    kind: type[ConfigT],
    run: Run[ConfigT] | Mapping[str, Run[ConfigT]],
    arguments: argparse.Namespace,
    shorthands: Sequence[str],
    flags: Sequence[str],
) -> int:
    shorthand_values = [
        f"{key}={value}" for key in shorthands if (value := getattr(arguments, key)) is not None
    ]
    shorthand_values += [f"{key}=true" for key in flags if getattr(arguments, key)]
    function = run[arguments.verb] if isinstance(run, Mapping) else run
    try:
        overrides = [*storage_of_environment(arguments.overrides), *arguments.overrides, *shorthand_values]
        config = configuration.load(kind, arguments.config, overrides)
        if isinstance(run, Mapping):
            require_keys_of_verb(config, arguments.verb)
        code = function(config, arguments.dry_run)
    except InputError as error:
        print(redact(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as left:
        if Terminated.happened:
            raise Terminated() from left
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED_BY_DISK and error.filename is not None:
            print(
                redact(
                    f"error: {error.filename}: {error.strerror}; expected files that can be read and written:"
                    " mend their permissions, make room, or pass --set storage=<uri>"
                ),
                file=sys.stderr,
            )
            return 2
        if not isinstance(error, StorageError):  # that one says by itself what was tried, and where
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
        print(redact(f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"), file=sys.stderr)
        return 1
    return code or 0


def storage_of_environment(overrides: Sequence[str]) -> list[str]:
    """The override that UNLEARN_STORAGE stands for; none where it is unset or `overrides` give a root."""
    root = os.environ.get(STORAGE_VARIABLE)
    given = any(override.partition("=")[0].strip() == "storage" for override in overrides)
    return [f"storage={json.dumps(root)}"] if root and not given else []


def require_keys_of_verb(config: configuration.JobConfig, verb: str) -> None:
    """Raise `InputError` for a key that was given and that `verb` does not read, where the job says what each
    verb reads."""
    keys_of_verb: dict[str, tuple[str, ...]] = getattr(config, "keys_of_verb", {})
    of_some_verb = {key for keys in keys_of_verb.values() for key in keys}
    own_keys = keys_of_verb.get(verb, ())
    for key in sorted((config.model_fields_set & of_some_verb) - set(own_keys)):
        readers = ", ".join(other for other, keys in keys_of_verb.items() if key in keys)
        raise InputError(
            f"{key}: got {getattr(config, key)!r}, which {verb} does nothing with ({readers} would); expected"
            f" {' or '.join(own_keys) if own_keys else 'none of these keys'}"
        )
