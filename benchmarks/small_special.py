"""Settings of small models that no name tells: those that depend on each other, or have no default."""

from typing import Any

_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_CONVOLUTIONS = {
    "conv_dim": [32, 32],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
_STAGES = {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
# Every layer of an assistant reads another model's cache.
_ASSISTANT = {
    "text_config": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    }
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

# Architectures whose settings depend on each other, or are needed, in a way that no name tells.
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},  # an attention layer among the four; its cache asks for one
    "bamba": {"attn_layer_indices": [1, 3]},  # an attention layer among the four
    "blt": {"num_hidden_layers": 4},  # its cache asks for it
    "blenderbot": {"encoder_layers": 4, "num_hidden_layers": 4},  # its cache counts the encoder's layers
    "cohere_compass_text": {  # its rotary embedding is built per kind of layer, and by default of no kind
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in set(_SLIDING)},
        "layer_types": _SLIDING,
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},  # has no default for the last
    "dia": {"delay_pattern": [0]},  # as many as streams
    "dia_decoder": {"num_channels": 1},  # else it takes several streams of tokens
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4, "per_layer_config": {}},  # else 42 layers
    "dots3_note_text": {"num_key_value_heads": 4},  # it has no groups of heads
    "esm": {"pad_token_id": 0, "mask_token_id": 3},  # has no defaults
    "esmc": {"num_key_value_heads": 4},  # it has no groups of heads
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},  # a quarter of the text's hidden size
    "gemma3n_text": {"layer_types": _SLIDING},  # the last layer is to be a full one
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},  # as many as layers
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},  # an attention layer among the four
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},  # an attention layer among the four
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},  # has no default
    "longcat_flash": {"head_dim": 8},  # not derived from its rotary part
    "mamba2": {"num_heads": 8},  # its only heads are those of the state space
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},  # an attention layer among the four
    "mimi": {"num_filters": 4, "upsample_groups": 32, "codebook_dim": 32, "vector_quantization_hidden_dimension": 32},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},  # one setting for all its heads
    "moonshine_streaming": {"num_key_value_heads": 4},  # has no default
    "musicgen_decoder": {"num_codebooks": 1},  # else it takes several streams of tokens
    "musicgen_melody_decoder": {"num_codebooks": 1},  # see musicgen
    "neomme": {"head_dim": 16},  # a quarter of it is to be a multiple of 4
    "nemotron3_5_transcribe_asr_audio": {"num_key_value_heads": 4},  # is saved with as many keys as queries
    "nemotron3_5_transcribe_word_timestamp": {"num_key_value_heads": 4},  # see above
    "nemotron3_diarization_audio": {"num_key_value_heads": 4},  # see above
    "pegasus_x": {"num_global_tokens": 4, "block_size": 16},
    "qwen4_exp_text": {  # its attention layers have an indexer, whose sizes have no default
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False},  # a product of sizes is to be the sequence's length
    "speecht5": _CONVOLUTIONS,
    "vibevoice_acoustic_tokenizer": _STAGES,
    "vibevoice_acoustic_tokenizer_encoder": _STAGES,
    "wav2vec2": _CONVOLUTIONS,
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # rounds its heads' sizes up to a multiple of 64
    "xmod": {"default_language": "en_XX"},  # has no default
    "zamba": {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16},  # see zamba
}
