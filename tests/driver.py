"""A small run by an engine, some of which is taken away in the middle; test_engines.py starts it.

    python driver.py local|ray|slurm

``ALSPEECH_ROOT`` says where; the run's tables are there, in results/, when it has ended.
"""

import os
import signal
import sys
import threading
import time

PRESET = """
strategies: [random, entropy]
query_percents: [20]
seeds: 2
shards: 2
build: {base: 24, pool: 30, validation: 6, test: 8}
model: {layers: 1, hidden: 8, channels: 4, round_frames: 160}
training: {base_updates: 150, updates: 9}
"""


def in_the_middle(root) -> None:
    """Wait until both seeds' base models are being trained, and have checkpoints."""
    while len(list(root.glob("build/cells/.base-*.unfinished/checkpoint"))) < 2:
        time.sleep(0.05)


def lose_a_node(root) -> None:
    """Two nodes of one core, one of which is taken away."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    node = cluster.add_node(**options)
    os.environ["RAY_ADDRESS"] = cluster.address

    def lose():
        in_the_middle(root)
        cluster.remove_node(node, allow_graceful=False)
        print("a node is lost", flush=True)

    threading.Thread(target=lose, daemon=True).start()


def preempt_a_job(root) -> None:
    """submitit's local executor; one job hears that it is to make room."""
    import psutil

    from alspeech.workshop import engines

    os.environ["ALSPEECH_SLURM"] = "cluster=local"
    submit, jobs = engines._submit, {}

    def watched(*what):
        found = submit(*what)
        jobs.update(found)
        return found

    engines._submit = watched

    def preempt():
        in_the_middle(root)
        job = next(job for name, job in jobs.items() if name.startswith("base"))
        for task in psutil.Process(int(job.job_id)).children():  # as Slurm tells it
            task.send_signal(signal.SIGUSR2)
        print("a job is preempted", flush=True)

    threading.Thread(target=preempt, daemon=True).start()


def main(engine: str) -> None:
    os.environ["ALSPEECH_ENGINE"] = engine
    os.environ["ALSPEECH_CHECKPOINT_SECONDS"] = "0.5"
    from alspeech import experiment
    from alspeech.workshop.config import ROOT, load_settings

    if engine == "ray":
        lose_a_node(ROOT)
    elif engine == "slurm":
        preempt_a_job(ROOT)
    print(experiment.run(load_settings("tiny")).folder)


if __name__ == "__main__":
    main(sys.argv[1])
