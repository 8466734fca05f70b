"""The command reads its options from dataclasses, shows them in groups, and says what is wrong in people's words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest

from steepest.algorithms import ALGORITHMS, find_config
from steepest.cli import agents, checks, datasets, language, ope, train
from steepest.cli.help import GROUPS, documented, grouped
from steepest.cli.options import Usage, options_of, parse, pop_flag
from steepest.environments.config import AtariOptions
from steepest.errors import UsageError
from steepest.fields import Checked, Count, Positive
from steepest.runs.options.aliases import ALIASES, MEANINGS, called_here
from steepest.runs.options.config import RunConfig, refuse_unknown
from steepest.runs.options.language import TRAINERS, LanguageRunConfig, find_trainer_config
from steepest.runs.options.resolve import resolve_options
from steepest.runs.options.varied import named_members, read_varied, varied_as_texts

VERB = Usage("steepest verb", "WORD", least=1, most=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What a verb takes."""

    steps: Count = 3
    """Steps to
    take."""
    rate: Positive | None = None
    sizes: tuple[Count, ...] = (64, 64)
    pair: tuple[float, float] | None = None
    mode: Literal["auto", "on"] = "auto"
    out: Path | None = None
    names: tuple[str, ...] = ()
    fast: bool = False
    log: bool = True


def read(*argv: str) -> Any:
    return parse(Options, argv, VERB)[0]


