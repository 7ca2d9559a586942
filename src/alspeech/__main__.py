"""``python -m alspeech``: what the Makefile calls.

run       the long work: base models, scores, cells, tables; can be killed and started again
notebook  execute one notebook by papermill into build/<run>/

A mistake that the user can mend ends in one line on standard error and exit code 2.
"""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="alspeech", description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=["run", "notebook"])
    parser.add_argument("notebook", nargs="?", help="the notebook to execute")
    parser.add_argument("--preset", default="laptop", help="configs/<preset>.yaml")
    parser.add_argument("--corpus", default="synthetic")
    parser.add_argument("--data", default="", help="folder of a real corpus")
    options = parser.parse_args()
    # heavy imports wait until here, so that --help is quick and worker processes start light
    from .config import ROOT, UserError, load_settings

    try:
        settings = load_settings(options.preset, options.corpus, options.data)
        if options.command == "run":
            from .experiment import run

            print(f"tables in {run(settings).folder.relative_to(ROOT)}")
        else:
            from .notebooks import execute

            print(f"executed {execute(options.notebook, settings).relative_to(ROOT)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
