"""verl takes these from the environment as it is imported."""

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")  # whose engine runs on the processor, too
os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl_cpu")
