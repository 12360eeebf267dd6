"""Types and ranges of the fields of a config.json that we and the libraries read.

No torch; pydantic, so it is not imported with the families.
"""

from typing import Annotated, Any, Literal, Required

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on only

MAX_SIZE = 2**24  # of an axis; the largest vocabularies have 2^18 entries
MAX_LAYERS = 1000  # the deepest models have 126

Layers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=-1, lt=MAX_SIZE)]  # LLaMA 1 writes -1 for none
TokenIds = TokenId | list[TokenId] | None


class ModelFields(TypedDict, total=False):
    """`config.json`."""

    model_type: Required[str]
    architectures: list[str] | None
    vocab_size: Size
    type_vocab_size: Size
    hidden_size: Size
    intermediate_size: Size | list[Size]
    shared_intermediate_size: Size
    mamba_n_heads: Size | None
    mamba_n_groups: Size | None
    mamba_d_state: Size | None
    mamba_d_conv: Size | None
    mamba_expand: Size | None
    mamba_d_head: Size | Literal["auto"] | None
    mamba_chunk_size: Size | None
    mamba_conv_bias: bool | None
    mamba_proj_bias: bool | None
    num_local_experts: Annotated[int, Field(ge=0, le=MAX_SIZE)] | None
    vocab_size_per_layer_input: Size
    hidden_size_per_layer_input: Size
    num_kv_shared_layers: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    laurel_rank: Size
    altup_num_inputs: Annotated[int, Field(ge=1, le=64)]
    altup_active_idx: Annotated[int, Field(ge=0)]
    altup_coef_clip: Positive | None
    altup_correct_scale: bool
    activation_sparsity_pattern: list[Share] | None
    dim: Size
    n_embed: Size
    hidden_dim: Size
    num_hidden_layers: Layers
    n_layer: Layers
    n_layers: Layers
    num_attention_heads: Size
    n_head: Size
    n_heads: Size
    num_key_value_heads: Size | None
    head_dim: Size | None
    hidden_act: str | None
    hidden_activation: str | None
    max_position_embeddings: Annotated[int, Field(ge=1)] | None
    original_max_position_embeddings: Annotated[int, Field(ge=1)] | None
    rms_norm_eps: Share
    layer_norm_eps: Share
    layer_norm_epsilon: Share
    rope_theta: Positive | None
    rope_local_base_freq: Positive | None
    rotary_emb_base: Positive | None
    rope_scaling: dict[str, Any] | None
    rope_parameters: dict[str, Any] | None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None
    rotary_pct: Annotated[float, Field(gt=0, le=1)] | None
    query_pre_attn_scalar: Positive | None
    embedding_multiplier: Positive
    residual_multiplier: Positive
    attention_multiplier: Positive
    logits_scaling: Positive
    attn_logit_softcapping: Positive | None
    final_logit_softcapping: Positive | None
    sliding_window: Annotated[int, Field(ge=1)] | None
    layer_types: list[str] | None
    no_rope_layers: list[Annotated[int, Field(ge=0, le=1)]] | None
    no_rope_layer_interval: Annotated[int, Field(ge=1)]
    attention_bias: bool | None
    mlp_bias: bool | None
    attention_dropout: Share | None
    hidden_dropout: Share | None
    attn_pdrop: Share | None
    classifier_dropout: Share | None
    hidden_dropout_prob: Share
    dropout: Share
    seq_classif_dropout: Share
    attention_probs_dropout_prob: Share
    embd_pdrop: Share | None
    resid_pdrop: Share | None
    initializer_range: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tie_word_embeddings: bool | None
    use_parallel_residual: bool
    apply_residual_connection_post_layernorm: bool
    slow_but_exact: bool
    is_decoder: bool
    add_cross_attention: bool
    position_embedding_type: str | None
    relative_attention_num_buckets: Size
    problem_type: str | None
    num_labels: Size
    id2label: dict[str, str] | None
    label2id: dict[str, int] | None
    dtype: str | None
    torch_dtype: str | None
    bos_token_id: TokenIds
    eos_token_id: TokenIds
    pad_token_id: TokenId | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    bad_words_ids: list[list[int]] | None
    per_layer_config: dict[str, dict[str, Size]] | None
    removed_blocks: list[str] | None
    quantization_config: None
