"""Train a tiny model with Lightning: URI OPTIONS TWIN DIRPATH STEPS [KILL_AT] [MODE]."""

import hashlib
import importlib
import json
import os
import signal
import sys
import time

import torch

from asyncsync.integrations.lightning import AsyncsyncCheckpointIO

URI, OPTIONS, TWIN, DIRPATH, STEPS = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5])
AT, MODE = int(sys.argv[6]) if len(sys.argv) > 6 else -1, sys.argv[7] if len(sys.argv) > 7 else "kill"
L = importlib.import_module("lightning.pytorch" if TWIN == "lightning" else "pytorch_lightning")


class Model(L.LightningModule):
    def __init__(self, io: AsyncsyncCheckpointIO) -> None:
        super().__init__()
        self.io = [io]
        self.layer = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    def training_step(self, batch, index):
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("loss", loss)
        if self.global_step == AT and MODE == "kill":
            self.io[0]._running().sync_up()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.global_step == AT and MODE == "raise":
            raise RuntimeError("training failed")
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    L.seed_everything(1, verbose=False)
    # one batch: Lightning itself resumes no data loader within an epoch
    data = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data, (data[:, 0] > 0).long()), batch_size=4, shuffle=False
    )
    io = AsyncsyncCheckpointIO(DIRPATH, URI, storage_options=OPTIONS)
    save, blocked = io.save_checkpoint, []

    def timed(*args, **kwargs):
        began = time.perf_counter()
        save(*args, **kwargs)
        blocked.append(time.perf_counter() - began)

    io.save_checkpoint = timed
    checkpoints = L.callbacks.ModelCheckpoint(
        DIRPATH if MODE != "elsewhere" else f"{DIRPATH}-other",
        filename="{step}",
        save_top_k=2,
        monitor="loss",
        save_last=True,
        every_n_train_steps=4,
    )
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        plugins=[io],
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"devices": 2, "strategy": "ddp"} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}),
    )
    model = Model(io)
    last = io.fetch("last.ckpt")
    trainer.fit(
        model, loader, ckpt_path=last, **({"weights_only": False} if last and _takes_weights_only(trainer) else {})
    )
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    kept = sorted(os.listdir(DIRPATH))
    print(json.dumps({"from": last, "weights": digest.hexdigest(), "kept": kept, "blocked": sum(blocked)}))


def _takes_weights_only(trainer) -> bool:
    import inspect

    return "weights_only" in inspect.signature(trainer.fit).parameters


main()
