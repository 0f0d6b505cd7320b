"""The configurations for `accelerate launch`: read by accelerate itself, they set up what their names say."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

import hf_robust_ft

FOLDER = Path(hf_robust_ft.__file__).parent / "recipes" / "accelerate"
NAMES = {  # file: (FSDP2, nodes)
    "ddp_8gpu.yaml": (False, 1),
    "ddp_nodes.yaml": (False, 2),
    "fsdp2_8gpu.yaml": (True, 1),
    "fsdp2_nodes.yaml": (True, 2),
}


def test_every_file_is_known_here():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_what_the_name_says(name):
    sharded, nodes = NAMES[name]
    config = load_config_from_file(str(FOLDER / name))
    assert config.distributed_type == (DistributedType.FSDP if sharded else DistributedType.MULTI_GPU)
    assert (config.num_machines, config.num_processes) == (nodes, 8 * nodes)
    assert config.mixed_precision == "no" and config.use_cpu is False
    assert ("--num_machines" in (FOLDER / name).read_text()) == (nodes > 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_launcher_sets_up_what_the_name_says(name, monkeypatch):
    sharded, nodes = NAMES[name]
    given = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if nodes > 1 else []
    words = ["--config_file", str(FOLDER / name), *given, "-m", "hf_robust_ft", "train", "--bf16"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(args)
    assert int(args.nnodes if nodes > 1 else 1) == nodes and int(args.nproc_per_node) == 8
    if nodes > 1:
        assert args.node_rank == 1 and args.rdzv_endpoint == "10.0.0.1:29500"
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == sharded
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    if sharded:
        for variable, value in environment.items():
            if variable.startswith("FSDP_"):
                monkeypatch.setenv(variable, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.state_dict_type.name == "FULL_STATE_DICT"
