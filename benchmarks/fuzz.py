"""Thousands of damaged files, each from a seed, given to everything that reads files.

    python benchmarks/fuzz.py                    # the run behind docs/trust.md, half an hour
    python benchmarks/fuzz.py --share 0.01       # a hundredth of it

Readers run in processes of their own with a limit on memory: one that dies or hangs is written
down, and the next case goes on. An audit hook watches for what no reader may do: start a process,
open a connection, unpickle a class, follow a path out of the folder. The table goes to stdout,
a row per reader to benchmarks/results/fuzz.csv, and every case that is not good to stderr.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "fuzz.csv"
MEMORY = 12 * 2**30
SILENCE = 180
"""Seconds without a word after which a process is taken for dead."""

CASES = {
    "pf.load (FCR)": 3000,
    "pf.load (SVAE)": 2000,
    "pf.load (InVAE)": 2000,
    "fit(resume=True)": 1000,
    "pyro-fcr latents": 1000,
    "pyro-fcr evaluate": 500,
    "pyro-fcr report": 500,
    "pyro-fcr latents, its data": 2000,
    ".h5ad on disk": 4000,
    ".h5ad on disk, sparse": 4000,
    ".zarr on disk": 1500,
    "Design, Schema, Split from_dict": 4000,
    "pyro-fcr benchmark, its file": 3000,
}

FORBIDDEN = {
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system",
    "pickle.find_class", "shutil.unpack_archive", "socket.connect", "socket.getaddrinfo",
    "subprocess.Popen", "urllib.Request",
}  # fmt: skip

COLUMNS = ("reader", "cases", "refused", "same", "valid", "unnoticed", "unclear", "crashed",
           "hung", "died", "ran code", "seconds")  # fmt: skip


def main() -> None:
    """Run all readers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the cases")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker[0], int(given.worker[1]), int(given.worker[2]), Path(given.worker[3]))
        return
    rows = []
    with TemporaryDirectory() as folder:
        for reader, cases in CASES.items():
            if given.only in (None, reader):
                n_cases = max(1, round(cases * given.share))
                rows.append(drive(reader, given.seed, given.seed + n_cases, Path(folder)))
                print(line(rows[-1]), file=sys.stderr, flush=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    whole = {name: sum(row[name] for row in rows) for name in COLUMNS[1:]}
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    print("\n".join(map(line, [*rows, {"reader": "all", **whole}])))


def line(row: dict[str, object]) -> str:
    """Return a row of the table."""
    return "| " + " | ".join(str(row[name]) for name in COLUMNS) + " |"


def drive(reader: str, start: int, stop: int, folder: Path) -> dict[str, object]:
    """Run one reader's cases in a process, and in another where that one dies."""
    began, counts, at = time.perf_counter(), Counter(), start
    while at < stop:
        command = [sys.executable, __file__, "--worker", reader, str(at), str(stop), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for text in process.stdout:
                found = json.loads(text)
                counts[found["answer"]] += 1
                at = found["seed"] + 1
                if not found["good"]:
                    print(text, file=sys.stderr, end="", flush=True)
        if at < stop:
            print(f"{reader}: died in case {at}", file=sys.stderr, flush=True)
            counts["died"] += 1
            at += 1
    spent = round(time.perf_counter() - began)
    return {"reader": reader, "cases": stop - start, **{n: counts[n] for n in COLUMNS[2:-1]},
            "seconds": spent}  # fmt: skip


def work(reader: str, start: int, stop: int, folder: Path) -> None:
    """Judge cases, one JSON line each."""
    import faulthandler

    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    import torch
    from fuzzing import Readers

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    readers, seen = Readers(folder), []
    readers.remember(reader)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in FORBIDDEN or (event == "open" and "/etc/passwd" in str(arguments[0])):
            seen.append(f"{event} {arguments}"[:200])

    sys.addaudithook(watch)
    for seed in range(start, stop):
        faulthandler.dump_traceback_later(SILENCE, exit=True)
        seen.clear()
        outcome = readers.case(reader, seed)
        answer = "ran code" if seen else outcome.answer
        told = {"seed": seed, "answer": answer, "good": outcome.is_good and not seen}
        if not told["good"]:
            told |= {"reader": reader, "file": outcome.file, "kind": str(outcome.kind),
                     "told": outcome.told, "seen": list(seen)}  # fmt: skip
        print(json.dumps(told), flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    main()
