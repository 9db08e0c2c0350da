"""Distill a teacher into a student with transformers and accelerate.

``CONFIG`` holds the values of the spec. ``prepare`` loads the student, and ``open_run`` in ``kd/train/setup.py`` builds
the other parts of a run. ``train`` in ``kd/train/loop.py`` is the training loop. An update has eight steps. Their code
is in ``kd/``, next to this file:

1. Choose the prompts: ``kd/train/experience.py``, ``Experience.batch``.
2. Sample the rollouts: ``kd/rollouts/sampler.py``, ``Sampler.sample``.
3. Get the teacher's distribution: ``kd/teacher/teacher.py``, ``Teacher.view``.
4. Compute the weights: ``kd/losses/estimators.py``, ``paper_weights`` or ``exact_weights``.
5. Compute the loss: ``kd/model/student.py``, ``StudentWithLoss.forward``.
6. Accumulate the gradients: ``kd/train/loop.py``, ``add_up_gradients``.
7. Clip and step: ``kd/train/stepper.py``, ``Stepper.norm`` and ``Stepper.step``.
8. Log and checkpoint: ``kd/train/journal.py``, ``Journal.update``, and ``kd/train/checkpoints.py``,
   ``Checkpoints.save``.

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
