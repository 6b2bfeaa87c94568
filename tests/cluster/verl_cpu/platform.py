"""A platform for verl that computes on the processor."""

import types
from contextlib import contextmanager

import psutil
import torch
from torch.distributed import fsdp
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed


class DeviceModule(types.ModuleType):
    """torch.cpu with what verl calls on an accelerator's module."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)


class PlainOffload(fsdp.CPUOffloadPolicy):
    """For the reference policy, whose weights verl pins, which takes an accelerator."""

    def __init__(self, pin_memory=False):
        super().__init__(pin_memory=False)


fsdp.CPUOffloadPolicy = PlainOffload


def _nothing(*args, **kwargs):
    return None


def _zero(*args, **kwargs):
    return 0


module = DeviceModule("verl_cpu_device")
for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
    setattr(module, name, _zero)
for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device"):
    setattr(module, name, _nothing)
module.mem_get_info = lambda *a: (psutil.virtual_memory().available, psutil.virtual_memory().total)
module.get_device_name = lambda *a: "cpu"
module.get_rng_state = lambda *a: torch.get_rng_state()
module.set_rng_state = lambda state, *a: torch.set_rng_state(state)
module.manual_seed = torch.manual_seed
module.is_available = lambda: False  # what is said to an accelerator is left unsaid


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """Chosen by ``VERL_PLATFORM=cpu`` alone."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = module

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return False

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    # verl counts GPUs and NPUs only: these are Ray's logical ones, behind which nothing stands.
    def ray_resource_name(self):
        return "GPU"

    def ray_resource_options(self, num_gpus):
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self):
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


# verl asks for "cpu:gloo,cpu:gloo" where the device is the processor, and torch refuses that.
_process_group = distributed.initialize_global_process_group_ray


def _once(timeout_second=None, backend=None):
    return _process_group(timeout_second=timeout_second, backend=backend or "cpu:gloo")


distributed.initialize_global_process_group_ray = _once
