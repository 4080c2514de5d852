"""Text that branches: a tree grows by a policy, token by token, and every segment is read once for all below."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from transformers import PreTrainedModel

from prefold.tree.cache.passes import require_tree_attention, run
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
    """

    number: int
    parent: "Branch | None"
    tokens: list[int]
    birth: int
    end: int
    depth: int = 0
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


Decision = Sequence[int] | _Hold
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
    ends it; or ``HOLD``, which lets it wait. Growing ends when no branch runs, or after ``max_steps`` passes.

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
        cache.takes_positions = True
        root._logits = run(model, cache, prompt, torch.ones_like(prompt))[0]

    def decide(self, policy: Policy, step: int) -> bool:
        """Apply the decisions of the policy to the rows of the next pass; returns whether there are any."""
        live = self._running + self._held
        if not live:
            return False
        decisions = list(policy(live, torch.stack([branch._logits for branch in live if branch._logits is not None])))
        if len(decisions) != len(live):
            raise CacheError(f"tree_generate: the policy decided on {len(decisions)} of {len(live)} branches")
        names = [
            self.cache.hold(row) if branch._held is None else branch._held  # by which the cache knows a branch
            for row, branch in enumerate(live)
        ]
        going = [(at, token) for at, said in enumerate(decisions) if not isinstance(said, _Hold) for token in said]
        grown = [self._grow(live[at], int(token), len(decisions[at]), step) for at, token in going]  # type: ignore[arg-type]
        self.cache.branch([names[at] for at, _ in going])
        self._keep(live, names, decisions)
        self._running = grown
        return bool(grown)

    def _grow(self, branch: Branch, token: int, choices: int, step: int) -> Branch:
        if choices == 1 and branch.parent is not None:
            branch.tokens.append(token)
            branch.end = step
            return branch
        child = Branch(len(self.branches), branch, [token], step, step, branch.depth + 1)
        self.branches.append(child)
        return child

    def _keep(self, live: Sequence[Branch], names: Sequence[int], decisions: Sequence[Decision]) -> None:
        """Hold the branches that wait, and let go of the rest, which live on in their rows."""
        self._held = []
        for branch, name, said in zip(live, names, decisions, strict=True):
            if isinstance(said, _Hold):
                branch._held = name
                self._held.append(branch)
            else:
                branch._held = branch._logits = None
                self.cache.prune(name)

    def run(self) -> None:
        device = self._model.device
        ids = torch.tensor([[branch.tokens[-1]] for branch in self._running], device=device)
        logits = run(self._model, self.cache, ids, self.cache.attention_mask(1, device))
        for branch, found in zip(self._running, logits, strict=True):
            branch._logits = found
