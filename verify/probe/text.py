"""Text as a checkpoint reads it: token ids, decoded text, a chat, and the classes of transformers for it."""

from itertools import product
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY

from prefold.convert import ModelFailed, model_code
from prefold.convert.model import loaded_by
from prefold.verify.probe.passages import PASSAGES

_AUTO_CLASSES: tuple[Any, ...] = (AutoTokenizer, AutoProcessor, AutoFeatureExtractor, AutoImageProcessor)
# Words in many scripts, and how they may stand: tokenizers differ in prefixes, in spaces, and in what they normalize.
_WORDS = (
    "Hello", "don't", "naïve café", "ﬁne ﬂow", "e\u0301 é", "Straße", "Привет, мир", "Καλημέρα", "שלום", "مرحبا",
    "नमस्ते", "สวัสดี", "你好，世界", "こんにちは", "안녕하세요", "ԲԱՐԵՎ", "👩\u200d👧 🇫🇷", "∑ x² ≤ √n", "12,345.67",
    "0x1F", "a_b.c()", "if (x) {\n\treturn y;\n}", "<b>&amp;</b>", "http://a.b/c?d=e", "\u200bzero\u00a0width\ufeff",
    "\x00\x7f", "ｆｕｌｌ",
)  # fmt: skip
_FORMS = ("{}", " {}", "{} ", "\n{}", "{}\n\n", "\t{}", "  {}  {}", "{0}{0}", "{0} [MASK] {0}", "x{}")
_CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "  A table. "},
    {"role": "user", "content": "{{ 1 + 1 }}\n"},
]


def sample_texts() -> list[str]:
    """Return some hundred texts: scripts, code, whitespace, prose."""
    formed = [form.format(word, word) for form, word in product(_FORMS, _WORDS)]
    return [*formed, "", " ", "\n", *PASSAGES, *(line for passage in PASSAGES for line in passage.splitlines())]


def measure_text(folder: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """Load a checkpoint's tokenizer and processors as a user does; returns their classes and results."""
    found = {auto.__name__: _loaded(auto, folder, trust_remote_code=trust_remote_code) for auto in _AUTO_CLASSES}
    measured: dict[str, Any] = {"classes": {name: _name(each) for name, each in found.items()}}
    extractor, processor = found["AutoFeatureExtractor"], found["AutoProcessor"]
    if hasattr(extractor, "to_dict"):
        measured["features"] = extractor.to_dict()
    config = _loaded(AutoConfig, folder, trust_remote_code=trust_remote_code)
    measured["tasks"] = _tasks(config) if isinstance(config, PreTrainedConfig) else []
    tokenizer = found["AutoTokenizer"]
    if isinstance(tokenizer, ModelFailed):
        tokenizer = getattr(processor, "tokenizer", None)
    return measured | (_tokenized(tokenizer) if tokenizer is not None else {})


def _loaded(auto: Any, folder: str, *, trust_remote_code: bool) -> Any:
    try:
        with model_code():
            return auto.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ModelFailed as failure:
        return failure


def _name(loaded: Any) -> str:
    return str(loaded).partition(":")[0] if isinstance(loaded, ModelFailed) else type(loaded).__name__


def _tasks(config: PreTrainedConfig) -> list[str]:
    """Return the tasks whose pipelines load a checkpoint as the architecture that it names."""
    architectures = getattr(config, "architectures", None) or []
    tasks: dict[str, Any] = PIPELINE_REGISTRY.supported_tasks
    return [
        name for name, task in tasks.items() if any(loaded_by(auto, config) in architectures for auto in task["pt"])
    ]


def _tokenized(tokenizer: Any) -> dict[str, Any]:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    texts = sample_texts() + [f"a {token} b{token}" for token in tokenizer.all_special_tokens]
    try:
        with model_code():
            ids = [tokenizer(text)["input_ids"] for text in texts]
            decoded = [tokenizer.decode(each) for each in ids]
    except ModelFailed as failure:
        return {"special": special, "texts": _name(failure)}
    chat = _chat(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    results = {text: [one, other] for text, one, other in zip(texts, ids, decoded, strict=True)}
    return {"special": special, "special_ids": tokenizer.all_special_ids, "texts": results, "chat": chat}


def _chat(tokenizer: Any) -> str:
    """Return a rendered chat, or the name of the error that a template raises over it."""
    try:
        with model_code():
            return str(tokenizer.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True))
    except ModelFailed as failure:
        return _name(failure)
