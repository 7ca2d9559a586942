"""``python -m alspeech``: what the Makefile calls.

check     read and check the corpus, extract its features, show what was found; no training
run       the same and the long work of one system (the paper's: base models, scores, cells,
          tables); can be killed and started again
notebook  execute one notebook by papermill into build/<run>/
data      download a corpus from its official address into data/
power     how many seeds a difference needs, from the tables of a run
findings  write again what the READMEs say of the committed results
query     of recordings without a transcript those that are worth one, as a list in build/<run>/
learn     keep the transcripts that came back, train with all that there are
plan      what a run will take: hours, memory and disk of every step, measured in a minute
audit     transcripts that a recogniser which has not learned them does not believe
course    the labs' versions for students and instructors, into build/course/<run>/
leaderboard  acquisition functions that others wrote, held against ours

What goes wrong ends in one line on standard error. The exit code is 2 where the user can mend it,
130 after Ctrl-C, 75 where the work was left to a cluster (DETACH=1), and 1, with a traceback in
build/<run>/error.log, where it is a mistake of ours.
"""

import argparse
import importlib
import os
import signal
import sys

SYSTEMS = {  # and the module that has its check(settings) and its run(settings)
    "figures": "experiment",
    "map": "studies",
    "beyond": "beyond",
    "loss-prediction": "sisters.loss_prediction",
    "pseudo-labels": "sisters.pseudo_labels",
    "aloe": "sisters.aloe",
}

COMMANDS = (
    "check", "run", "notebook", "data", "power", "findings", "query", "learn", "audit", "plan",
    "course", "leaderboard",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="alspeech", description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("notebook", nargs="?", help="the notebook to execute")
    parser.add_argument("--preset", default="laptop", help="configs/<preset>.yaml")
    parser.add_argument("--corpus", default="synthetic")
    parser.add_argument("--data", default="", help="folder of a real corpus")
    parser.add_argument("--scenario", default="", help="of scenarios.yaml; else the preset's")
    parser.add_argument("--target", default="", help="validation, test, pool, none or a folder")
    parser.add_argument("--system", default="figures", choices=SYSTEMS, help="what to run")
    parser.add_argument("--subset", default="", help="part of a corpus to download")
    parser.add_argument("--budget", default="", help="of a query: 30min, 10%% or 200")
    parser.add_argument("--method", default="", help="of a query")
    parser.add_argument("--format", default="", help="of a query's list")
    parser.add_argument("--transcripts", default="", help="file of what came back")
    parser.add_argument("--engine", default="", help="local, ray or slurm: where it is computed")
    parser.add_argument("--device", default="", help="cpu, cuda or cuda:1; else what there is")
    parser.add_argument("--submissions", default="", help="folder of acquisition functions")
    parser.add_argument("--seeds", default="", help="file of a leaderboard's hidden seeds")
    parser.add_argument("--isolation", default="", help="none: run them unconfined")
    options = parser.parse_args()
    for word in ("engine", "device"):  # workers hear of it, and notebooks
        if value := getattr(options, word):
            os.environ[f"ALSPEECH_{word.upper()}"] = value
    # an import that Ctrl-C cuts short answers with pages of its own; there is nothing to tidy yet
    signal.signal(signal.SIGINT, _leave)
    # heavy imports wait until here, so that --help is quick and worker processes start light
    from .workshop import engines
    from .workshop.config import ROOT, load_settings, run_name
    from .workshop.errors import Detached, UserError, explain
    from .workshop.processes import cores, end_workers, sharing, use_device
    from .workshop.store import checkpoint_seconds

    words = (options.preset, options.corpus, options.data, options.scenario, options.target)
    run = run_name(options.corpus, options.preset, *words[3:])
    log = ROOT / "build" / run / "error.log"
    try:  # a wrong word is told at once
        use_device(here=engines.chosen() == "local")
        cores(), sharing(), checkpoint_seconds()
        settings = None if options.command in ("data", "findings") else load_settings(*words)
        if settings and settings.recogniser and options.command not in ("check", "query", "learn"):
            raise UserError(f"configs/{options.preset}.yaml: recogniser: {settings.recogniser} is "
                            "not trained here: make check, query and learn only")  # fmt: skip
    except UserError as error:
        return explain(error, log)
    modules = {
        "data": "speech.download",
        "findings": "sisters.findings",
        "power": "lessons",
        "notebook": "workshop.notebooks",
        "query": "field.yours",
        "learn": "field.yours",
        "audit": "field.audit",
        "plan": "plan",
        "course": "course.labs",
        "leaderboard": "course.board",
    }
    if settings and settings.recogniser:
        modules["check"] = "field.yours"
    module = modules.get(options.command, SYSTEMS[options.system])
    work = importlib.import_module(f".{module}", __package__)
    signal.signal(signal.SIGINT, _interrupt)
    if options.command == "run":
        log.unlink(missing_ok=True)  # what went wrong another time
    try:
        if options.command == "data":
            corpus, folder = work.get(options.corpus, options.subset)
            print(f"ready: make figures CORPUS={corpus} DATA={folder.relative_to(ROOT)}")
        elif options.command == "findings":
            print("changed:", ", ".join(work.write()) or "nothing")
        elif options.command == "query":
            settings = work.mine(settings, options.budget, options.method, options.format)
            print(work.minutes(settings), flush=True)
            print(work.told(*work.query(settings)))
        elif options.command == "check" and settings.recogniser:
            print(work.minutes(settings := work.mine(settings)), flush=True)
            print(work.elsewhere.told(settings))
        elif options.command == "learn" and settings.recogniser:
            settings = work.mine(settings)
            if options.transcripts:
                work.keep(settings, options.transcripts)
            print(work.elsewhere.handed_on(settings))
        elif options.command == "learn":
            settings = work.mine(settings)
            print(work.said(settings, work.learn(settings, options.transcripts)))
        elif options.command == "audit":
            table, path = work.write(settings)
            shown = table[["suspicion", "utt_id", "text", "guess"]].head(10)
            print(f"{shown.to_string(index=False)}\nall {len(table)}: {path.relative_to(ROOT)}")
        elif options.command == "plan":
            print(work.told(settings))
        elif options.command == "course":
            work.prepare(settings)
            print(f"hand out {work.make(settings).relative_to(ROOT)}")
        elif options.command == "leaderboard":
            words = (options.submissions, options.seeds, options.isolation)
            print(work.leaderboard(settings, *words))
        elif options.command == "power":
            print(work.power(settings))
        elif options.command == "notebook":
            print(f"executed {work.execute(options.notebook, settings).relative_to(ROOT)}")
        elif options.command == "check":
            from .field.yours import looked_at

            print(looked_at(settings, work.check))
        else:
            print(work.check(settings), flush=True)
            print(f"tables in {work.run(settings).folder.relative_to(ROOT)}")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done, only Python has to end
        end_workers()
    except KeyboardInterrupt:
        return _interrupted()
    except Detached as told:
        print(told)
        return 75  # try again later
    except Exception as error:
        return explain(error, log)
    return 0


def _interrupted() -> int:
    """Say so; returns the exit code that shells give to Ctrl-C."""
    os.write(2, b"\ninterrupted: the same command goes on from here\n")  # print may be busy
    return 130


def _leave(*_) -> None:
    os._exit(_interrupted())


def _interrupt(*_) -> None:
    """Ctrl-C: the work ends its workers and itself, or is ended ten seconds later.

    Some libraries swallow KeyboardInterrupt. Nothing is harmed by a hard end (see store.py).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(10)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
