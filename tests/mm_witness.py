"""A hook for the training tests: it writes down every loss, and can freeze batch norms or kill the process."""

import os
import signal
from pathlib import Path

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)  # pytest collects this file by another name than configs import it by
class Witness(Hook):
    def __init__(self, file, freeze_norms=False, kill_at=None):
        self.file = Path(file)
        self.freeze_norms = freeze_norms
        self.kill_at = kill_at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.freeze_norms:
            for module in runner.model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs["loss"].detach().clone()
        all_reduce(loss, "mean")  # nothing changes in a single process
        if is_main_process():
            with self.file.open("a") as file:
                file.write(f"{runner.iter} {loss.item()!r}\n")
