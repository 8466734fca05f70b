"""Everything that the command does with language models, as one Python call each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch

from steepest.api.drive import drive
from steepest.api.option_types import seen_as
from steepest.api.option_types.language import RLHF, DPOOptions, RewardModelOptions, SFTOptions
from steepest.errors import UsageError, as_path
from steepest.language.compare.comparison import Comparison, compare_models
from steepest.language.compare.report import checked_out, write_comparison
from steepest.language.data.datasets import read_prompts
from steepest.language.data.examples import Example, Message, Prompt, RowError
from steepest.language.data.rendering import Renderer, show_example
from steepest.language.models.language_model import LanguageModel
from steepest.language.models.loading import load_model
from steepest.language.models.packages import Device, Dtype
from steepest.language.scoring.generation import Response, Sampling, draw_uniforms, generate, response_text
from steepest.language.training.reward_model import RewardModel, RewardTrainer
from steepest.language.training.rewards import load_reward
from steepest.runs.language_run import LanguageRun
from steepest.seeding import stream_seed

PathLike = str | os.PathLike[str]


def sft(
    model: LanguageModel | PathLike,
    data: Any,
    *,
    eval_data: Any = None,
    out: PathLike | None = None,
    quiet: bool = True,
    **options: Unpack[SFTOptions],
) -> LanguageModel:
    """Fine-tune a language model on demonstrations and return it.

    Args:
        model: a Hugging Face id, a folder, a GGUF file, or a LanguageModel (trained in place), which
            ``language.language_model`` makes of a model and a tokenizer in memory.
        data: a .jsonl, .json or .parquet file, a folder, a dataset's id, or rows; see
            ``language.data.datasets.load_sft``.
        eval_data: held-out demonstrations.
        out: folder for metrics, checkpoints, the curve and the trained model; None writes nothing.
        quiet: whether to leave out the progress display.
        options: any field of ``LanguageRunConfig`` or ``SFTConfig``: epochs, learning_rate, lora_rank, packing, ...
    Raises:
        UsageError for what cannot work; RunError for what failed, with the last good checkpoint named.
    """
    return _trained("sft", model, data, eval_data, out, quiet, {**options}).model


def reward_model(
    model: LanguageModel | PathLike,
    data: Any,
    *,
    eval_data: Any = None,
    out: PathLike | None = None,
    quiet: bool = True,
    **options: Unpack[RewardModelOptions],
) -> RewardModel:
    """Train a reward model on preferences and return it; arguments and errors as for ``sft``.

    Args:
        data: preferences; see ``language.data.datasets.load_preferences``.
        options: any field of ``LanguageRunConfig`` or ``RewardModelConfig``.
    """
    trainer = _trained("reward", model, data, eval_data, out, quiet, {**options}).trainer
    return cast(RewardTrainer, trainer).model


def dpo(
    model: LanguageModel | PathLike,
    data: Any,
    *,
    eval_data: Any = None,
    out: PathLike | None = None,
    quiet: bool = True,
    **options: Unpack[DPOOptions],
) -> LanguageModel:
    """Train a language model on preferences directly and return it; arguments and errors as for ``sft``.

    Args:
        data: preferences; see ``language.data.datasets.load_preferences``.
        options: any field of ``LanguageRunConfig`` or ``DPOConfig``: kl_coef, loss, ...
    """
    return _trained("dpo", model, data, eval_data, out, quiet, {**options}).model


@seen_as(RLHF)
def rlhf(
    model: LanguageModel | PathLike,
    data: Any,
    reward: Any,
    *,
    algorithm: Literal["ppo", "rloo", "grpo"] = "ppo",
    eval_data: Any = None,
    out: PathLike | None = None,
    quiet: bool = True,
    **options: Any,
) -> LanguageModel:
    """Train a language model on prompts and a reward and return it; arguments and errors as for ``sft``.

    Args:
        data: prompts; see ``language.data.datasets.load_prompts``.
        reward: a RewardModel or its folder; a function ``reward(prompts, completions)`` that gives a number for each,
            which is given ``rows`` and columns of the data by these names, too; or "FILE.py:FUNCTION".
        options: any field of ``LanguageRunConfig`` or of the algorithm's config: kl_coef, max_new_tokens, ...
    """
    return _trained(algorithm, model, data, eval_data, out, quiet, {"reward": reward, **options}).model


def _trained(
    algorithm: str,
    model: LanguageModel | PathLike,
    data: Any,
    eval_data: Any,
    out: PathLike | None,
    quiet: bool,
    options: dict[str, Any],
) -> LanguageRun:
    place = None if out is None else as_path(out, "out")
    source = os.fspath(model) if isinstance(model, os.PathLike) else model  # what else it is, load_model refuses
    return drive(
        lambda note: LanguageRun(algorithm, source, data, eval_data=eval_data, out=place, note=note, **options),
        quiet=quiet,
    )


def resume_language(
    path: PathLike, *, data: Any = None, eval_data: Any = None, reward: Any = None, quiet: bool = True
) -> LanguageModel:
    """Finish an interrupted run from its last checkpoint; to the same bits as if it had never stopped."""
    run = drive(
        lambda note: LanguageRun.resume(
            as_path(path, "the run"), data=data, eval_data=eval_data, reward=reward, note=note
        ),
        quiet=quiet,
    )
    return run.model


def respond(
    model: LanguageModel | PathLike,
    prompts: Sequence[str | list[Message]],
    *,
    seed: int = 0,
    micro_batch_size: int = 64,
    on_token: Callable[[int], None] | None = None,
    **sampling: Any,
) -> list[str]:
    """Answers of a language model to prompts, each a text or a list of messages; as text, without their end token.

    Args:      seed of the samples; sampling: fields of ``language.scoring.generation.Sampling``
    Raises:    UsageError on a prompt that is empty or, with its answer, too long for the model, and on one prompt in
               the place of several
    Verified:  tests/unit/test_language_api.py::test_one_prompt_is_no_list_of_prompts
    """
    asked = _listed(prompts)
    lm = model if isinstance(model, LanguageModel) else load_model(model)
    drawn = draw_responses(
        lm, asked, Sampling(**sampling), seed=seed, micro_batch_size=micro_batch_size, on_token=on_token
    )
    return [response_text(lm, response) for response in drawn]


def _listed(prompts: Any) -> list[Any]:
    """Prompts as a list. UsageError for what is one prompt, or none."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise UsageError(
            f"prompts is of type {type(prompts).__name__}; expected a list of prompts, each a text or a list of "
            "messages, such as ['The film was']"
        )
    listed = list(cast(Iterable[Any], prompts))
    if listed and all(isinstance(prompt, Mapping) and "role" in prompt for prompt in listed):
        raise UsageError("prompts are messages: one conversation is one prompt, and goes into a list: [messages]")
    return listed


