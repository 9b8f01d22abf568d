"""prunectl and its rivals in one sitting: each case runs its contestants in turn, again and again, and compares medians.

Started by scripts/bench-cpu, which says where program, model and text are.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEGMENTS, TOKENS, RACE_SEGMENTS = 32, 128, 200
TRAIN_BATCH, TRAIN_TOKENS = 8, 256
# Spread evenly over the layers, so that the mean of the three is the mean of all where the cost is linear in the layer.
TIMED = [5, 15, 24]


class Sitting:
    def __init__(self, arguments, work):
        self.arguments = arguments
        self.work = work
        self.threads = str(arguments.threads)

    def run(self, command):
        """(standard output, wall seconds, peak memory in bytes) of one process."""
        started = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"error: {' '.join(map(str, command))} ended with {process.returncode}")
        return output, wall, usage.ru_maxrss * 1024

    def prunectl(self, *arguments):
        output, wall, peak = self.run([self.arguments.prunectl, *arguments, "--json", "--quiet", "--device", "cpu", "--threads", self.threads])
        return json.loads(output), wall, peak

    def rival(self, script, *arguments):
        output, _, _ = self.run([sys.executable, HERE / script, "--threads", self.threads, *arguments])
        return json.loads(output.splitlines()[-1])

    def segments(self, name, count, length):
        """The first `count` segments of `length` tokens of the text, as a data file both sides read."""
        from tokenizers import Tokenizer

        path = self.work / f"{name}.jsonl"
        tokenizer = Tokenizer.from_file(str(self.arguments.model / "tokenizer.json"))
        ids = tokenizer.encode(self.arguments.text.read_text(encoding="utf-8")).ids
        # Behind each other, or overlapping by as much as a shorter text makes necessary.
        stride = min(length, (len(ids) - length) // max(count - 1, 1))
        assert stride > 0, "the text is too short"
        rows = [ids[i * stride : i * stride + length] for i in range(count)]
        path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
        return path

    # Contestants of the scan: seconds of one round over all candidates.

    def our_scan(self, data, dtype, *options):
        out = self.work / "scan"
        scan, wall, peak = self.prunectl("scan", self.arguments.model, "--data", data, "--dtype", dtype, "--out", out, "--force", *options)
        round_ = scan["rounds"][0]
        return {"value": round_["seconds"], "wall_seconds": wall, "peak_rss_bytes": peak, "removed": round_["removed"], "scores": round_["scores"]}

    def orders(self, data, dtype, rounds):
        """The removal orders of `rounds` rounds with --race and by the exact sweep, on the same records."""
        order = lambda *options: self.prunectl(
            "scan", self.arguments.model, "--data", data, "--dtype", dtype, "--out", self.work / "order", "--force", "--remove", rounds, *options
        )[0]["order"]  # fmt: skip
        return order("--race"), order()

    def their_scan(self, data, dtype, method, segments):
        found = self.rival(
            "transformers_scan.py", "--model", self.arguments.model, "--data", data, "--dtype", dtype, "--method", method,
            "--candidates", ",".join(map(str, TIMED)),
        )  # fmt: skip
        candidates = found["num_hidden_layers"] - 2
        each = statistics.mean(found["candidate_seconds"])
        # The prefix has to be made once, by a pass that also gives the baseline; the other method needs a baseline pass.
        value = (each * candidates + found["baseline_seconds"]) * segments / SEGMENTS
        return {"value": value, "candidate_seconds": each, "peak_rss_bytes": found["peak_rss_bytes"], "scores": found["scores"]}

    # Contestants of generation: tokens a second.

    def our_decode(self, data, dtype, new):
        out = self.work / "hyp.jsonl"
        found, _, peak = self.prunectl(
            "translate", self.arguments.model, "--data", data, "--dtype", dtype, "--max-new-tokens", new, "--out", out, "--force"
        )
        return {"value": found["tokens_per_second"], "generated": found["generated_tokens"], "peak_rss_bytes": peak}

    def our_prompts(self, data, dtype, tokens):
        out = self.work / "hyp.jsonl"
        found, _, peak = self.prunectl(
            "translate", self.arguments.model, "--data", data, "--dtype", dtype, "--max-new-tokens", 1, "--out", out, "--force"
        )
        return {"value": tokens / found["seconds"], "peak_rss_bytes": peak}

    def their_generation(self, data, dtype, prompts, new, figure):
        found = self.rival(
            "transformers_generate.py", "--model", self.arguments.model, "--data", data, "--dtype", dtype, "--prompts", prompts,
            "--batch", prompts, "--new", new,
        )  # fmt: skip
        return {"value": found[figure], "peak_rss_bytes": found["peak_rss_bytes"]}

    def llama_cpp(self, data, dtype, prompts, new, figure):
        found = self.rival(
            "llama_cpp_generate.py", "--model", self.arguments.gguf[dtype], "--data", data, "--prompts", prompts, "--new", new
        )
        return {"value": found[figure], "peak_rss_bytes": found["peak_rss_bytes"], "system": found["system"]}

    # Contestants of training: tokens a second, the first step left out.

    OUR_TRAINING = {"lora": ["--quant", "none"], "qlora": ["--quant", "nf4"], "full": ["--full"]}

    def our_training(self, data, dtype, method):
        out = self.work / "trained"
        _, _, peak = self.prunectl(
            "train-qlora", self.arguments.model, "--data", data, "--dtype", dtype, "--batch", TRAIN_BATCH, "--epochs", 1, "--no-shuffle",
            "--out", out, "--force", *self.OUR_TRAINING[method],
        )  # fmt: skip
        updates = [json.loads(line) for line in (out / "metrics.ndjson").read_text().splitlines()]
        timed = updates[1:]
        value = sum(u["tokens"] for u in timed) / sum(u["seconds"] for u in timed)
        return {"value": value, "losses": [u["loss"] for u in updates], "peak_rss_bytes": peak}

    def their_training(self, data, dtype, method):
        found = self.rival(
            "peft_train.py", "--model", self.arguments.model, "--data", data, "--dtype", dtype, "--method", method, "--batch", TRAIN_BATCH
        )
        return {"value": found["tokens_per_second"], "losses": found["losses"], "peak_rss_bytes": found["peak_rss_bytes"]}

    def start_up(self, data, dtype):
        _, wall, peak = self.prunectl("eval", self.arguments.model, "--data", data, "--dtype", dtype, "--metrics", "nll")
        return {"value": wall, "peak_rss_bytes": peak}

    def cases(self):
        """(name, unit, {contestant: function}); the first contestant is ours."""
        scan, race = self.segments("scan", SEGMENTS, TOKENS), self.segments("race", RACE_SEGMENTS, TOKENS)
        prompts, one, first = self.segments("prompts", 16, 32), self.segments("one", 1, 32), self.segments("first", 1, 8)
        long = self.segments("long", 16, TOKENS)
        for dtype in ("f32", "bf16"):
            drop = lambda n, d=dtype: self.their_scan(scan, d, "drop", n)
            yield f"scan round, {SEGMENTS} x {TOKENS} tokens, {dtype}", "s", {
                "prunectl": lambda d=dtype: self.our_scan(scan, d),
                "transformers, one layer dropped at a time": lambda f=drop: f(SEGMENTS),
                "transformers, prefix reused": lambda d=dtype: self.their_scan(scan, d, "prefix", SEGMENTS),
            }
            yield f"scan round with --race, {RACE_SEGMENTS} x {TOKENS} tokens, {dtype}", "s", {
                "prunectl --race": lambda d=dtype: self.our_scan(race, d, "--race"),
                f"transformers, one layer dropped at a time (from {SEGMENTS} segments)": lambda f=drop: f(RACE_SEGMENTS),
            }
        for dtype in ("f32", "bf16"):
            yield f"greedy decoding, 16 prompts x 32 new tokens at once, {dtype}", "tokens/s", {
                "prunectl": lambda d=dtype: self.our_decode(prompts, d, 32),
                "transformers": lambda d=dtype: self.their_generation(prompts, d, 16, 32, "new_tokens_per_second"),
            }
            yield f"greedy decoding, 1 prompt x 64 new tokens, {dtype}", "tokens/s", {
                "prunectl": lambda d=dtype: self.our_decode(one, d, 64),
                "transformers": lambda d=dtype: self.their_generation(one, d, 1, 64, "new_tokens_per_second"),
                **self.with_llama(lambda d=dtype: self.llama_cpp(one, d, 1, 64, "new_tokens_per_second")),
            }
            yield f"prompt processing, 16 x {TOKENS} tokens, {dtype}", "tokens/s", {
                "prunectl": lambda d=dtype: self.our_prompts(long, d, 16 * TOKENS),
                "transformers": lambda d=dtype: self.their_generation(long, d, 16, 1, "prompt_tokens_per_second"),
                **self.with_llama(lambda d=dtype: self.llama_cpp(long, d, 16, 1, "prompt_tokens_per_second")),
            }
            yield f"start to first score, 8 tokens, {dtype}", "s", {"prunectl": lambda d=dtype: self.start_up(first, d)}
        train = self.segments("train", 4 * TRAIN_BATCH, TRAIN_TOKENS)
        for dtype in ("f32", "bf16"):
            for method in self.OUR_TRAINING:
                yield f"training, {TRAIN_BATCH} x {TRAIN_TOKENS} tokens a step, {method}, {dtype}", "tokens/s", {
                    "prunectl": lambda d=dtype, m=method: self.our_training(train, d, m),
                    "peft": lambda d=dtype, m=method: self.their_training(train, d, m),
                }

    def with_llama(self, contestant):
        return {"llama.cpp": contestant} if self.arguments.gguf else {}

    def compare_orders(self):
        """A line for each dtype: does the race remove what the exact sweep removes?"""
        rounds = self.arguments.order
        data = self.segments("race", RACE_SEGMENTS, TOKENS)
        for dtype in ("f32", "bf16"):
            name = f"removal order of {rounds} rounds, {RACE_SEGMENTS} x {TOKENS} tokens, {dtype}"
            if rounds and self.arguments.only in name:
                raced, exact = self.orders(data, dtype, rounds)
                yield {"case": name, "race": raced, "exact": exact, "same": raced == exact}


def facts(arguments):
    """What a figure means nothing without."""
    git = lambda *a: subprocess.run(["git", *a], capture_output=True, text=True, check=True).stdout.strip()
    packages = ["torch", "transformers", "peft", "bitsandbytes"] + (["xllamacpp"] if arguments.gguf else [])
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else ""),
        "cpu": cpu,
        "logical_cpus": os.cpu_count(),
        "threads": arguments.threads,
        "kernel": platform.release(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "model": "SmolLM2-135M-Instruct",
    }


def median(results, key):
    values = [r[key] for r in results if key in r]
    return statistics.median(values) if values else None


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prunectl", type=Path, required=True)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--text", type=Path, required=True)
    options.add_argument("--gguf-f32", type=Path)
    options.add_argument("--gguf-bf16", type=Path)
    options.add_argument("--threads", type=int, required=True)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--order", type=int, default=0, help="rounds over which the race's order is compared with the exact one")
    options.add_argument("--only", default="", help="only cases whose name contains this")
    options.add_argument("--save", type=Path, help="file to append the results to, JSON lines")
    arguments = options.parse_args()
    arguments.gguf = {"f32": arguments.gguf_f32, "bf16": arguments.gguf_bf16} if arguments.gguf_f32 else None

    about = facts(arguments)
    print(f"{about['cpu']}, {arguments.threads} threads, commit {about['commit']}, {arguments.runs} alternating runs, medians", flush=True)
    ceiling, _, _ = Sitting(arguments, None).prunectl("bench")
    with tempfile.TemporaryDirectory() as work:
        sitting = Sitting(arguments, Path(work))
        for name, unit, contestants in sitting.cases():
            if arguments.only not in name:
                continue
            print(f"\n{name} [{unit}]", flush=True)
            results = {contestant: [] for contestant in contestants}
            for _ in range(arguments.runs):
                for contestant, run in contestants.items():
                    results[contestant].append(run())
            ours = median(next(iter(results.values())), "value")
            for contestant, runs in results.items():
                value, peak = median(runs, "value"), median(runs, "peak_rss_bytes")
                # More is better for tokens a second, less for seconds: the ratio is ours over theirs in speed.
                ratio = value / ours if unit == "s" else ours / value
                print(f"  {contestant:62}{value:10.2f}  ours is {ratio:5.2f} x   {peak / 2**20:7.0f} MiB", flush=True)
                figures = {"case": name, "unit": unit, "contestant": contestant, "median": value, "runs": [r["value"] for r in runs]}
                extra = {"peak_rss_bytes": peak} | {name: runs[-1].get(name) for name in ("removed", "losses", "system")}
                save(arguments, figures | {k: v for k, v in extra.items() if v is not None} | about | {"ceiling": ceiling})
        for order in sitting.compare_orders():
            same = "the same" if order["same"] else "NOT the same"
            print(f"\n{order['case']}: {same}\n  race {order['race']}\n  exact {order['exact']}", flush=True)
            save(arguments, order | about)
        if not arguments.order:
            print("\nremoval orders of race and exact sweep: not compared (--order N compares N rounds)")


def save(arguments, line):
    """Appends a line to the results, where they are kept."""
    if arguments.save:
        with arguments.save.open("a") as out:
            out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
