"""The tasks, the model types of each, and the class that a user loads a type of a task with."""

from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)


class Key(NamedTuple):
    """A model type, for a task: ``masked/bert``."""

    task: str
    model_type: str

    def __str__(self) -> str:
        return f"{self.task}/{self.model_type}"

    @classmethod
    def read(cls, text: str) -> "Key":
        """Read what ``str`` writes."""
        return cls(*text.split("/", 1))


TASKS = ("causal", "masked", "seq2seq")
_TYPES = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
KEYS = tuple(Key(task, model_type) for task in TASKS for model_type in _TYPES[task])


def auto_class(key: Key) -> Any:
    """Return the class that loads a type for its task; of two that translate, the one that reads text."""
    if key.task == "seq2seq" and key.model_type not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSpeechSeq2Seq
    return {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}[key.task]
