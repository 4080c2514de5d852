"""What transformers may ask of a cache and a tree of keys and values does not have."""

from typing import Any, NoReturn

from prefold.tree.errors import CacheError, NoAttention, WrongAttention


class Refusals:
    """Methods and properties that models with other layers ask for: each is an error that says what to do."""

    def _refuse_state(self, *_: Any, **__: Any) -> NoReturn:
        raise NoAttention("TreeCache holds keys and values: this model has layers that keep a state of another kind")

    has_previous_state = update_indexer = _refuse_state
    get_conv_state = update_conv_state = get_recurrent_state = update_recurrent_state = _refuse_state

    def _refuse_sides(self) -> NoReturn:
        raise WrongAttention(
            "TreeCache: an encoder-decoder model needs EncoderDecoderCache(TreeCache(...), DynamicCache())"
        )

    self_attention_cache = cross_attention_cache = is_updated = property(_refuse_sides)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: tokens that segments share cannot be taken back."""
        raise CacheError("TreeCache cannot take tokens back, as assisted generation needs it")

    def early_initialization(self, *_: Any, **__: Any) -> None:
        """Refuse: what a cache for export is made of is fixed, and a tree's segments are not."""
        raise CacheError("TreeCache cannot be made before it is used, as exporting a model needs it")
