"""The file that ONNX Runtime GenAI reads beside a graph: names, shapes and tokens that end a text."""

from typing import Any

from transformers import GenerationConfig

from prefold.export.trace import CacheShape

# Of a generation config, what its search has by the same name.
_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty", "length_penalty")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def genai_config(model: Any, inputs: list[str], cache: CacheShape, file: str, context: int) -> dict[str, Any]:
    """Return the content of ``genai_config.json`` for a decoder of any type, with room for ``context`` tokens."""
    config, generation = model.config.get_text_config(), model.generation_config or GenerationConfig()
    tokens = {name: _first_known(name, generation, config) for name in _TOKENS}
    tokens["pad_token_id"] = _one(tokens["eos_token_id"] if tokens["pad_token_id"] is None else tokens["pad_token_id"])
    search = {name: getattr(generation, name, None) for name in _SEARCH}
    return {
        "model": {
            "type": "decoder",
            "context_length": context,
            "vocab_size": config.vocab_size,
            **_given(tokens),
            "decoder": _decoder(config, inputs, cache, file),
        },
        "search": _given(search) | {"max_length": context, "past_present_share_buffer": False},
    }


def _decoder(config: Any, inputs: list[str], cache: CacheShape, file: str) -> dict[str, Any]:
    past = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    present = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    return {
        "session_options": {"provider_options": []},
        "filename": file,
        "head_size": cache.width,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": cache.layers,
        "num_key_value_heads": cache.heads,
        "inputs": {name: name for name in inputs} | past,
        "outputs": {"logits": "logits"} | present,
    }


def _first_known(name: str, *configs: Any) -> Any:
    return next((found for each in configs if (found := getattr(each, name, None)) is not None), None)


def _one(tokens: Any) -> Any:
    return tokens[0] if isinstance(tokens, list) else tokens


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
