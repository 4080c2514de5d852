"""The tokenizer and the network of the demo checkpoint, and how they are trained."""

import math

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "CONTEXT",
    "DECAY",
    "DROPOUT",
    "LAYERS",
    "PEAK_RATE",
    "STEP_TOKENS",
    "VOCAB",
    "WARMUP",
    "encode_blocks",
    "new_model",
    "train_model",
    "train_tokenizer",
]

END = "<|endoftext|>"
VOCAB, CONTEXT, STEP_TOKENS, LAYERS = 2048, 512, 4096, 4
PEAK_RATE, WARMUP, DECAY, DROPOUT = 2e-3, 100, 0.1, 0.1


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of VOCAB entries, END being the first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    # The whole byte alphabet makes any text encodable, also with characters the book lacks.
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode_blocks(tokenizer: PreTrainedTokenizerFast, blocks: list[str]) -> list[Tensor]:
    """Return each block's token ids with END in front, int64 of shape [1 + tokens]."""
    end = tokenizer.convert_tokens_to_ids(END)
    return [torch.tensor([end, *tokenizer(block, verbose=False)["input_ids"]]) for block in blocks]


def new_model(layers: int = LAYERS) -> GPTNeoXForCausalLM:
    """Return an untrained model in float32."""
    # A quarter of each head is what every version of transformers assumes for this architecture.
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        num_hidden_layers=layers,
        num_attention_heads=6,
        intermediate_size=768,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        max_position_embeddings=CONTEXT,
        hidden_dropout=DROPOUT,
        attention_dropout=0.0,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


def learning_rate(step: int, steps: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then cosine down to a twentieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.05 + 0.475 * (1 + math.cos(math.pi * done))


def new_optimizer(model: GPTNeoXForCausalLM) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves biases and norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)


def mean_loss(model: GPTNeoXForCausalLM, windows: Tensor) -> Tensor:
    """Return the mean next-token loss in nats over windows of shape [batch, 1 + length]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def window_length(step: int, steps: int) -> int:
    """Return the tokens per training window at a step: half the context at first, the whole at last."""
    # Short windows train faster; the last fifth teaches the model the far positions.
    return CONTEXT // 2 if step < 0.8 * steps else CONTEXT


def draw_windows(stream: Tensor, length: int, order: torch.Generator) -> Tensor:
    """Return random windows of a token stream, shape [STEP_TOKENS / length, 1 + length]."""
    windows = stream.unfold(0, length + 1, 1)
    return windows[torch.randint(len(windows), (STEP_TOKENS // length,), generator=order)]


def progress_bar(console: Console) -> Progress:
    """Return a bar that shows the step, the loss in nats and the time left."""
    count, loss = TextColumn("{task.completed}/{task.total}"), TextColumn("loss {task.fields[loss]:.3f}")
    return Progress(TextColumn("training"), BarColumn(), count, loss, TimeRemainingColumn(), console=console)


def train_model(model: GPTNeoXForCausalLM, stream: Tensor, steps: int, seed: int, console: Console) -> None:
    """Fit the model in place on random windows of a token stream of shape [tokens]."""
    optimizer = new_optimizer(model.train())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    order = torch.Generator().manual_seed(seed)
    with progress_bar(console) as progress:
        task = progress.add_task("training", total=steps, loss=math.log(VOCAB))
        for step in range(steps):
            loss = mean_loss(model, draw_windows(stream, window_length(step, steps), order))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())
    model.train(False)
