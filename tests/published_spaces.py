"""The published LoNAS search spaces (IntelLabs/Hardware-Aware-Automated-Machine-Learning), generated from their structure."""

from typing import Any

LLAMA = "PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/LlamaModel[model]/ModuleList[layers]"
BLOOM = "PeftModelForCausalLM/LoraModel[base_model]/BloomForCausalLM[model]/BloomModel[transformer]/ModuleList[h]"
BERT = (
    "PeftModelForSequenceClassification/LoraModel[base_model]/BertForSequenceClassification[model]/BertModel[bert]/"
    "BertEncoder[encoder]/ModuleList[layer]"
)
FROZEN, PLAIN = "NNCFUserSelfLinear[self_linear]/linear_0", "linear_0"  # a layer with an adapter, and one without
LORA_A, LORA_B = (f"ModuleDict[{factor}]/NNCFLinear[default]/linear_0" for factor in ("lora_A", "lora_B"))


def llama_7b() -> dict[str, Any]:
    """32 layers; the shared rank of q, k, v; the width of gate and up; the shared rank of gate and up."""
    layers = [f"{LLAMA}/LlamaDecoderLayer[{index}]" for index in range(32)]
    groups = [[f"{at}/LlamaAttention[self_attn]/Linear[{m}_proj]/{LORA_A}" for m in "qkv"] for at in layers]
    mlps = [[f"{at}/LlamaMLP[mlp]/Linear[{m}_proj]" for m in ("gate", "up")] for at in layers]
    groups += [[f"{m}/{end}" for m in mlp for end in (FROZEN, LORA_B)] for mlp in mlps]
    groups += [[f"{m}/{LORA_A}" for m in mlp] for mlp in mlps]
    widths = [[32, 28]] * 32 + [[11008, 9632, 8256, 6880, 5504]] * 32 + [[32, 28]] * 32
    return _configuration(groups, widths, 256, {"epochs": 6, "width_indicator": 5}, CAUSAL_SEARCH)


def bloomz_7b() -> dict[str, Any]:
    """30 layers; the rank of the fused q, k, v; the width of an MLP without a gate; its rank."""
    layers = [f"{BLOOM}/BloomBlock[{index}]" for index in range(30)]
    groups = [[f"{at}/BloomAttention[self_attention]/Linear[query_key_value]/{LORA_A}"] for at in layers]
    mlps = [f"{at}/BloomMLP[mlp]/Linear[dense_h_to_4h]" for at in layers]
    groups += [[f"{mlp}/{end}" for end in (FROZEN, LORA_B)] for mlp in mlps] + [[f"{mlp}/{LORA_A}"] for mlp in mlps]
    widths = [[32, 28]] * 30 + [[16384, 14336, 12288, 10240, 8192]] * 30 + [[32, 28]] * 30
    search = CAUSAL_SEARCH | {"eval_metric_name": "eval_accuracy"}
    return _configuration(groups, widths, 256, {"epochs": 8, "width_indicator": 5}, search)


def bert_base_rte() -> dict[str, Any]:
    """12 layers; heads of q, k, v (k has no adapter), the rank of q and v, the width of an MLP without adapters."""
    layers = [f"{BERT}/BertLayer[{index}]" for index in range(12)]
    attentions = [f"{at}/BertAttention[attention]/BertSelfAttention[self]" for at in layers]
    heads = (f"Linear[query]/{FROZEN}", f"Linear[query]/{LORA_B}", f"NNCFLinear[key]/{PLAIN}")
    heads += (f"Linear[value]/{FROZEN}", f"Linear[value]/{LORA_B}")
    groups = [[f"{at}/{end}" for end in heads] for at in attentions]
    groups += [[f"{at}/Linear[{m}]/{LORA_A}" for m in ("query", "value")] for at in attentions]
    groups += [[f"{at}/BertIntermediate[intermediate]/NNCFLinear[dense]/{PLAIN}"] for at in layers]
    widths = [[768, width] for width in (384, 320, 256, 512, 512, 704, 576, 576, 640, 192)] + [[768, 704, 192], [768, 320]]
    middle = (2634, 2634, 2627, 2676, 2628, 2662, 2706, 2687, 2616, 2400, 2198, 1940)
    narrow = (216, 181, 208, 226, 179, 175, 182, 169, 165, 160, 163, 150)
    widths += [[8, 4, 2]] * 12 + [[3072, *pair] for pair in zip(middle, narrow, strict=True)]
    search = {"num_evals": 1000, "population": 40, "ref_acc": 0.85, "acc_delta": 0.01}
    content = _configuration(groups, widths, 128, {"epochs": 80, "width_indicator": 4}, search)
    outputs = [f"{at}/BertAttention[attention]/BertSelfOutput[output]/NNCFLinear[dense]/{PLAIN}" for at in layers]
    content["bootstrapNAS"]["training"]["elasticity"]["width"]["add_dynamic_inputs"] = outputs
    content["bootstrapNAS"]["training"]["sandwich_rule"] = False
    content["input_info"].insert(1, {**content["input_info"][0], "keyword": "token_type_ids"})
    return content


CAUSAL_SEARCH = {"num_evals": 200, "population": 8, "ref_acc": 0.45, "acc_delta": 0.01}


def _configuration(
    groups: list[list[str]], widths: list[list[int]], length: int, stage: dict[str, Any], search: dict[str, Any]
) -> dict[str, Any]:
    shape = {"sample_size": [1, length], "type": "long"}
    stage = {"train_dims": ["width"], "depth_indicator": 1, "init_lr": 3e-4, "sample_rate": 1, **stage}
    none = {"num_bn_adaptation_samples": 0}
    return {
        "input_info": [{**shape, "keyword": "input_ids"}, {**shape, "keyword": "attention_mask"}],
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "frozen_layers_allowed": True,
                "progressivity_of_elasticity": ["width"],
                "batchnorm_adaptation": none,
                "schedule": {"list_stage_descriptions": [{**stage, "epochs_lr": stage["epochs"]}]},
                "elasticity": {
                    "available_elasticity_dims": ["width"],
                    "width": {"overwrite_groups": groups, "overwrite_groups_widths": widths},
                },
            },
            "search": {"algorithm": "NSGA2", "batchnorm_adaptation": none, **search},
        },
    }
