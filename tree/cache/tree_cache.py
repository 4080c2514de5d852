"""A cache of transformers' that holds every segment of a tree of sequences once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

import prefold.tree.cache.attention  # noqa: F401  # makes the implementation known, which no cache does without
from prefold.tree.cache.live import Live, LiveTree
from prefold.tree.cache.pool import LayerStore, Pages
from prefold.tree.cache.saved import open_root, write_root
from prefold.tree.cache.states import Refusals, States, Update
from prefold.tree.cache.step import Step, make_step, tokens_last
from prefold.tree.errors import CacheError, PrunedSegment, RaggedRows, UnequalRows

# Rows that say the same differ by rounding: this part of the largest value, or so many units of it.
_ROUNDING, _UNITS = 1e-5, 4


@dataclass(frozen=True, slots=True)
class Memory:
    """The contents of a cache: tokens, pages of ``page_tokens`` tokens, and bytes.

    ``used_bytes`` are those of the pages that hold segments, ``bytes`` those of all of the pool's tensors.
    """

    tokens: int
    pages: int
    page_tokens: int
    used_bytes: int
    bytes: int


class TreeCache(Refusals, Cache):
    """Keys and values of a tree, or several trees, of sequences; row ``b`` of a batch goes on in leaf ``b``.

    The model has to be loaded with, or set to, ``attn_implementation="prefold_tree"``. Rows that go on from the same
    leaf share all of its tokens: branching copies nothing, pruning frees pages.

    Args:
        branches: Consecutive rows of the batch that begin with the same prompt, as ``generate`` makes them for
            ``num_return_sequences`` or ``num_beams``: the prompt is stored once for each ``branches`` rows.
        max_pages: Any number if None.
        page_tokens: Tokens for each page.

    Attributes:
        reads: Bytes of keys and values that attention read from the pool, for every forward pass.
    """

    def __init__(self, branches: int = 1, *, max_pages: int | None = None, page_tokens: int = 16) -> None:
        super().__init__(layers=[])
        if branches < 1 or page_tokens < 1 or (max_pages is not None and max_pages < 1):
            raise CacheError("TreeCache: branches, page_tokens and max_pages are at least 1")
        self.branches = branches
        self._limits = (page_tokens, max_pages)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._pages = Pages(*self._limits)
        self.live = LiveTree(self._pages)
        self.stores: dict[int, LayerStore] = {}
        self.reads: list[int] = []
        self._step: Step | None = None
        self._steps, self._holds, self._next_hold = 0, dict[int, tuple[Live, int]](), 0
        self._columns: list[int] = []  # of every row, with those that hold no token
        self.takes_positions = False

    # What a forward pass does

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[States, States]:
        """Take new keys and values, ``[batch, kv_heads, new, head_dim]``; ``CacheError`` if they need gradients."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise CacheError("TreeCache keeps no gradients: run the model under torch.no_grad()")
        update = Update(self, layer_idx, key_states, value_states)
        columns = self._columns_before(layer_idx, key_states.shape[2])
        return States(update, key_states, columns), States(update, value_states, columns)

    def _columns_before(self, layer: int, new: int) -> int:
        """Return the columns before this pass, whose earlier layers may have counted its own."""
        passes = self.stores[layer].steps if layer in self.stores else 0
        return max(self._columns, default=0) - (new if passes < self._steps else 0)

    def store(self, update: Update, padding: torch.Tensor | None) -> Step:
        """Store the states of a layer, and return the forward pass that they belong to.

        ``padding``: columns that hold tokens, ``[batch, columns]``, all columns so far; None for all.

        Raises:
            RaggedRows: ``padding`` does not fit the tokens that are stored.
            UnequalRows: Rows of a prompt differ.
            OutOfPages: There is no room.
        """
        if update.step is None:
            layer = self._layer(update)
            if layer.steps == self._steps:
                self._step = self._begin(update, padding)
                self._steps += 1
                self.reads.append(0)
            step = update.step = self._belongs(update, layer)
            update.arrange(step.order)
            layer.steps += 1
            layer.apply_moves(step.moves)
            for part in step.parts:
                part.store(layer, update.keys, update.values)
        found: Step = update.step
        return found

    def _layer(self, update: Update) -> LayerStore:
        if update.layer not in self.stores:
            self.stores[update.layer] = LayerStore(self._pages, update.keys, update.values)
        layer = self.stores[update.layer]
        if not layer.same(update.keys, update.values):
            raise CacheError(f"TreeCache: layer {update.layer} gives keys of another type or shape than before")
        return layer

    def _belongs(self, update: Update, layer: LayerStore) -> Step:
        if self._step is None or layer.steps != self._steps - 1:
            raise CacheError(f"TreeCache: layer {update.layer} missed a forward pass, which was broken off: reset()")
        return self._step

    def _begin(self, update: Update, padding: torch.Tensor | None) -> Step:
        batch, columns = update.keys.shape[0], update.keys.shape[2]
        if not self.live.rows:
            if batch % self.branches:
                raise UnequalRows(f"TreeCache: {batch} rows are no multiple of branches={self.branches}")
            self.live.plant(batch, self.branches)
            self._columns = [0] * batch
        if batch != len(self.live.rows):
            raise RaggedRows(f"TreeCache: the cache has {len(self.live.rows)} rows and the call {batch}")
        new = self._new_tokens(columns, padding)
        order = None if padding is None else tokens_last(padding[:, -columns:])
        copies = self.branches if self._say_the_same(update, new) else 1
        self.live.extend(new, shared=copies > 1)
        self._columns = [max(self._columns) + columns if padding is None else padding.shape[1]] * batch
        return make_step(columns, copies, self.live.rows[::copies], new[::copies], self.live.take_moves(), order)

    def _new_tokens(self, columns: int, padding: torch.Tensor | None) -> list[int]:
        ends = [leaf.end for leaf in self.live.rows]
        if padding is None:
            if set(ends) != set(self._columns) or len(set(ends)) > 1:
                raise RaggedRows("TreeCache: rows of unequal length need attention_mask=cache.attention_mask(new)")
            return [columns] * len(ends)
        earlier, new = padding[:, :-columns], padding[:, -columns:]
        self._take_back(earlier, earlier.sum(1).tolist(), ends)
        return [int(each) for each in new.sum(1).tolist()]

    def _take_back(self, earlier: torch.Tensor, shown: list[int], ends: list[int]) -> None:
        """Take back the last tokens of rows whose columns the mask hides, as ``generate`` fills up rows that end."""
        behind = [end - count for end, count in zip(ends, shown, strict=True)]
        if min(behind) < 0:
            raise RaggedRows(f"TreeCache: attention_mask has {shown} earlier tokens of the rows, the cache {ends}")
        if any(earlier[row, -more:].any() for row, more in enumerate(behind) if more):
            raise RaggedRows(
                "TreeCache: attention_mask hides other columns than a row's last, and those that were padding before:"
                f" it has {shown} earlier tokens of the rows, the cache {ends}"
            )
        if any(behind):
            self.live.cut_rows(shown)

    def _say_the_same(self, update: Update, new: Sequence[int]) -> bool:
        """Return whether the rows of every tree are in one leaf and gain the same tokens."""
        rows, each = self.live.rows, self.branches
        if each == 1 or len(rows) % each or any(leaf is not rows[row // each * each] for row, leaf in enumerate(rows)):
            return False
        same = all(count == new[row // each * each] for row, count in enumerate(new))
        same = same and all(_are_equal(states, each) for states in (update.keys, update.values))
        if not same and not any(leaf.end for leaf in rows):
            raise UnequalRows(f"TreeCache: not every {each} rows (branches={each}) begin with the same prompt")
        return same

    # What transformers asks

    def __len__(self) -> int:
        return len(self.stores)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the columns of the batch so far, with padding; ``RaggedRows`` for rows of several lengths."""
        if len(set(self._columns)) > 1 and not self.takes_positions:
            raise RaggedRows(
                "TreeCache: rows end at different positions: give position_ids=cache.position_ids(new) and"
                " attention_mask=cache.attention_mask(new), and say cache.takes_positions = True"
            )
        return max(self._columns, default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many columns a mask would have, and where it would begin."""
        return max(self._columns, default=0) + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no largest length."""
        return -1

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back: yes."""
        return True

    @property
    def is_initialized(self) -> bool:
        """Whether a layer has stored something."""
        return bool(self.stores)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first pass."""
        return len(self.live.rows) or -1

    def reorder_cache(self, beam_idx: torch.LongTensor | Sequence[int]) -> None:
        """Let row ``b`` go on where row ``beam_idx[b]`` is; rows without successors are pruned."""
        rows = beam_idx.tolist() if isinstance(beam_idx, torch.Tensor) else list(beam_idx)
        self._choose(rows)

    def _choose(self, rows: Sequence[int]) -> None:
        self.live.set_rows([self._leaf(row) for row in rows])
        self._columns = [self._columns[row] for row in rows]

    def _leaf(self, row: int) -> Live:
        if not 0 <= row < len(self.live.rows):
            raise CacheError(f"TreeCache: row {row} of {len(self.live.rows)} rows")
        return self.live.rows[row]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Branch every row into so many."""
        self._choose([row for row in range(len(self.live.rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone."""
        rows = indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices
        self._choose(rows.tolist())

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` columns of every row; a segment that others hold stays theirs."""
        if tokens_to_remove > 0 or -tokens_to_remove > min((leaf.end for leaf in self.live.rows), default=0):
            raise CacheError(f"TreeCache: crop({tokens_to_remove}): it takes the number of tokens to remove, below 0")
        if tokens_to_remove:
            self.live.cut_rows([leaf.end + tokens_to_remove for leaf in self.live.rows])
            self._columns = [columns + tokens_to_remove for columns in self._columns]

    # What a user asks

    def hold(self, row: int, tokens: int | None = None) -> int:
        """Keep the tokens of a row, whatever becomes of it; returns a name to branch from.

        ``tokens``: the first ones alone, as of a row that ended before others and was filled up behind its end. The
        last may be one that was chosen and has not yet run; ``CacheError`` if there are fewer.
        """
        leaf, columns = self._leaf(row), self._columns[row]
        if tokens is not None:
            if not 0 < tokens <= leaf.end + 1:
                raise CacheError(f"TreeCache: hold({row}, tokens={tokens}): the row has {leaf.end} tokens")
            kept = min(tokens, leaf.end)
            columns -= leaf.end - kept
            leaf = self.live.cut(leaf, kept)
        return self._keep(leaf, columns)

    def _keep(self, leaf: Live, columns: int) -> int:
        leaf.holders += 1
        name, self._next_hold = self._next_hold, self._next_hold + 1
        self._holds[name] = leaf, columns
        return name

    def branch(self, held: Sequence[int]) -> None:
        """Let rows go on from held segments, one for each name; ``PrunedSegment`` for a name that is gone."""
        found = [self._held(name) for name in held]
        self.live.set_rows([leaf for leaf, _ in found])
        self._columns = [columns for _, columns in found]

    def prune(self, held: int) -> None:
        """Let go of a held segment and of pages that nothing else needs; ``PrunedSegment`` if it is gone."""
        leaf, _ = self._held(held)
        del self._holds[held]
        self.live.drop([leaf])

    def _held(self, name: int) -> tuple[Live, int]:
        if name not in self._holds:
            raise PrunedSegment(f"TreeCache: segment {name} was pruned, or never held: nothing can branch from it")
        return self._holds[name]

    def save(self, held: int, path: str | Path, model: PreTrainedModel, ids: torch.Tensor | Sequence[int]) -> None:
        """Write what is held, the tokens ``ids``, to a file of safetensors that :meth:`load` reads."""
        leaf, _ = self._held(held)
        moves = self.live.take_moves()
        for store in self.stores.values():
            store.apply_moves(moves)
        write_root(Path(path), leaf, self.stores, model, ids)

    def load(self, path: str | Path, model: PreTrainedModel, ids: torch.Tensor | Sequence[int]) -> int:
        """Hold a root that was saved, mapped from its file; returns a name to branch from.

        Raises:
            WrongRoot: The file was written for another model, other tokens or in another format.
        """
        tokens, layers = open_root(Path(path), model, ids)
        root = self.live.adopt(tokens)
        for number, (keys, values) in layers.items():
            layer = self._layer(Update(self, number, keys[None], values[None]))
            if root.run is not None:
                layer.adopt(root.run.extent, (keys, values))
        return self._keep(root, tokens)

    def position_ids(self, new: int = 1, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the positions of so many new tokens of every row, ``[rows, new]``: they follow the path."""
        ends = torch.tensor([leaf.end for leaf in self.live.rows], device=device)
        return ends[:, None] + torch.arange(new, device=device)

    def attention_mask(self, new: int = 1, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return which columns hold tokens, with new ones, ``[rows, longest + new]``: rows end at the right."""
        ends = torch.tensor([leaf.end for leaf in self.live.rows], device=device)
        longest = int(ends.max())
        return (torch.arange(longest + new, device=device) >= longest - ends[:, None]).long()

    def align(self, columns: int) -> None:
        """Let rows begin with padding up to so many columns, as the ids and the mask of ``generate`` do."""
        self._columns = [columns] * len(self.live.rows)

    def memory(self) -> Memory:
        """Return the contents of the cache."""
        segments = {
            segment
            for leaf in [*self.live.rows, *(held for held, _ in self._holds.values())]
            for segment in leaf.path()
        }
        used = self._pages.held * self._pages.size * sum(store.token_bytes for store in self.stores.values())
        return Memory(
            tokens=sum(segment.length for segment in segments),
            pages=self._pages.held,
            page_tokens=self._pages.size,
            used_bytes=used,
            bytes=sum(store.bytes_held for store in self.stores.values()),
        )


def _are_equal(states: torch.Tensor, each: int) -> bool:
    """Return whether every ``each`` consecutive rows are equal, but for rounding."""
    rows = states.unflatten(0, (-1, each))
    tolerance = max(_ROUNDING, _UNITS * torch.finfo(states.dtype).eps) * states.abs().max()
    return bool(((rows - rows[:, :1]).abs() <= tolerance).all())
