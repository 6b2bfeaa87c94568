"""Run by a test in two gloo processes: each chooses the places of a sparse adapter.

Usage: sparse_two_processes.py FOLDER SCORE...
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from peft import get_peft_model

from prefix_rft.engines.new_adapter import adapter_config
from prefix_rft.engines.trl.update.sparse_adapter import choose_places
from tiny import make_imitation_config, make_model, make_rows, make_tokenizer


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    found = {}
    for name in names:
        model, tokenizer = make_model(make_tokenizer(), layers=2), make_tokenizer()
        args = make_imitation_config(folder / "run")
        state = PartialState(cpu=True)
        assert state.num_processes == 2
        options = {"peft_type": "SHIRA", "r": 2, "target_modules": ["q_proj"], "mask_type": name}
        config = adapter_config(options)
        choose_places(config, model, tokenizer, make_rows(8), args)
        layers = get_peft_model(model, config).get_base_model().named_modules()
        found[name] = {
            n: m.shira_indices["default"] for n, m in layers if hasattr(m, "shira_indices")
        }
    torch.save(found, folder / f"rank{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
