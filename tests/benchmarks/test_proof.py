"""The page of what a proof costs."""

from benchmarks.proof import INSPECTED, TINY, rendered


def test_figures_stand_beside_those_of_before_and_in_units_of_an_import():
    now = {"import transformers": 2.0, "verify tiny": 6.0}
    assert "| verify tiny | 20.0 | 6.0 | 3.0 |" in rendered(now, {"import transformers": 2.0, "verify tiny": 20.0})
    assert "| verify tiny | 6.0 | 3.0 |" in rendered(now, None)


def test_what_is_timed_is_what_users_have():
    assert len(INSPECTED) == 5
    assert INSPECTED["Llama-3.1-405B"].num_hidden_layers == 126
    assert INSPECTED["Mistral-7B"].hidden_size == 4096
    assert {config.model_type for config in TINY.values()} == {"gpt2", "llama"}
