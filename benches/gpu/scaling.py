"""Times `soda train` on one and on several GPUs, and prints a table of step times and efficiencies.

    python scaling.py path/to/soda --base models/sdxl --data photos/mug [--gpus 1,2,4,8] [--batches 1,4] [--collectives nccl,tcp]

Each card learns `batch` pictures in a step, so that N cards learn N times as many. The efficiency is the time of one card
over that of N. The step time is the median of the times between the log lines of steps, without those of the first steps,
which compile kernels and capture the CUDA graph. It contains the loading of batches, the sum of gradients and the log.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

# Steps before the timed ones.
WARM_UP = 15
METHODS = {"lora": ["method=lora", "method.rank=32"], "soda": ["method=soda"]}


def train(args, method, batch, world, collectives, runs):
    name = f"{method}-{batch}-{world}-{collectives}"
    settings = [*METHODS[method], f"batch_size={batch}", "validation.every=0", "samples.every=0", "samples.steps=1"]
    command = [args.soda, "train", "--base", args.base, "--data", args.data, "--preset", args.preset]
    command += [part for setting in settings for part in ("--set", setting)]
    command += ["--steps", str(WARM_UP + args.steps), "--runs", runs, "--name", name, "--cache", args.cache]
    command += ["--sample", "a photo of a sks mug"]
    if world == 1:
        command += ["--device", "cuda"]
    else:
        command += ["--gpus", ",".join(map(str, range(world))), "--collectives", collectives]
    environment = {**os.environ, "NCCL_NVLS_ENABLE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=args.timeout)
    if done.returncode != 0:
        return None, (done.stderr.strip() or "no message").splitlines()[-1]
    lines = [json.loads(line) for line in (Path(runs) / name / "events.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if line["event"] == "step"][WARM_UP:]
    return 1e3 * statistics.median(b - a for a, b in zip(times, times[1:])), None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("soda")
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="sdxl")
    parser.add_argument("--gpus", default="1,2", help="numbers of cards")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--methods", default="lora,soda")
    parser.add_argument("--collectives", default="nccl,tcp")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--cache", default=None, help="folder of decompositions and encodings")
    args = parser.parse_args()
    args.soda = shutil.which(args.soda) or args.soda
    with tempfile.TemporaryDirectory() as runs:
        args.cache = args.cache or str(Path(runs) / "cache")
        for method in args.methods.split(","):
            for batch in map(int, args.batches.split(",")):
                alone = None
                for world in map(int, args.gpus.split(",")):
                    for collectives in args.collectives.split(",") if world > 1 else ["none"]:
                        ms, error = train(args, method, batch, world, collectives, runs)
                        alone = ms if world == 1 else alone
                        row = dict(base=Path(args.base).name, method=method, batch=batch, gpus=world, collectives=collectives)
                        if error is None:
                            row["step_ms"] = round(ms, 2)
                            row["efficiency"] = round(alone / ms, 3) if alone else None
                        else:
                            row["error"] = error
                        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
