"""A vLLM plug-in for tests: on a CPU, linear layers keep their weights.

vLLM's CPU back end packs them for oneDNN after loading and empties the parameter, so that
``model.load_weights``, which TRL and verl call at each sync, has nothing left to write to. Without
the packers it calls ``torch.nn.functional.linear`` on the parameter itself. vLLM loads the plug-in
in each of its processes, by the entry point in the ``.dist-info`` folder beside it; the other such
folder gives ``vllm serve`` the distribution that it asks for by name.
"""

import torch


def keep_weights() -> None:
    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils
    from vllm.platforms.cpu import CpuPlatform

    ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *sizes: False
    # Without this a float32 checkpoint is sampled from in bfloat16.
    CpuPlatform.supported_dtypes = [torch.float32, torch.bfloat16, torch.float16]
