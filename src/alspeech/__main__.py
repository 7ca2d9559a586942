"""``python -m alspeech``: what the Makefile calls.

check     read and check the corpus, extract its features, show what was found; no training
run       the same and the long work: base models, scores, cells, tables; can be killed and
          started again
notebook  execute one notebook by papermill into build/<run>/
data      download a corpus from its official address into data/

A mistake that the user can mend ends in one line on standard error and exit code 2.
"""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="alspeech", description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=["check", "run", "notebook", "data"])
    parser.add_argument("notebook", nargs="?", help="the notebook to execute")
    parser.add_argument("--preset", default="laptop", help="configs/<preset>.yaml")
    parser.add_argument("--corpus", default="synthetic")
    parser.add_argument("--data", default="", help="folder of a real corpus")
    parser.add_argument("--subset", default="", help="part of a corpus to download")
    options = parser.parse_args()
    # heavy imports wait until here, so that --help is quick and worker processes start light
    from .config import ROOT, UserError, load_settings

    try:
        if options.command == "data":
            from .download import get

            corpus, folder = get(options.corpus, options.subset)
            print(f"ready: make figures CORPUS={corpus} DATA={folder.relative_to(ROOT)}")
            return 0
        settings = load_settings(options.preset, options.corpus, options.data)
        if options.command == "notebook":
            from .notebooks import execute

            print(f"executed {execute(options.notebook, settings).relative_to(ROOT)}")
            return 0
        from .experiment import check, run

        print(check(settings), flush=True)
        if options.command == "run":
            print(f"tables in {run(settings).folder.relative_to(ROOT)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
