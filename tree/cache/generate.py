"""Text that branches: a tree grows by a policy, token by token, and every segment is read once for all below."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from prefold.common.errors import one_line
from prefold.tree.cache.passes import advance, require_tree_attention
from prefold.tree.cache.tree_cache import TreeCache
from prefold.tree.errors import CacheError


class _Hold:
    def __repr__(self) -> str:
        return "HOLD"


HOLD: Final = _Hold()
"""What a policy says of a branch that is to wait: it costs nothing, is offered again, and may still branch."""


@dataclass(eq=False)
class Branch:
    """A piece of text in the tree: its tokens follow those of its parent; the root's are the prompt.

    Attributes:
        birth: The step at which its first token was chosen; 0 for the root.
        end: The last step at which a token was added to it.
        log_probs: The log-probability of each token after all before it, by the model's logits; none of the root's.
    """

    number: int
    parent: "Branch | None"
    tokens: list[int]
    birth: int
    end: int
    depth: int = 0
    log_probs: list[float] = field(default_factory=list, repr=False)
    _logits: torch.Tensor | None = field(default=None, repr=False)
    _held: int | None = field(default=None, repr=False)

    def text(self) -> list[int]:
        """Return all tokens from the prompt on."""
        before = self.parent.text() if self.parent is not None else []
        return before + self.tokens

    @property
    def is_held(self) -> bool:
        """Whether it waits."""
        return self._held is not None


Decision = Sequence[int | Sequence[int]] | _Hold
_Read = list[list[int]] | None
Policy = Callable[[Sequence[Branch], torch.Tensor], Sequence[Decision]]


@dataclass(frozen=True)
class GeneratedTree:
    """All branches, by birth, and the forward passes after the prompt's; ``cache.reads`` are bytes of every pass."""

    branches: list[Branch]
    steps: int
    cache: TreeCache

    def leaves(self) -> list[Branch]:
        """Return the branches that none goes on from."""
        inner = {branch.parent for branch in self.branches}
        return [branch for branch in self.branches if branch not in inner]


@torch.no_grad()
def tree_generate(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor | Sequence[int],
    policy: Policy,
    *,
    max_steps: int = 1000,
    max_pages: int | None = None,
) -> GeneratedTree:
    """Grow a tree of text from a prompt, ``[tokens]`` or ``[1, tokens]``.

    The model is a causal language model with ``attn_implementation="prefold_tree"``, in evaluation mode. After every
    forward pass the policy gets the live branches, running and held ones, with their next tokens' logits, ``[branches,
    vocabulary]``. For each branch it returns the tokens to go on with: one continues it, several let it branch, none
    ends it; or ``HOLD``, which lets it wait. A list of tokens in place of one token is appended at once, in one pass.
    Growing ends when no branch runs, or after ``max_steps`` passes.

    Raises:
        CacheError: The prompt is none, or the policy returns anything but one decision for each branch.
    """
    require_tree_attention(model)
    prompt = torch.as_tensor(prompt_ids, device=model.device).reshape(1, -1)
    if prompt.numel() == 0 or (isinstance(prompt_ids, torch.Tensor) and prompt_ids.numel() != prompt_ids.shape[-1]):
        raise CacheError(f"tree_generate: one prompt of at least one token, not {list(prompt.shape)}")
    growth = _Growth(model, TreeCache(max_pages=max_pages), prompt)
    steps = 0
    while steps < max_steps and growth.decide(policy, steps + 1):
        growth.run()
        steps += 1
    return GeneratedTree(growth.branches, steps, growth.cache)


class _Growth:
    def __init__(self, model: PreTrainedModel, cache: TreeCache, prompt: torch.Tensor) -> None:
        self._model, self.cache = model, cache
        root = Branch(0, None, prompt[0].tolist(), 0, 0)
        self.branches, self._running, self._held = [root], [root], list[Branch]()
        self._new: list[list[int]] = []  # tokens of the running branches that have yet to run
        cache.takes_positions = True
        root._logits = advance(model, cache, [root.tokens])[0]

    def decide(self, policy: Policy, step: int) -> bool:
        """Apply the decisions of the policy to the rows of the next pass; returns whether there are any."""
        live = self._running + self._held
        if not live:
            return False
        logits = _logits_of(live)
        decisions = _read(policy(live, logits), len(live), logits.shape[-1])
        names = self._names(live)
        going = [(at, tokens) for at, said in enumerate(decisions) for tokens in said or ()]
        self._running = [self._grow(live[at], tokens, decisions[at], step) for at, tokens in going]
        self._new = [tokens for _, tokens in going]
        rows = [at for at, _ in going]
        for branch, found in zip(self._running, _log_probs(logits[rows], [new[0] for new in self._new]), strict=True):
            branch.log_probs.append(found)
        self.cache.branch([names[at] for at in rows])
        self._keep(live, names, decisions)
        return bool(going)

    def _names(self, live: Sequence[Branch]) -> list[int]:
        """Return names by which the cache knows branches; the running ones, which are its rows, come first."""
        return [self.cache.hold(row) if each._held is None else each._held for row, each in enumerate(live)]

    def _grow(self, branch: Branch, tokens: list[int], decision: _Read, step: int) -> Branch:
        if decision and len(decision) == 1 and branch.parent is not None:
            branch.tokens += tokens
            branch.end = step
            return branch
        child = Branch(len(self.branches), branch, [*tokens], step, step, branch.depth + 1)
        self.branches.append(child)
        return child

    def _keep(self, live: Sequence[Branch], names: Sequence[int], decisions: Sequence[_Read]) -> None:
        """Hold the branches that wait, and let go of the rest, which live on in their rows."""
        self._held = []
        for branch, name, said in zip(live, names, decisions, strict=True):
            if said is None:
                branch._held = name
                self._held.append(branch)
            else:
                branch._held = branch._logits = None
                self.cache.prune(name)

    def run(self) -> None:
        several = max(map(len, self._new)) > 1
        logits = advance(self._model, self.cache, self._new, every=several)
        for branch, new, found in zip(self._running, self._new, logits, strict=True):
            branch._logits = found[-1] if several else found
            if len(new) > 1:
                branch.log_probs += _log_probs(found[-len(new) : -1], new[1:])


def _logits_of(live: Sequence[Branch]) -> torch.Tensor:
    return torch.stack([branch._logits for branch in live if branch._logits is not None])


def _log_probs(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    ids = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    found: list[float] = logits.float().log_softmax(-1).gather(1, ids[:, None])[:, 0].tolist()
    return found


def _read(decisions: Any, branches: int, vocabulary: int) -> list[_Read]:
    """Return continuations of each branch, None for one that waits; ``CacheError`` for anything else."""
    try:
        said = [None if isinstance(each, _Hold) else [_tokens(tokens) for tokens in each] for each in decisions]
    except TypeError as error:
        kinds = "tokens, or lists of tokens, for each branch, or HOLD"
        raise CacheError(f"tree_generate: the policy returns no list with {kinds}: {one_line(error)}") from error
    if len(said) != branches:
        raise CacheError(f"tree_generate: the policy decided on {len(said)} of {branches} branches")
    for each in said:
        for tokens in each or ():
            _require_tokens(tokens, vocabulary)
    return said


def _require_tokens(tokens: list[int], vocabulary: int) -> None:
    if not tokens:
        raise CacheError("tree_generate: the policy appends a list without tokens; a branch ends by an empty decision")
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise CacheError(f"tree_generate: the policy appends {tokens}, of a vocabulary of {vocabulary}")


def _tokens(said: Any) -> list[int]:
    try:
        return [index(said)]
    except TypeError:
        return [index(token) for token in said]
