"""The default engine: Prefix-RFT and its family on TRL's trainers."""

from prefix_rft.engines.trl.config import PrefixRFTConfig
from prefix_rft.engines.trl.imitation import DemonstrationTrainer
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.engines.trl.trainer import PrefixRFTTrainer

__all__ = ["DemonstrationConfig", "DemonstrationTrainer", "PrefixRFTConfig", "PrefixRFTTrainer"]
