"""A seeded synthetic LoRA adapter: not trained, both factors non-zero, so that an error in slicing or merging shows.

    python benchmarks/synthetic_adapter.py models/smollm2-135m models/synthetic-adapter

The cost of an export does not depend on training. Its answers mean nothing.
"""

import argparse
import warnings
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"]  # those of the published adapters


def write_adapter(base: Path, output: Path, rank: int = 32, alpha: int = 64, seed: int = 0, strength: float = 0.1) -> None:
    """Write a PEFT adapter whose delta has `strength` times the root mean square of the weight it is added to."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for module in model.modules():
        if not hasattr(module, "lora_A"):
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        size = strength * module.base_layer.weight.detach().float().std()
        torch.nn.init.normal_(a, std=a.shape[1] ** -0.5)
        torch.nn.init.normal_(b, std=float(size) * (a.shape[1] / rank) ** 0.5 / module.scaling["default"])
    model.peft_config["default"].base_model_name_or_path = str(base)
    with warnings.catch_warnings():  # PEFT looks for the base on the hub to see whether its vocabulary changed
        warnings.simplefilter("ignore")
        model.save_pretrained(output, save_embedding_layers=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--alpha", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_adapter(arguments.base, arguments.output, arguments.rank, arguments.alpha, arguments.seed)
    print(f"{arguments.output}: synthetic adapter (seed {arguments.seed}), not trained")


if __name__ == "__main__":
    main()
