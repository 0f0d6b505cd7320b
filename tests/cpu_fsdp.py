"""FSDP on CPU, which torch can do and accelerate 1.15 leaves out: it ignores the plugin of processes without a GPU."""

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FullyShardedDataParallel


def allow_fsdp_on_cpu() -> None:
    """From here on an `Accelerator` of several CPU processes that is given an FSDP plugin uses it, as on GPUs."""
    make_state, wrap = AcceleratorState.__init__, FullyShardedDataParallel.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        make_state(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)

    def init_fsdp1(self, *args, device_id=None, **kwargs):
        wrap(self, *args, device_id=torch.device("cpu"), **kwargs)  # for it, "cpu:0" is another device

    AcceleratorState.__init__, FullyShardedDataParallel.__init__ = init, init_fsdp1
