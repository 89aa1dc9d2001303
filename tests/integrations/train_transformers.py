"""Train a tiny language model with transformers.Trainer: URI OPTIONS OUTPUT_DIR STEPS [KILL_AT] [MODE]."""

import hashlib
import json
import os
import signal
import sys
import time

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from asyncsync.integrations.transformers import AsyncsyncCallback, fetch_last

URI, OPTIONS, OUTPUT, STEPS = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
AT, MODE = int(sys.argv[5]) if len(sys.argv) > 5 else 0, sys.argv[6] if len(sys.argv) > 6 else "kill"


class Tokens(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


class Ends(TrainerCallback):
    """What happens at step AT, after a checkpoint has become durable."""

    def __init__(self, callback: AsyncsyncCallback) -> None:
        self.callback, self.blocked = callback, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if MODE == "jit" and state.global_step >= AT:
            time.sleep(0.8)  # the trainer waits for a second signal before it saves
        if state.global_step != AT:
            return
        if MODE == "kill":
            self.callback._last.durable()
            os.kill(os.getpid(), signal.SIGKILL)
        if MODE == "raise":
            raise RuntimeError("training failed")
        if MODE == "jit":
            os.kill(os.getpid(), signal.SIGTERM)


class Timed(AsyncsyncCallback):
    blocked = 0.0

    def on_save(self, *args, **kwargs):
        began = time.perf_counter()
        super().on_save(*args, **kwargs)
        Timed.blocked += time.perf_counter() - began


def fine_tuning(model, settings, callbacks):
    """trl's trainer with an adapter of peft, on tokens that need no text."""
    from datasets import Dataset as Table
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, **{f"w{number}": number for number in range(1, 64)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<pad>"
    )
    args = SFTConfig(OUTPUT, bf16=False, **settings)
    data = Table.from_dict({"input_ids": [item["input_ids"].tolist() for item in map(Tokens().__getitem__, range(64))]})
    adapter = LoraConfig(target_modules=["c_attn"], r=2)
    return args, SFTTrainer(
        model, args, train_dataset=data, processing_class=tokenizer, peft_config=adapter, callbacks=callbacks
    )


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=16))
    if MODE == "peft":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], r=2))
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "save_steps": 4 if MODE != "jit" else 100,
        "save_total_limit": 1,
        "logging_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
        **({"enable_jit_checkpoint": True} if MODE == "jit" else {}),
    }
    callback = Timed(URI, storage_options=OPTIONS)
    callbacks = [callback, Ends(callback)]
    if MODE == "trl":
        args, trainer = fine_tuning(model, settings, callbacks)
    else:
        args = TrainingArguments(OUTPUT, **settings)
        trainer = Trainer(model=model, args=args, train_dataset=Tokens(), callbacks=callbacks)
    last = fetch_last(URI, args.output_dir, storage_options=OPTIONS)
    trainer.train(resume_from_checkpoint=last)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    print(json.dumps({"from": last, "weights": digest.hexdigest(), "blocked": Timed.blocked}))


main()
