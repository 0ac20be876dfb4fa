"""Options of the command line over a YAML file: one dotted option a field."""

from typing import Literal

import pytest
from cli_cases import field_names
from pydantic import Field

from data.errors import UserError
from data.settings import Settings
from reasoning_rl.config import PPOConfig
from reasoning_rl.dpo import DPOConfig
from reasoning_rl.dpo_iter import DPOIterConfig
from reasoning_rl.options import describe, parse, several_values
from reasoning_rl.reward_model import RMConfig
from reasoning_rl.rft import RFTConfig
from reasoning_rl.sft import SFTConfig


class Inner(Settings):
    learning_rate: float = 1e-3
    """Peak rate."""
    clip: float | None = 0.2
    """Bound;
    none is off."""


class Outer(Settings):
    name: str
    """Who."""
    num_x: int = Field(3, ge=1)
    """How many."""
    kind: Literal["a", "b"] = "a"
    is_on: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    inner: Inner = Inner()


def outer(*args: str) -> Outer:
    parsed = parse(args, Outer)
    return Outer.from_dict(parsed.values, parsed.where)


def test_every_field_has_one_dotted_option_with_dashes_or_underscores() -> None:
    assert field_names(Outer) == [
        *("name", "num_x", "kind", "is_on", "betas"),
        *("inner.learning_rate", "inner.clip"),
    ]
    config = outer("--name", "x", "--num-x", "5", "--inner.learning-rate=1e-4", "--inner.clip", "none")
    assert config == Outer(name="x", num_x=5, inner=Inner(learning_rate=1e-4, clip=None))
    assert outer("--name", "x", "--num_x", "5").num_x == 5


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("--inner.learning-rate", "1e-4", 1e-4),
        ("--inner.learning-rate", "-1E-4", -1e-4),
        ("--inner.learning-rate", ".5", 0.5),
        ("--inner.learning-rate", "3", 3),
        ("--inner.clip", "", ""),
        ("--inner.clip", "~", "~"),
        ("--inner.clip", "None", None),
        ("--inner.clip", "null", None),
        ("--is-on", "true", True),
        ("--betas", "[0.8, 0.9]", (0.8, 0.9)),
        ("--name", "runs/2e-3/model", "runs/2e-3/model"),
        ("--name", "3e", "3e"),
        ("--name", "a=b", "a=b"),
        ("--name", "", ""),
        ("--name", "[broken", "[broken"),
    ],
)
def test_values_are_read_as_what_they_look_like(option, text, value) -> None:
    for words in ((option, text), (f"{option}={text}",)):
        values = parse(words, Outer).values
        *path, last = option[2:].replace("-", "_").split(".")
        for part in path:
            values = values[part]
        read = values[last]
        assert read == (list(value) if isinstance(value, tuple) else value)
        assert type(read) is not str or isinstance(value, str)


@pytest.mark.parametrize("text", ["1234", "2024-01-01", "true", "1e5", "a: b", "#5", "007"])
def test_a_text_stays_the_text_that_was_typed(text) -> None:
    """A folder may be named like a number or a date."""
    assert outer("--name", text).name == text


