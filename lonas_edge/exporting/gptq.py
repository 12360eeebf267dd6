"""INT4 by optimum-intel with GPTQ on texts of one's own, which optimum-cli (2.2) cannot read.

    python -m lonas_edge.exporting.gptq --model CHECKPOINT --texts TEXTS.json --group-size 64 OUTPUT

TEXTS.json is a list of texts. `compress` compares its result with this file.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Store a checkpoint and its tokenizer."""
    from optimum.exporters.openvino.convert import export_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--group-size", type=int, default=-1)
    parser.add_argument("--group-size-fallback")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    texts = json.loads(options.texts.read_text(encoding="utf-8"))
    quantization = OVWeightQuantizationConfig(
        bits=4,
        sym=True,
        gptq=True,
        ratio=1.0,
        group_size=options.group_size,
        group_size_fallback=options.group_size_fallback,
        dataset=texts,
        num_samples=len(texts),
        tokenizer=options.model,
    )
    model = OVModelForCausalLM.from_pretrained(options.model, export=True, quantization_config=quantization)
    model.save_pretrained(options.output)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.save_pretrained(options.output)
    export_tokenizer(tokenizer, options.output)


if __name__ == "__main__":
    main()
