"""Loading, adapters, saving: the same logits on both sides of a folder."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from helpers_language import CORPUS, chat_tokenizer, tiny, tokenizer
from steepest.errors import RunError, UsageError
from steepest.language.models.adapters import add_adapters, reference
from steepest.language.models.language_model import (
    LanguageModel,
    checkpoint_activations,
    hidden_states,
    keep_activations,
    language_model,
    without_dropout,
)
from steepest.language.models.loading import load_model
from steepest.language.models.saving import save_model
from steepest.language.models.scratch import tiny_llama, train_tokenizer
from steepest.types import TokenBatch

TOKENS = torch.arange(20, 32).view(2, 6)


def logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        return lm.network(input_ids=TOKENS).logits


def adapted(seed: int = 3) -> LanguageModel:
    """Adapters that do something."""
    lm = add_adapters(tiny(), rank=4, alpha=8, dropout=0.0, seed=seed)
    with torch.no_grad():
        for name, p in lm.parameters().items():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return lm


def test_a_tiny_llama_is_a_function_of_its_seed() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (tiny_llama(tokenizer(), layers=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is the user's
    assert torch.equal(logits(one), logits(same))
    assert not torch.equal(logits(one), logits(other))
    network = one.network
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_a_trained_tokenizer_is_lossless_and_repeatable() -> None:
    again = train_tokenizer(CORPUS, 320)
    assert again.get_vocab() == tokenizer().get_vocab()
    assert len(again) == 320
    for text in ("This movie", "  two  spaces\nand a line", "naïve 漢字 \U0001f600 \x00", CORPUS[7]):
        assert again.decode(again(text)["input_ids"]) == text
    assert len(again(CORPUS[0])["input_ids"]) < len(CORPUS[0]) / 3
    with pytest.raises(UsageError, match="at least 258"):
        train_tokenizer(CORPUS, 100)


def test_padding_and_end_are_two_tokens() -> None:
    for made in (tokenizer(), chat_tokenizer()):
        assert made.pad_token_id != made.eos_token_id


@pytest.mark.parametrize("chat", [False, True])
def test_saving_and_loading_gives_the_same_logits(chat: bool, tmp_path: Path) -> None:
    lm = tiny(chat=chat)
    path = save_model(lm, tmp_path / "model")
    files = {p.name for p in path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    theirs = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=TOKENS).logits, logits(lm))
    assert AutoTokenizer.from_pretrained(path).chat_template == lm.tokenizer.chat_template
    ours = load_model(path)
    assert torch.equal(logits(ours), logits(lm))
    assert ours.end_tokens == lm.end_tokens
    assert ours.tokenizer(CORPUS[3])["input_ids"] == lm.tokenizer(CORPUS[3])["input_ids"]


def test_saving_replaces_what_was_there(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "model")
    (tmp_path / "model" / "stale").touch()
    save_model(tiny(seed=1), tmp_path / "model")
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(tiny(seed=1)))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "stale").exists()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = save_model(tiny(), tmp_path / "model")
    (path / "model.safetensors").unlink()
    torch.save(tiny().network.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot be loaded: its weights are pickled"):
        load_model(path)


def test_missing_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    path = save_model(tiny(), tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(path)


def test_what_is_not_on_the_hub_is_named_as_a_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise OSError("no file named config.json")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lacking)
    with pytest.raises(UsageError, match=r"no such folder here, and of the one on the Hugging Face hub: no file named"):
        load_model("models/gone")


class NotThere(BaseHTTPRequestHandler):
    """A hub without models."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("up", "message"), [(True, "hub has no model of this name"), (False, "hub could not be asked")], ids=["up", "down"]
)
def test_a_misspelled_model_is_said_so_at_once(
    up: bool, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Asked once: loading it would try six times for every file, with longer and longer waits, and log each try."""
    hub = ThreadingHTTPServer(("127.0.0.1", 0), NotThere)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    if up:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
    else:
        hub.server_close()
    began = time.monotonic()
    try:
        with pytest.raises(
            UsageError, match=f"there is no model at misspeled: no such folder is here, and .*{message}"
        ):
            load_model("misspeled")
    finally:
        if up:
            hub.shutdown()
            hub.server_close()
    assert time.monotonic() - began < 15.0
    assert capfd.readouterr().err == ""


def test_a_model_of_the_hub_that_is_here_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network, what was downloaded before still loads."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    held = tmp_path / "models--some--model"
    save_model(tiny(), held / "snapshots" / "abc")
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text("abc")
    assert torch.equal(logits(load_model("some/model")), logits(tiny()))
    with pytest.raises(UsageError, match="hub could not be asked"):
        load_model("some/other")


def test_what_is_no_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model in"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="there is no model at"):
        load_model(tmp_path / "nothing" / "here")
    (tmp_path / "file.bin").touch()
    with pytest.raises(UsageError, match=r"no \.gguf"):
        load_model(tmp_path / "file.bin")


def test_every_end_token_counts() -> None:
    lm = tiny()
    lm.network.generation_config.eos_token_id = [7, 9]
    assert language_model(lm.model, lm.tokenizer).end_tokens == (7, 9, lm.tokenizer.eos_token_id)
    assert language_model(lm.model, lm.tokenizer).end_token == lm.tokenizer.eos_token_id


def test_a_model_without_an_end_is_refused() -> None:
    lm = tiny()
    lm.network.generation_config.eos_token_id = None
    bare = train_tokenizer(CORPUS[:50], 300)
    bare.eos_token = None
    with pytest.raises(UsageError, match="no end token"):
        language_model(lm.model, bare)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="do not belong together"):
        language_model(tiny().model, train_tokenizer([*CORPUS, "Quite other words, xylophone and kaleidoscope"], 340))


def test_the_padding_row_of_the_embedding_learns() -> None:
    """Where the padding token is the end token, an untouched padding row would never learn to read the end."""
    lm = tiny()
    embedding = lm.network.get_input_embeddings()
    pad = lm.pad_token
    embedding(torch.tensor([[pad]])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[pad].abs().sum() > 0


def test_logits_are_the_head_of_the_hidden_states() -> None:
    lm = tiny()
    assert lm.splits
    lm = tiny()
    plain = lm.network.lm_head.forward
    network_forward = lm.network.forward

    def capped(*args: object, **kwargs: object) -> object:
        output = network_forward(*args, **kwargs)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    lm.network.forward = capped
    assert lm.network.lm_head.forward == plain
    assert not lm.splits


def test_a_cap_far_above_fresh_logits_is_seen() -> None:
    """Training makes logits large enough to be capped: then it would be too late to find out."""
    for cap, splits in ((1e9, True), (30.0, False)):
        config = Gemma2Config(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            final_logit_softcapping=cap,
        )
        torch.manual_seed(0)
        lm = language_model(AutoModelForCausalLM.from_config(config), tokenizer())
        assert logits(lm).abs().max() < 2.0
        assert lm.splits == splits


def test_adapters_are_not_put_in_twice() -> None:
    """peft puts them into the model that it is given, which is no longer one without."""
    lm = tiny()
    add_adapters(lm, rank=4, alpha=8, dropout=0.0, seed=0)
    assert not lm.has_adapters
    assert logits(lm).isfinite().all()
    with pytest.raises(UsageError, match="go on with the model that training gave back"):
        add_adapters(lm, rank=4, alpha=8, dropout=0.0, seed=0)


def test_fresh_adapters_change_nothing() -> None:
    lm = add_adapters(tiny(), rank=4, alpha=8, dropout=0.0, seed=0)
    assert torch.equal(logits(lm), logits(tiny()))
    names = list(lm.parameters())
    assert names
    assert all("lora" in name for name in names)
    again = add_adapters(tiny(), rank=4, alpha=8, dropout=0.0, seed=0)
    assert all(torch.equal(p, again.parameters()[name]) for name, p in lm.parameters().items())


def test_the_reference_is_the_model_without_adapters() -> None:
    lm = adapted()
    assert not torch.allclose(logits(lm), logits(tiny()), atol=1e-2)
    with reference(lm):
        assert torch.equal(logits(lm), logits(tiny()))
    assert not torch.allclose(logits(lm), logits(tiny()), atol=1e-2)
    with pytest.raises(UsageError, match="no adapters"), reference(tiny()):
        pass


def test_merged_adapters_give_the_same_logits(tmp_path: Path) -> None:
    lm = adapted()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    path = save_model(lm, tmp_path / "merged", merge=True)
    assert not (path / "adapter_config.json").exists()
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(path)(input_ids=TOKENS).logits
    torch.testing.assert_close(merged, logits(lm), rtol=1e-4, atol=1e-4)  # float32: the products are summed otherwise
    assert not torch.allclose(merged, logits(tiny()), atol=1e-2)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


def test_adapters_are_saved_beside_the_name_of_their_model(tmp_path: Path) -> None:
    base = load_model(save_model(tiny(), tmp_path / "base"))
    lm = add_adapters(base, rank=4, alpha=8, dropout=0.0, seed=0)
    with torch.no_grad():
        for p in lm.parameters().values():
            p.add_(0.1)
    path = save_model(lm, tmp_path / "adapters")
    assert not (path / "model.safetensors").exists()
    ours = load_model(path)
    assert torch.equal(logits(ours), logits(lm))
    assert ours.parameters().keys() == lm.parameters().keys()
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(path)(input_ids=TOKENS).logits, logits(lm))


def test_dropout_goes_and_checkpointing_stays() -> None:
    lm = tiny(dropout=0.5)
    lm.model.train()
    checkpoint_activations(lm)
    layer = lm.network.model.layers[0]
    batch = TokenBatch(TOKENS, torch.ones_like(TOKENS, dtype=torch.bool), TOKENS > 0, torch.arange(6).expand(2, 6))
    noisy = [hidden_states(lm, batch) for _ in range(2)]
    assert not torch.equal(*noisy)
    with without_dropout(lm):
        quiet = [hidden_states(lm, batch) for _ in range(2)]
        assert layer.training  # or it would not be checkpointed
        assert not layer.self_attn.training
    assert torch.equal(*quiet)
    assert layer.training
    assert layer.self_attn.training


def test_checkpointing_can_be_undone() -> None:
    lm = tiny()
    checkpoint_activations(lm)
    assert lm.network.model.layers[0].gradient_checkpointing
    keep_activations(lm)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in lm.model.modules())


def test_adapters_on_4_bit_weights_have_the_gradient_of_the_weights_unpacked(tmp_path: Path) -> None:
    import bitsandbytes

    path = save_model(tiny(scale=1.0, width=64), tmp_path / "model")
    packed = load_model(path, quantization="4bit", device="cpu")
    plain = load_model(path, device="cpu")
    with torch.no_grad():
        logits(packed)  # in evaluation mode, before training, as runs do
        for name, module in packed.network.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                plain.network.get_submodule(name).weight.copy_(weight)
    assert not packed.parameters()
    exact = logits(load_model(path))
    assert not torch.allclose(logits(plain), exact, atol=1e-3)  # four bits are few
    torch.testing.assert_close(logits(packed), logits(plain), rtol=1e-4, atol=1e-5)
    gradients = []
    for lm in (packed, plain):
        adapted_lm = add_adapters(lm, rank=4, alpha=8, dropout=0.0, seed=3)
        adapted_lm.network(input_ids=TOKENS, labels=TOKENS).loss.backward()
        gradients.append({n: p.grad for n, p in adapted_lm.parameters().items()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    assert any(g.abs().max() > 0 for n, g in gradients[0].items() if "layers.0" in n)


@pytest.mark.parametrize("kind", ["Bert", "Electra", "Roberta"])
def test_a_model_that_looks_ahead_is_refused(kind: str, tmp_path: Path) -> None:
    """Made to fill gaps, it loads as a causal model; as a decoder it is one."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")
    looks_ahead, decoder = (
        AutoModelForCausalLM.from_config(
            config(vocab_size=len(tokenizer()), is_decoder=decodes, pad_token_id=0, **sizes)
        )
        for decodes in (False, True)
    )
    for made, folder in ((looks_ahead, tmp_path / "ahead"), (decoder, tmp_path / "decoder")):
        made.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    for load, given in ((load_model, (tmp_path / "ahead",)), (language_model, (looks_ahead, tokenizer()))):
        with pytest.raises(UsageError, match=rf"no causal language model: what {kind}\w+ says of a token depends"):
            load(*given)
    assert load_model(tmp_path / "decoder").network.config.is_decoder