def test_options_win_over_the_file_wherever_they_stand(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: file\nnum_x: 7\ninner:\n  clip: 0.5\n  learning_rate: 0.1\n")
    for words in (["--config", str(file), "--inner.clip", "0.3"], ["--inner.clip=0.3", f"--config={file}"]):
        assert outer(*words) == Outer(name="file", num_x=7, inner=Inner(learning_rate=0.1, clip=0.3))
    assert parse(["--config", str(file)], Outer).where == str(file)


def test_a_setting_of_true_or_false_may_stand_bare() -> None:
    assert outer("--is-on", "--name", "x").is_on and outer("--name", "x", "--is-on").is_on
    assert not outer("--is-on", "false", "--name", "x").is_on


def test_an_option_of_several_files_takes_all_words_up_to_the_next_option() -> None:
    words = ["rows.jsonl", "--against", "a.jsonl", "b c.jsonl", "--limit=3"]
    assert several_values(words, "--against") == [
        "rows.jsonl",
        '--against=["a.jsonl", "b c.jsonl"]',
        "--limit=3",
    ]
    with pytest.raises(UserError, match="option --against needs one or more values"):
        several_values(["rows.jsonl", "--against", "--limit=3"], "--against")


def test_flags_and_words_are_kept_apart_from_settings() -> None:
    parsed = parse(["gsm8k", "--resume", "--name", "x"], Outer, flags=["resume"], positional=1)
    assert (parsed.positional, parsed.flags, parsed.values) == (["gsm8k"], {"resume"}, {"name": "x"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nam", "x"], r"unknown option --nam; did you mean --name"),
        (["--learning-rate", "1"], r"unknown option --learning-rate; did you mean --inner\.learning-rate\?"),
        (["--inner", "1"], "unknown option --inner"),
        (["--zzzzzz", "1"], r"unknown option --zzzzzz; known: .*--help"),
        (["--name"], "option --name needs a value: --name VALUE"),
        (["--name", "--num-x", "3"], "option --name needs a value"),
        (["x"], "unexpected word 'x'; options look like --name value"),
        (["-n", "3"], "unexpected word '-n'"),
        (["--config", "absent.yaml"], r"absent\.yaml: no such config file"),
        (["--resume=yes"], "--resume takes no value"),
    ],
)
def test_a_slip_on_the_command_line_is_named(words, message) -> None:
    with pytest.raises(UserError, match=message):
        parse(words, Outer, flags=["resume"])


def test_what_other_tools_call_a_setting_finds_it_here() -> None:
    for word, meant in (
        ("--fit.lr", "--fit.learning-rate"),
        ("--num-train-epochs", "--fit.epochs"),
        ("--report_to", "--tracking.trackers"),
        ("--critic.lora-r", "--critic.lora.rank"),
    ):
        with pytest.raises(UserError, match=rf"unknown option {word}; did you mean .*{meant}( or|\?)"):
            parse([word, "1"], PPOConfig if "critic" in word else SFTConfig)


def test_a_wrong_value_is_named_by_its_dotted_path() -> None:
    with pytest.raises(UserError, match=r"command line: num_x: .*greater than or equal to 1, got 0"):
        outer("--name", "x", "--num-x", "0")
    with pytest.raises(UserError, match=r"kind: .*'a' or 'b', got 'c'"):
        outer("--name", "x", "--kind", "c")


def test_help_rows_give_option_default_and_docstring() -> None:
    rows = dict(describe(Outer))
    assert rows["--name (required)"] == "Who."
    assert rows["--num-x (3)"] == "How many."
    assert rows["--is-on (false)"] == ""
    assert rows["--inner.clip (0.2)"] == "Bound; none is off."


@pytest.mark.parametrize("model", [PPOConfig, SFTConfig, DPOConfig, DPOIterConfig, RFTConfig, RMConfig])
def test_every_real_option_reads_back_the_default_that_help_shows(model) -> None:
    required = {name: "x" for name, info in model.model_fields.items() if info.is_required() or name == "prm"}
    words = []
    for option, _ in describe(model):
        name, default = option.removesuffix(")").split(" (", 1)
        if default != "required" and name != "--prm":
            words += [name, default.replace("(", "[").replace(")", "]")]
    parsed = parse(words, model)
    assert model.from_dict(parsed.values | required) == model.from_dict(required)


def test_every_choice_of_every_option_reads_back_as_typed(tmp_path) -> None:
    """`off` and `none` are choices of some fields: neither YAML's false nor "switched off"."""
    for field, choices in (
        ("reward.form", ("none", "sum", "clip", "delta", "clip_delta", "min")),
        ("reward.normalise", ("off", "scale", "standardise")),
        ("kl.estimator", ("k1", "k2", "k3")),
    ):
        for choice in choices:
            parsed = parse([f"--{field}", choice, "--policy", "p", "--prm", "q"], PPOConfig)
            group, name = field.split(".")
            assert getattr(getattr(PPOConfig.from_preset(parsed.values), group), name) == choice
            path = tmp_path / "c.yaml"
            path.write_text(f"policy: p\nprm: q\n{group}:\n  {name}: {choice}\n")
            parsed = parse(["--config", str(path)], PPOConfig)
            assert getattr(getattr(PPOConfig.from_preset(parsed.values), group), name) == choice


def test_a_section_that_is_given_in_part_keeps_what_its_owner_sets_in_the_rest() -> None:
    """DPO's rate must not become the supervised one because somebody asked for two epochs."""
    for model, rate in ((DPOConfig, 1e-6), (DPOIterConfig, 1e-6), (RMConfig, 5e-6)):
        needed = {name: "x" for name, info in model.model_fields.items() if info.is_required()}
        config = model.from_dict({**needed, "fit": {"epochs": 2}})
        assert (config.fit.epochs, config.fit.learning_rate) == (2, rate)
        assert model.from_dict({**needed, "fit": {"learning_rate": 0.5}}).fit.learning_rate == 0.5
    rounds = RFTConfig.from_dict({"policy": "p", "rollout": {"max_new_tokens": 8}}).rollout
    assert (rounds.max_new_tokens, rounds.samples_per_problem) == (8, 4)
