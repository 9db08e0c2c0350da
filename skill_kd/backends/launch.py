"""Start several processes with accelerate: from ``run`` on one machine, from ``launch.sh`` on many."""

from __future__ import annotations

import json

from skill_kd.spec import Spec

CONFIG, SCRIPT = "accelerate.yaml", "launch.sh"


def several(spec: Spec) -> bool:
    """Return True if the run needs a launcher."""
    return spec.launch.processes > 1


def arguments(spec: Spec) -> list[str]:
    """Return the arguments of ``accelerate launch`` on one machine."""
    # The script sets precision and sharding itself, so they are the same under every launcher. Without the last flag,
    # accelerate silently starts one process if it finds fewer than two GPUs. Port 0 is a free one: two runs that start
    # at the same moment would otherwise meet at port 29500.
    plain = ["--num_processes", str(spec.launch.processes), "--num_machines", "1", "--main_process_port", "0"]
    return [*plain, "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]


def files(spec: Spec) -> dict[str, str]:
    """Return files that start ``train.py`` without skill-kd, by name: accelerate's configuration and a shell script.

    Return nothing for one process. The script works on one machine, on each of several, and under Slurm.
    """
    return {CONFIG: _config(spec), SCRIPT: _script(spec)} if several(spec) else {}


def _config(spec: Spec) -> str:
    """Return the configuration of accelerate as YAML. Every value is written as JSON."""
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": spec.launch.nodes,
        "num_processes": spec.launch.processes,
        "mixed_precision": "no",
        **({"main_process_port": 0} if spec.launch.nodes == 1 else {}),
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())


_HEAD = """\
#!/bin/bash
# Starts the train.py of this folder in all processes. Arguments, such as --resume, are passed to train.py.
# Call it in the directory that the paths of the spec are relative to:
"""
_HERE = "#   bash {name}/launch.sh\n"
_EACH = """\
#   on every machine (here the first):  NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 bash {name}/launch.sh
"""
_SLURM = """\
#   with Slurm:  sbatch {name}/launch.sh      (first add what your cluster requires: partition, account, time)
"""
_TORCHRUN = "#   with torchrun instead:  torchrun {nodes}--nproc-per-node={each} {name}/train.py\n"
_NODES = "--nnodes={nodes} --node-rank=$NODE_RANK --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT "
_BODY = """\
#
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={each}
#SBATCH --output=slurm-%j.log
# Five minutes before the time limit, train.py gets SIGTERM: it writes a checkpoint and stops. Then use --resume.
#SBATCH --signal=TERM@300
set -euo pipefail
folder=$(dirname -- "$0")
if [ -n "${{SLURM_JOB_ID:-}}" ] && [ -z "${{STARTED_ON_EVERY_MACHINE:-}}" ]; then
  # Slurm runs a copy of this file in another folder.
  folder=$(dirname "$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\\(.*\\/launch\\.sh\\).*/\\1/p')")
  # sed reads all of its input. head would exit early, and pipefail would then end the job.
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
  export MASTER_ADDR STARTED_ON_EVERY_MACHINE=1
  exec srun bash "$folder/launch.sh" "$@"
fi
"""
_ONE = 'exec accelerate launch --config_file "$folder/accelerate.yaml" "$folder/train.py" "$@"\n'
_MANY = """\
rank=${NODE_RANK:-${SLURM_NODEID:?NODE_RANK is not set}}
exec accelerate launch --config_file "$folder/accelerate.yaml" --machine_rank "$rank" \\
  --main_process_ip "${MASTER_ADDR:?is not set}" --main_process_port "${MASTER_PORT:-29500}" "$folder/train.py" "$@"
"""


def _script(spec: Spec) -> str:
    """Return a shell script that is also a Slurm batch job; its options are shell comments."""
    nodes = spec.launch.nodes
    values = {"name": spec.name, "nodes": nodes, "each": spec.launch.processes // nodes}
    head = _HEAD + (_HERE if nodes == 1 else _EACH).format(**values) + _SLURM.format(**values)
    head += _TORCHRUN.format(**{**values, "nodes": _NODES.format(**values) if nodes > 1 else ""})
    return head + _BODY.format(**values) + (_ONE if nodes == 1 else _MANY)
