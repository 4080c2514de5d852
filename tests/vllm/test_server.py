"""The OpenAI server of vLLM over a folded checkpoint, on two ranks, asked by the official client."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.vllm.checkpoints import SHAPES, VOCABULARY, fold, prompts, save
from tests.vllm.engines import STEPS, answers, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
psutil = pytest.importorskip("psutil", reason="vLLM brings it")
pytestmark = pytest.mark.ranks

_PATIENCE = 240


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folded checkpoint with a tokenizer, one word for each token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = tmp_path_factory.mktemp("served")
    save(SHAPES["llama"], made / "source")
    words = Tokenizer(models.WordLevel({word(token): token for token in range(VOCABULARY)}, unk_token=word(0)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=word(2)).save_pretrained(made / "source")
    fold(made / "source", made / "folded")
    return made


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """A running server: its process and its port."""
    port, log = free_port(), tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "folded")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "192"]
    command += ["--tensor-parallel-size", "2", "--served-model-name", "folded"]
    with log.open("wb") as out:
        environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        wait_until(lambda: answers_at(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()[-4000:]
        yield process, port, log
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(_PATIENCE)


def answers_at(port):
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(happened):
    end = time.monotonic() + _PATIENCE
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def client(port):
    from openai import OpenAI

    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=_PATIENCE, max_retries=0)


def test_the_official_client(folder, server):
    """Answers to token ids, one stream, and the text of a prompt are those of the source."""
    _, port, _ = server
    asked, expected = prompts(8), tokens(answers(folder / "source"))[:8]
    options = {"model": "folded", "max_tokens": STEPS, "temperature": 0, "extra_body": {"ignore_eos": True}}
    said = client(port).completions.create(prompt=asked, **options)
    assert [words(choice.text) for choice in said.choices] == expected
    text = " ".join(map(word, asked[0]))
    streamed = client(port).completions.create(prompt=text, stream=True, **options)
    assert words("".join(part.choices[0].text for part in streamed)) == expected[0]


def word(token):
    """Spell a token; none begins as another does, since special ones are found inside words, too."""
    return f"w{token:03}"


def words(text):
    return [int(each[1:]) for each in text.split()]


def test_a_killed_worker_ends_the_server(server):
    """The engine reports that it is dead, the request fails, the process ends; nothing waits for ever."""
    from openai import OpenAIError

    process, port, log = server
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "Worker" in " ".join(child.cmdline())]
    assert workers
    workers[-1].kill()
    with pytest.raises(OpenAIError):
        client(port).completions.create(model="folded", prompt=prompts(1)[0], max_tokens=64)
    process.wait(_PATIENCE)
    assert "EngineDeadError" in log.read_text()
    assert not psutil.wait_procs(children, timeout=_PATIENCE)[1]
