"""The command line: `python -m ASFEFusionLib COMMAND`. One small file a command under `commands`."""

from __future__ import annotations

import argparse
import signal
import sys

from . import __version__
from .errors import Cancelled, FusionError


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    # Here and not above: they import numpy, and Ctrl-C during that must end as quietly as at any other time.
    from .commands import align, benchmark, compare, demo, downstream, evaluate, fuse, fuse_folder, info, train

    known = {
        "fuse": fuse,
        "fuse-folder": fuse_folder,
        "align": align,
        "evaluate": evaluate,
        "compare": compare,
        "downstream": downstream,
        "train": train,
        "benchmark": benchmark,
        "info": info,
        "demo": demo,
    }
    main_parser = argparse.ArgumentParser(
        prog="python -m ASFEFusionLib",
        description="ASFE-Fusion of two medical volumes. Results are derived images: not for quantitation, not "
        "clinically validated.",
    )
    main_parser.add_argument("--version", action="version", version=__version__)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in known.items():
        summary = command.__doc__.strip().splitlines()[0]
        sub = commands.add_parser(name, help=summary, description=command.__doc__)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return main_parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. 0: done and complete; 1: the user can mend it, one sentence on stderr; 130: interrupted."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        from .commands.terminal import join_negative

        options = parser().parse_args(join_negative(sys.argv[1:] if arguments is None else arguments))
        options.run(options)
    except FusionError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a name that is too long, a disk that went away
        print(f"Error: {error.filename or 'a file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        print("Interrupted: no output was left half-written.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _interrupt(*_: object) -> None:
    """A polite kill goes the way of Ctrl-C, so that half-written files are removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
