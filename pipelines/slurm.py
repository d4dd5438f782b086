"""Extraction on a SLURM cluster: this program is the client, and its workers are jobs that come and go.

    pip install '.[slurm]'
    python pipelines/slurm.py --jobs 16 --processes 16 --partition cpu -- extract /data/k400 /scratch/k400.store

Run it where it may stay for the night: on a login node in tmux, or in a small job of its own (`sbatch --wrap`). What
stands behind `--` goes to `mgm-prep`; the same command again goes on from where it was. `-n` shows the job script.
Videos and store lie where all nodes see them. What a frame costs is in bench/RESULTS.md.
"""

import argparse
import sys

from dask_jobqueue.slurm import SLURMCluster

from mgm_prep.cli import main as mgm_prep

# Workers leave by themselves before SLURM ends them, and not all at once: what they were at is done elsewhere, and no
# video is suspected of having killed them.
MARGIN_S, STAGGER_S = 300, 240


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="at most so many jobs at a time (8)")
    parser.add_argument("--processes", type=int, default=16, help="workers, each of one core, in a job (16)")
    parser.add_argument("--memory", default="1500MB", help="for each worker (1500MB)")
    parser.add_argument("--minutes", type=int, default=240, help="a job's time limit (240)")
    parser.add_argument("--partition", help="where the jobs go")
    parser.add_argument("--account", help="who pays")
    parser.add_argument("--interface", help="the network between the nodes, such as ib0")
    parser.add_argument("--sbatch", action="append", default=[], help="another option of sbatch, such as --qos=long")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show the job script, and do nothing")
    parser.add_argument("command", nargs="+", help="behind --: a command of mgm-prep")
    return parser.parse_args(arguments)


def cluster_of(chosen: argparse.Namespace) -> SLURMCluster:
    """The scheduler, in this process, and a description of its workers; none is started yet."""
    lifetime_s = chosen.minutes * 60 - MARGIN_S
    if lifetime_s <= STAGGER_S:
        raise SystemExit(
            f"--minutes {chosen.minutes} is too short: workers leave {MARGIN_S // 60} minutes before the end"
        )
    number, unit = chosen.memory.rstrip("GMBigmb"), chosen.memory.lstrip("0123456789.")
    return SLURMCluster(
        queue=chosen.partition,
        account=chosen.account,
        interface=chosen.interface,
        cores=chosen.processes,
        processes=chosen.processes,
        memory=f"{float(number) * chosen.processes:g}{unit}",
        walltime=f"{chosen.minutes // 60:02d}:{chosen.minutes % 60:02d}:00",
        job_extra_directives=chosen.sbatch,
        worker_extra_args=["--lifetime", f"{lifetime_s}s", "--lifetime-stagger", f"{STAGGER_S}s"],
        python=sys.executable,
    )


def main(arguments: list[str]) -> None:
    chosen = read_arguments(arguments)
    with cluster_of(chosen) as cluster:
        if chosen.dry_run:
            print(cluster.job_script())
            return
        # Jobs are asked for while there is work for them, and given back when it runs out.
        cluster.adapt(maximum_jobs=chosen.jobs)
        mgm_prep([*chosen.command, "--scheduler", cluster.scheduler_address], prog_name="mgm-prep")


if __name__ == "__main__":
    main(sys.argv[1:])
