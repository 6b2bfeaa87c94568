"""verl on a machine without an accelerator, for tests: a platform, and a rollout server.

verl imports this module by ``VERL_USE_EXTERNAL_MODULES`` in every process.
"""

# The platform first: what comes after it asks which one there is.
from verl_cpu import platform  # noqa: F401, I001
from verl_cpu import server  # noqa: F401
from verl_cpu import spy  # noqa: F401
from verl_cpu import transfer  # noqa: F401
