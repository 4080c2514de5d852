"""The request for one measurement."""

from dataclasses import dataclass, field

# Steps show that caches, masks and positions work behind a prompt; that rows are right is shown row by row.
NEW_TOKENS = 16
# So many values of a text's logits fit well into memory.
OUTPUT_VALUES = 1 << 25
# Reads are linear in the batch where there are no experts: two show the line, and a third that it is one.
READ_BATCHES = (1, 16, 64)
WIDE = ("float32", "float64")  # types in which rounding is far below what a fault does
TOP = 5  # vLLM's rule for a greedy token that differs: each side's must be among the other's five best


@dataclass(frozen=True)
class Job:
    """One checkpoint, to be measured in a process of its own.

    Attributes:
        dtype: to run it in, as torch spells it.
        auto_class: of transformers, to load it with.
        new_tokens: by which each prompt is continued.
        continued: a prompt with its continuation, for logits of a long prefill; empty to continue it first.
        table_folder: a folded checkpoint whose every row is compared with this (source) model's first layer.
        length: of the shortest text that the model runs, in tokens, of which reads are counted.
        made: by the parameter that it becomes, the name of every tensor there that was computed.
        with_text: run many random tokens, too, for a mean error.
        passages: of text, to be run for a mean error of what a user might ask.
        only_modules: collect nothing but a sketch of what every module returns for the first prompt.
        only_outputs: leave its reads uncounted, and take no cached steps.
        speed_against: another checkpoint, to be timed in turn with this one.
        trust_remote_code: run the code that the checkpoint in ``folder`` brings.
        tokenize: by code that the checkpoint brings, too; None to tokenize nothing.
        adapter: to be merged into it first.
        adapter_against: to be merged into the checkpoint of ``speed_against``.
    """

    folder: str
    dtype: str
    auto_class: str
    prompts: list[list[int]]
    new_tokens: int = NEW_TOKENS
    continued: list[int] = field(default_factory=list)
    table_folder: str | None = None
    length: int = 1
    made: dict[str, str] = field(default_factory=dict)
    with_text: bool = False
    passages: list[list[int]] = field(default_factory=list)
    only_modules: bool = False
    only_outputs: bool = False
    speed_against: str | None = None
    trust_remote_code: bool = True
    tokenize: bool | None = None
    adapter: str | None = None
    adapter_against: str | None = None

    @property
    def longest(self) -> int:
        """Tokens that the model is known to take at once: those of a prompt and of its continuation."""
        return max(map(len, self.prompts)) + self.new_tokens
