"""Small models from nothing: a byte-pair tokenizer trained on your text, and a Llama with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from steepest.errors import UsageError
from steepest.language.models.language_model import LanguageModel, language_model
from steepest.language.models.packages import require_language
from steepest.seeding import drawing_from

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of many models: each message between two control tokens, its role on a line of its own."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096, *, chat: bool = False) -> Any:
    """Train a byte-level BPE tokenizer; any text can be encoded and comes back as it was.

    Source:    Sennrich et al. 2016; bytes as the alphabet as in GPT-2
    Args:      vocabulary: number of tokens, 256 bytes and the special ones included; chat: with the ChatML template,
               whose end of turn is then the end token
    Raises:    UsageError if the vocabulary cannot hold the bytes
    Verified:  tests/unit/test_language_models.py::test_a_trained_tokenizer_is_lossless_and_repeatable
    """
    require_language()
    import tokenizers
    import transformers

    special = [END_OF_TEXT, PADDING, *([TURN, END_OF_TURN] if chat else [])]
    if vocabulary < 256 + len(special):
        raise UsageError(
            f"vocabulary is {vocabulary}; expected at least {256 + len(special)}: bytes and special tokens"
        )
    model: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END_OF_TURN if chat else END_OF_TEXT,
        pad_token=PADDING,
        additional_special_tokens=[t for t in special if t not in (END_OF_TURN if chat else END_OF_TEXT, PADDING)],
    )
    tokenizer.chat_template = CHATML if chat else None
    return tokenizer


def tiny_llama(
    tokenizer: Any,
    *,
    layers: int = 4,
    width: int = 192,
    heads: int = 6,
    context: int = 512,
    dropout: float = 0.0,
    seed: int = 0,
) -> LanguageModel:
    """A Llama with random weights, its head tied to its embedding: 2.6 million parameters at a vocabulary of 4096.

    Args:      dropout on the attention weights, in SFT only
    Verified:  tests/unit/test_language_models.py::test_a_tiny_llama_is_a_function_of_its_seed
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        attention_dropout=dropout,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with drawing_from(seed):
        model = transformers.LlamaForCausalLM(config)
    return language_model(model, tokenizer)