def test_flags_are_read() -> None:
    assert read("w") == Options()
    assert read("w", "--steps", "1e6").steps == 1_000_000
    assert read("w", "--steps=12").steps == 12
    assert read("--sizes", "8", "4", "--rate", "3e-4", "w").sizes == (8, 4)
    assert read("w", "--rate", "none").rate is None
    assert read("w", "--pair", "-16.6", "3234").pair == (-16.6, 3234.0)
    assert read("w", "--out", "a/b").out == Path("a/b")
    assert read("w", "--names", "-3 dB", "x=y").names == ("-3 dB", "x=y")
    assert read("w", "--sizes").sizes == ()
    assert parse(Options, ["a", "--fast", "b"], VERB)[1] == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "fast", "log"),
    [
        (("--fast",), True, True),
        (("--fast", "False"), False, True),
        (("--fast=true", "--no-log"), True, False),
        (("--log=False",), False, False),
        (("--log", "true", "--no-fast"), False, True),
    ],
)
def test_flags_say_yes_and_no(argv: tuple[str, ...], fast: bool, log: bool) -> None:
    options = read("w", *argv)
    assert (options.fast, options.log) == (fast, log)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("w", "--steps"), "--steps needs a value"),
        (("w", "--steps", "--fast"), "--steps needs a value"),
        (("w", "--pair", "1"), "--pair needs 2 values"),
        (("w", "--steps", "2.5"), "steps is 2.5; expected a whole number"),
        (("w", "--steps", "0"), "steps is 0; expected at least 1"),
        (("w", "--sizes", "8", "big"), "sizes is 'big'; expected a whole number"),
        (("w", "--mode", "off"), "mode is 'off'; expected one of 'auto', 'on'"),
        (("w", "--fast=maybe"), "fast is 'maybe'; expected True or False"),
        (("w", "--stepps", "1"), "steepest verb has no option --stepps; did you mean --steps"),
        (("w", "-s", "1"), "steepest verb has no option --s"),
        (("w", "--no-steps"), "has no option --no-steps"),
        ((), "steepest verb needs WORD"),
        (("a", "b", "c"), "c is too much"),
    ],
)
def test_wrong_flags_are_told(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        read(*argv)


@pytest.mark.parametrize(
    ("argv", "value", "rest"),
    [
        (["a", "--from", "run", "--fast"], "run", ["a", "--fast"]),
        (["--from=run=2", "b"], "run=2", ["b"]),
        (["a", "--from", "--help"], "", ["a", "--help"]),
        (["--fromage", "run"], None, ["--fromage", "run"]),
        (["a", "--from", "-1"], "-1", ["a"]),
    ],
)
def test_a_flag_is_no_value_of_another(argv: list[str], value: str | None, rest: list[str]) -> None:
    assert pop_flag(argv, "--from") == value
    assert argv == rest
    for missing in (["--from"], ["--from", "--fast"], ["--from=", "--fast"]):
        with pytest.raises(UsageError, match="--from needs a value"):
            pop_flag(missing, "--from")


def test_an_option_without_a_default_must_be_given() -> None:
    with pytest.raises(UsageError, match="steepest collect needs --out"):
        parse(datasets.CollectOptions, ["random"], Usage("steepest collect", "POLICY", most=1))


def test_parts_have_options_of_their_own() -> None:
    settings, _ = resolve_options("ppo", "CartPole-v1", {})
    assert not any(option.name.startswith("atari") for option in options_of(RunConfig, settings))
    options = options_of(RunConfig, dataclasses.replace(settings, atari=AtariOptions()))
    assert {f"atari.{f.name}" for f in dataclasses.fields(AtariOptions)} <= {option.name for option in options}


KINDS = [
    *map(find_config, ALGORITHMS),
    *map(find_trainer_config, TRAINERS),
    *(RunConfig, LanguageRunConfig, train.AgentOutputOptions, train.LanguageOutputOptions, train.ResumeOptions),
    *(agents.EvaluateOptions, agents.PlotOptions, checks.VerifyOptions, checks.EstimatorsOptions),
    *(datasets.CollectOptions, datasets.ShowOptions, language.GenerateOptions, language.CompareOptions),
    ope.OpeOptions,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_fields_are_documented(kind: type[Any]) -> None:
    words = documented(kind)
    assert [f.name for f in dataclasses.fields(kind) if not words.get(f.name, "").strip()] == []


def test_documentation_is_that_of_the_nearest_class() -> None:
    assert documented(Options)["steps"].split() == ["Steps", "to", "take."]
    assert documented(find_config("trpo"))["learning_rate"] == "Adam's step size for the value function."
    assert documented(find_trainer_config("ppo"))["update_epochs"] == "Passes over a batch of responses."


def test_every_option_of_a_group_exists() -> None:
    known = {f.name for kind in KINDS for f in dataclasses.fields(kind)}
    known |= {f"live.{f.name}" for f in dataclasses.fields(train.LiveOptions)}
    for group, names in GROUPS.items():
        assert set(names) <= known, group
        assert len(set(names)) == len(names), group
    everything = [name for names in GROUPS.values() for name in names]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_no_option_is_lost_in_the_groups(algorithm: str) -> None:
    settings, config = resolve_options(algorithm, None, {})
    options = [o for part in (settings, config, train.AgentOutputOptions()) for o in options_of(type(part), part)]
    groups = grouped(options)
    assert list(groups) == ["common", "labels while training", "evaluation", "output", "advanced"]
    assert sorted(o.name for group in groups.values() for o in group) == sorted(o.name for o in options)
    assert all(groups.values())


@pytest.mark.parametrize(
    ("algorithm", "name", "message"),
    [
        ("ppo", "lr", "ppo has no option 'lr'; it is called learning_rate here"),
        ("ppo", "batch_size", r"it is called minibatches here \(the number of minibatches in a rollout, not the rows"),
        ("ppo", "n_steps", "it is called rollout_steps here"),
        ("ppo", "ent_coef", "it is called entropy_coef here"),
        ("sac", "ent_coef", r"it is called temperature here \(none learns it\)"),
        ("sac", "tau", "it is called target_update_rate here"),
        ("off_pac", "lr", "it is called policy_learning_rate here"),
        ("td3", "buffer_sise", "did you mean buffer_size"),
        ("ppo", "buffer_size", "ppo has no option 'buffer_size'$"),
        ("ppo", "zzz", "ppo has no option 'zzz'$"),
    ],
)
def test_names_of_other_libraries_are_explained(algorithm: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_options(algorithm, "CartPole-v1", {name: 1})


@pytest.mark.parametrize(
    ("name", "here"), [("n_envs", "num_envs"), ("timesteps", "total_steps"), ("Vf-Coef", "value_coef")]
)
def test_spelling_of_other_names_is_forgiven(name: str, here: str) -> None:
    assert called_here(name, ["num_envs", "total_steps", "value_coef"]) == (here, "")


def test_aliases_lead_to_options() -> None:
    known = {f.name for kind in KINDS for f in dataclasses.fields(kind)}
    for alias, names in ALIASES.items():
        assert set(names) <= known, alias
        assert alias not in names
    assert all(here in ALIASES[alias] for alias, here in MEANINGS)


def test_an_option_that_exists_is_not_taken_for_another() -> None:
    refuse_unknown({"batch_size": 64, "n_steps": 3}, ["batch_size", "n_steps", "minibatches", "rollout_steps"], "sac")


def test_settings_that_differ_are_read() -> None:
    varied = read_varied(["learning_rate=1e-4, 3e-4", "target_update_every=1,2"])
    assert varied == {"learning_rate": (1e-4, 3e-4), "target_update_every": (1, 2)}
    assert [type(x) for x in varied["target_update_every"]] == [int, int]
    assert read_varied(varied_as_texts(varied)) == varied
    assert varied_as_texts(["gamma=0.9"]) == ["gamma=0.9"]
    assert named_members((3, 4), {}) == ["seed 3", "seed 4"]
    assert named_members((3, 4), varied)[1] == "seed 4 (learning_rate 0.0003, target_update_every 2)"
    for texts, message in (
        (["learning_rate"], "expected NAME=VALUE,VALUE,..., such as"),
        (["gamma=0.9,high"], "vary has 'high' for gamma; expected numbers"),
        (["gamma="], "vary has '' for gamma"),
        (["gamma=0.9,0.8", "gamma=0.7,0.6"], "vary has gamma twice"),
    ):
        with pytest.raises(UsageError, match=message):
            read_varied(texts)
