"""verl on a machine without an accelerator, for tests: a platform, and a rollout server.

verl imports this module by ``VERL_USE_EXTERNAL_MODULES`` in every process.
"""

from verl_cpu import platform, server  # noqa: F401