def test_a_folder_of_damaged_descriptions_is_one_sentence(tmp_path: Path) -> None:
    """Whatever the libraries make of it."""
    good = save_model(tiny(scale=1.0), tmp_path / "good")
    for number, (file, text) in enumerate(
        (
            ("config.json", "[" * 5000),
            ("config.json", "[1]"),
            ("config.json", '{"model_type": ["llama"]}'),
            ("config.json", '{"model_type": "llama", "hidden_size": "big"}'),
            ("generation_config.json", '{"eos_token_id": "end"}'),
            ("generation_config.json", "[" * 5000),
            ("tokenizer.json", "[" * 5000),
            ("tokenizer_config.json", "[]"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        (folder / file).write_text(text)
        with pytest.raises(UsageError, match="cannot be loaded") as error:
            load_model(folder)
        assert len(str(error.value)) < 600, (file, text[:30])


def test_adapters_of_adapters_are_refused(tmp_path: Path) -> None:
    """Their own folder, too, which would be loaded for ever."""
    save_model(tiny(scale=1.0), tmp_path / "model")
    made = add_adapters(load_model(tmp_path / "model"), rank=2, alpha=4.0, dropout=0.0, seed=0)
    folder = save_model(made, tmp_path / "adapters")
    file = folder / "adapter_config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "base_model_name_or_path": str(folder)}))
    with pytest.raises(UsageError, match="which are adapters too; expected a model"):
        load_model(folder)


def test_a_model_saved_when_the_disk_is_full_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the library that writes has an error of its own for it."""
    from safetensors import SafetensorError

    folder = save_model(tiny(), tmp_path / "model")
    lm = tiny(seed=1)
    for error in (OSError(errno.ENOSPC, "No space left"), SafetensorError("No space left on device")):
        monkeypatch.setattr(type(lm.model), "save_pretrained", partial(_raises, error))
        with pytest.raises(RunError, match=r"disk is full|No space left"):
            save_model(lm, folder)
        monkeypatch.undo()
        assert torch.equal(logits(load_model(folder)), logits(tiny()))
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


def _raises(error: Exception, place: str, **_: object) -> None:
    Path(place).mkdir()
    (Path(place) / "config.json").write_text("{}")
    raise error