def draw_responses(
    lm: LanguageModel,
    prompts: Sequence[str | list[Message]],
    sampling: Sampling,
    *,
    seed: int,
    micro_batch_size: int = 64,
    on_token: Callable[[int], None] | None = None,
) -> list[Response]:
    """Responses with their tokens and log-probabilities; arguments as for ``respond``."""
    tokens = _prompt_tokens(lm, prompts)
    uniforms = draw_uniforms(len(prompts), sampling, _generator(seed))
    return generate(lm, tokens, sampling, uniforms, micro_batch_size=micro_batch_size, on_token=on_token)


def _prompt_tokens(lm: LanguageModel, prompts: Sequence[str | list[Message]]) -> list[tuple[int, ...]]:
    renderer = Renderer(lm)
    tokens: list[tuple[int, ...]] = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            tokens.append(renderer.prompt(prompt))
        except RowError as error:
            raise UsageError(f"prompt {number}: {error}") from error
    return tokens


def _generator(seed: int) -> torch.Generator:
    """Return the generator of answers: the same in every verb."""
    return torch.Generator().manual_seed(stream_seed(seed, "responses"))


def answer_prompts(
    lm: LanguageModel,
    prompts: Sequence[Any],
    sampling: Sampling,
    *,
    seed: int,
    micro_batch_size: int = 64,
    raw: bool = False,
    system: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``prompt`` and ``completion``. A text is asked in the chat template, if there is one, unless ``raw``."""
    refuse_system(lm, raw, system)
    asked = as_asked(lm, prompts, raw, system)
    drawn = draw_responses(lm, asked, sampling, seed=seed, micro_batch_size=micro_batch_size)
    return [
        {"prompt": prompt, "completion": response_text(lm, response), "ended": response.ended}
        for prompt, response in zip(prompts, drawn, strict=True)
    ]


def as_asked(lm: LanguageModel, prompts: Sequence[Any], raw: bool, system: str | None) -> list[str | list[Message]]:
    """Prompts as they are put to the model: a text in the chat template, if there is one, unless ``raw``."""
    if raw or not lm.tokenizer.chat_template:
        return list(prompts)
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [[*first, {"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]


def refuse_system(lm: LanguageModel, raw: bool, system: str | None) -> None:
    """UsageError where there is no conversation that ``system`` could begin."""
    if system is not None and (raw or not lm.tokenizer.chat_template):
        why = "raw leaves out the chat template" if raw else f"{name_of(lm)} has no chat template"
        raise UsageError(f"system is given, but {why}, and so there is no conversation that it could begin")


def compare(
    model_a: LanguageModel | PathLike,
    model_b: LanguageModel | PathLike,
    prompts: Any,
    *,
    judge: Any = None,
    reference: LanguageModel | PathLike | None = None,
    out: PathLike | None = None,
    seed: int = 0,
    micro_batch_size: int = 64,
    raw: bool = False,
    system: str | None = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    template_kwargs: str | Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Comparison:
    """Compare two language models on the same prompts and the same random numbers.

    Args:
        model_a, model_b: what ``load_model`` takes, or LanguageModels.
        prompts: texts or lists of messages; or a file, a folder, a dataset's id or rows with a column ``prompt``.
        judge: what gives answers a reward: a RewardModel or its folder, a function as ``rlhf`` takes it, or
            "FILE.py:FUNCTION". Without one there is no reward and no win rate.
        reference: a third model, from which the KL of both is measured too.
        out: a .json file for all metrics and answers; the same with the ending .md, for reading, is written beside it.
        seed: of the answers, which are those of ``respond`` and ``steepest generate`` at this seed.
        raw, system: whether to leave out the chat template, and what conversations begin with.
        dtype, device, template_kwargs: of the models that are loaded here.
        note: takes lines of text about what is being done.
        sampling: fields of ``language.scoring.generation.Sampling``.
    Raises:
        UsageError for what cannot work, such as a KL from a reference with another tokenizer.
    """
    settings = Sampling(**sampling)
    place = None if out is None else checked_out(as_path(out, "out"))
    rows = prompt_rows(prompts)
    given = [row["prompt"] for row in rows]
    named_judge = None if judge is None else (name_of(judge), load_reward(judge))

    def load(source: LanguageModel | PathLike) -> tuple[str, LanguageModel]:
        options: dict[str, Any] = {"dtype": dtype, "device": device, "template_kwargs": template_kwargs}
        lm = source if isinstance(source, LanguageModel) else load_model(source, **options)
        refuse_system(lm, raw, system)
        return name_of(source), lm

    def render(lm: LanguageModel) -> list[Prompt]:
        tokens = _prompt_tokens(lm, as_asked(lm, given, raw, system))
        return [Prompt(t, row) for t, row in zip(tokens, rows, strict=True)]

    found = compare_models(
        load(model_a),
        load(model_b),
        render,
        settings,
        judge=named_judge,
        reference=None if reference is None else load(reference),
        seed=seed,
        generator=_generator(seed),
        micro_batch_size=micro_batch_size,
        note=note or (lambda _: None),
    )
    if place is not None:
        write_comparison(found, place)
    return found


def prompt_rows(prompts: Any) -> list[dict[str, Any]]:
    """Prompts, however they were given, as rows with a prompt."""
    if isinstance(prompts, (str, Path)):
        return read_prompts(prompts)
    items = _listed(prompts)
    # A message is a dict too, but then the prompt that it belongs to is a list.
    rows = [dict(p) if hasattr(p, "keys") else {"prompt": p} for p in items]
    return read_prompts(rows)


def name_of(source: Any) -> str:
    """Return the name of a model or a judge in a comparison."""
    if isinstance(source, (LanguageModel, RewardModel)):
        lm = source.lm if isinstance(source, RewardModel) else source
        return lm.source or "(made in Python)"
    return str(getattr(source, "__name__", source))


def show_batch(run: LanguageRun) -> str:
    """The first batch of a run as it is learned, sequence by sequence."""
    parts: list[str] = []
    for batch in run.trainer.shown():
        for tokens, attention, response in zip(
            batch.tokens, batch.tokens if batch.attention_mask is None else batch.attention_mask, batch.response_mask,
            strict=True,
        ):  # fmt: skip
            length = len(tokens) if batch.attention_mask is None else int(attention.sum())
            example = Example(tuple(tokens[:length].tolist()), tuple(response[:length].tolist()))
            parts.append(show_example(run.model, example))
    return "\n\n".join(parts)
