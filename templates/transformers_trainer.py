"""Distil a teacher into a student with transformers and accelerate.

``CONFIG`` holds the settings of the run. Next to this file, ``kd/train/setup.py`` builds the parts of a run,
``kd/train/loop.py`` is the training loop, ``kd/losses/`` has the losses and ``kd/rollouts/`` the sampler.
Run it with ``python train.py``; stop it with Ctrl-C and resume with ``python train.py --resume``.
"""

from __future__ import annotations

import sys

from skill_kd.kd.config import Config, output_folder
from skill_kd.kd.model.loading import load_student
from skill_kd.kd.reporting import reporting
from skill_kd.kd.train.loop import Run, train
from skill_kd.kd.train.setup import open_accelerator, open_run
from skill_kd.kd.train.strategy import open_strategy

CONFIG = Config.read(sys.argv[1])  # kd: config
FOLDER = output_folder(__file__, sys.argv)


def prepare() -> Run:
    """Load the student, or grow it from the teacher's layers, and build the run."""
    accelerator = open_accelerator(CONFIG, FOLDER)
    strategy = open_strategy(CONFIG, accelerator)
    student, tokenizer = load_student(CONFIG.student, CONFIG.teacher, weights=strategy.loads_weights)
    if CONFIG.training.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    return open_run(CONFIG, FOLDER, accelerator, strategy, student, tokenizer)


if __name__ == "__main__":
    with reporting():
        train(prepare(), resume="--resume" in sys.argv)
