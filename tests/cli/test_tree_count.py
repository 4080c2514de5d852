"""``prefold tree count`` as a shell sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefold.common.errors import UsageError
from prefold.tree.count.segments import make_tree
from prefold.tree.count.timeline import replay

DATA = Path(__file__).parents[1] / "tree" / "data"
CONFIGS = Path(__file__).parents[1] / "configs"
SORTING = DATA / "sorting128ToT.json"
FEW_SHOT = "few-shot:prompt=4000,branches=20,steps=400"
SCHEMES = ["sequence-wise", "medusa", "node", "node-chunk", "flatten"]
TREE = {"parent": [-1, 0, 0, 1], "tokens": [10, 3, 2, 4], "birth": [-9, 1, 1, 4], "end": [0, 3, 2, 7]}


def counted(prefold, *arguments: object) -> dict:
    ran = prefold("tree", "count", *arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


@pytest.mark.parametrize("arguments", [["--help"], [FEW_SHOT], [FEW_SHOT, "--json"], ["nowhere.json"]])
def test_counting_by_a_known_shape_loads_no_torch(arguments: list[str]):
    look = (
        "import sys; sys.argv = ['prefold', 'tree', 'count', *sys.argv[1:]]\n"
        "from prefold.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", look, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_published_figures_come_out(prefold):
    told = counted(prefold, SORTING, "--model", "llama3-8b", "--limit", 10)
    assert (told["steps"], told["generated_tokens"], told["trees"], told["prompt_tokens"]) == (4164, 37215.5, 10, 1105)
    assert list(told["schemes"]) == SCHEMES
    figures = {name: f"{each['published_bytes'] / 1e12:.2f}" for name, each in told["schemes"].items()}
    assert figures == dict.fromkeys(SCHEMES, "12.40") | {"sequence-wise": "59.96"}
    assert f"{told['schemes']['medusa']['published_partial_bytes'] / 1e12:.2f}" == "3.69"
    for each in told["schemes"].values():
        assert each["published_bytes"] == pytest.approx(4 * each["physical_bytes"])
        assert each["full_bytes"] == pytest.approx(sum(each["full_parts"].values()))
    assert told["sharing_factor"] == pytest.approx(59.964 / 12.401, abs=1e-3)


def test_a_logged_run_comes_out_to_the_byte(prefold):
    told = counted(prefold, SORTING, "--limit", 1, "--prompt", 1000, "--cap", 2000)
    assert (told["steps"], told["generated_tokens"]) == (1999, 20739)
    assert told["schemes"]["flatten"]["published_bytes"] == 4970801266688
    assert told["schemes"]["sequence-wise"]["published_bytes"] == 22838040330240


def test_without_a_limit_figures_are_means_of_all_complete_trees(prefold):
    told = counted(prefold, SORTING)
    assert (told["trees"], told["trees_complete"], told["trees_in_file"]) == (77, 77, 100)
    assert told == counted(prefold, SORTING, "--limit", 77)


def test_a_limit_beyond_the_file_is_told(prefold):
    ran = prefold("tree", "count", SORTING, "--limit", 78, "--json")
    assert "77 complete trees are all there are" in ran.err
    assert json.loads(ran.out)["trees"] == 77


def test_a_plain_file_is_counted_as_it_is(prefold, tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(TREE))
    told = counted(prefold, file)
    # 10 + 2, 10 + 4, 10 + 3, then 10 + 3 and 1 to 4 tokens.
    assert (told["tree_tokens"], told["steps"], told["generated_tokens"]) == (12 + 14 + 13 + 14 + 15 + 16 + 17, 7, 9)
    assert told["schemes"]["node"]["published_bytes"] == told["tree_tokens"] * 524_288
    assert all(type(each["published_bytes"]) is int for each in told["schemes"].values())


def test_a_config_counts_as_its_model(prefold):
    ran = prefold("tree", "count", FEW_SHOT, "--model", CONFIGS / "mistral-7b.json", "--scheme", "flatten", "--json")
    told = json.loads(ran.out)
    sizes = {"layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "value_bytes": 2}
    assert told["attention"] == sizes | {"sliding_layers": 32, "sliding_window": 4096}
    assert list(told["schemes"]) == ["flatten"]


def test_schemes_are_chosen_by_name(prefold):
    told = counted(prefold, FEW_SHOT, "--scheme", "node-chunk", "--scheme", "Flash-Decoding")
    assert list(told["schemes"]) == ["sequence-wise", "node-chunk"]


def test_the_text_has_what_the_json_has(prefold):
    ran, told = prefold("tree", "count", FEW_SHOT), counted(prefold, FEW_SHOT)
    assert ran.code == 0
    assert f"sharing factor {told['sharing_factor']:.3f}" in ran.out
    rows = {line.split()[0]: line for line in ran.out.splitlines() if line[:1].isalpha()}
    for name, each in told["schemes"].items():
        for key in ("published_bytes", "physical_bytes", "full_bytes"):
            assert f"{each[key] / 1e12:.2f} TB" in rows[name]


def test_a_picture_is_drawn_beside_the_figures(prefold, tmp_path):
    ran = prefold("tree", "count", FEW_SHOT, "--plot", tmp_path / "tree.svg", "--json")
    assert json.loads(ran.out)["steps"] == 400
    assert "drawn as" in ran.err
    assert "live branches" in (tmp_path / "tree.svg").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("nonsense", "not JSON"),
        (json.dumps({**TREE, "parent": [-1, 3, 0, 1]}), "cycle"),
        (json.dumps({**TREE, "parent": [-1, -1, 0, 1]}), "2 roots"),
        (json.dumps({**TREE, "tokens": [10, 3, -2, 4]}), "negative"),
        (json.dumps({"parent": [-1], "tokens": [3]}), "without birth, end"),
    ],
)
def test_a_file_that_is_no_tree_is_refused_in_one_line(prefold, tmp_path, content, said):
    file = tmp_path / "tree.json"
    file.write_text(content)
    for more in ([], ["--json"]):
        ran = prefold("tree", "count", file, *more)
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert said in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.json"], 2, "No such file"),
        ([FEW_SHOT, "--scheme", "flaten"], 2, "the nearest: flatten"),
        ([FEW_SHOT, "--model", "lama3-8b"], 2, "the nearest: llama3-8b"),
        ([FEW_SHOT, "--plot", "tree.pdf"], 2, "one of .svg, .png"),
        (["levels:nodes=1/4,tokens=8"], 2, "2 numbers of nodes and 1 of tokens"),
        (["levels:nodes=1/0,tokens=8/8"], 2, "nodes is 0; at least 1"),
        (["levels:nodes=1/x,tokens=8/8"], 2, "nodes=1/x is not whole numbers"),
        (["levels:nodes=1/600000/600000,tokens=8/8/8"], 2, "at most 1,000,000 are counted"),
        (["few-shot:prompt=4000"], 2, "without branches, steps"),
        ([FEW_SHOT, "--model", "deepseek-v3"], 3, "stored compressed"),
        ([SORTING, "--limit", "0"], 2, "--limit"),
        ([], 2, "TREE"),
    ],
)
def test_what_was_asked_wrongly_is_refused(prefold, arguments, code, said):
    ran = prefold("tree", "count", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


@pytest.mark.parametrize(
    "source", ["few-shot:prompt=9,branches=2", "n-best:prompt=9,branches=2", "beam:prompt=9,beams=2"]
)
def test_more_steps_than_can_be_counted_are_refused_at_once(prefold, source: str):
    ran = prefold("tree", "count", f"{source},steps=100000000")
    assert (ran.code, ran.err) == (2, "prefold: steps is 100,000,000; at most 10,000,000 are counted\n")


SPECULATIVE = f"speculative:file={DATA / 'speculative.json'},prompt=9"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("few-shot:prompt=9,branches=100000000,steps=2", "branches is 100,000,000; at most 1,000,000 are counted"),
        ("n-best:prompt=9,branches=100000000,steps=2", "branches is 100,000,000; at most 1,000,000 are counted"),
        ("beam:prompt=9,beams=100000000,steps=2", "beams is 100,000,000; at most 1,000,000 are counted"),
        (
            "beam:prompt=9,beams=10,steps=10000000",
            "10 beams, chosen 10,000,000 times; at most 1,000,000 choices are counted",
        ),
        (f"{SPECULATIVE},size=64,cap=100000000", "cap is 100,000,000; at most 10,000,000 are counted"),
        (f"{SPECULATIVE},size=100000000,cap=9", "size is 100,000,000; at most 1,000,000 are counted"),
        (f"few-shot:prompt={10**9 + 1},branches=2,steps=4", "1,000,000,001; at most 1,000,000,000 are counted"),
        (f"few-shot:prompt={10**400},branches=2,steps=4", "000; at most 1,000,000,000 are counted"),
    ],
)
def test_more_than_memory_holds_is_refused_before_any_is_taken(prefold, source: str, said: str):
    ran = prefold("tree", "count", source)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err


def test_a_recorded_tree_of_more_steps_is_refused():
    tree = make_tree("long", [-1, 0], [4, 20_000_000], [-3, 1], [0, 20_000_000])
    with pytest.raises(UsageError, match="long: 20,000,000 steps: at most 10,000,000 are counted"):
        next(replay(tree))
    assert tree.steps(cap=100) == 99
