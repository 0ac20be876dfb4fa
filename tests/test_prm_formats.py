"""Each published format against the way its authors read it, written out plainly, on a tiny random model.

The references below look for separators by id and run one solution at a time; they share no code with
prm/formats and hold for ordinary steps only. Wild steps are the business of the invariants further down.
"""

import math

import pytest
import torch
from format_cases import (
    ARCHITECTURES,
    PROBLEM,
    STEPS,
    WILD,
    checkpoint,
    decoder_of,
    metaspace_tokenizer,
    scorer,
    tokenizer_for,
    weights_of,
)
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from prm.formats import FORMATS, load_scorer
from prm.formats.encode import encode_all

NAMES = list(ARCHITECTURES)


def causal(name: str, part: str = "") -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(checkpoint(name) / part, dtype=torch.float32).eval()


def two_tokens(model, ids, positions, good, bad) -> list[float]:
    logits = model(torch.tensor([ids])).logits[0].double()
    return [float(logits[k, [good, bad]].softmax(-1)[0]) for k in positions]


def find(ids: list[int], token: int) -> list[int]:
    return [k for k, each in enumerate(ids) if each == token]


def tagged(name: str, text: str, tag: str, good: str, bad: str) -> list[float]:
    """Families that read two tokens at a tag."""
    tokenizer = tokenizer_for(name)
    ids = tokenizer(text)["input_ids"]
    id_of = tokenizer.convert_tokens_to_ids
    places = find(ids, id_of(tag)) if tag in tokenizer.get_added_vocab() else ends_of(tokenizer, text, tag)
    return two_tokens(causal(name), ids, places, id_of(good), id_of(bad))


def ends_of(tokenizer, text: str, tag: str) -> list[int]:
    """Last token of every occurrence of a tag that is no token: tokenise what stands before its end."""
    places, at = [], text.find(tag)
    while at >= 0:
        places.append(len(tokenizer(text[: at + len(tag)])["input_ids"]) - 1)
        at = text.find(tag, at + len(tag))
    return places


def reference_math_shepherd() -> list[float]:
    text = PROBLEM + " " + "\n".join(f"Step {k + 1}: {step} ки" for k, step in enumerate(STEPS)) + "\n"
    return tagged("math-shepherd", text, " ки", " +", " -")


def reference_er_prm() -> list[float]:
    text = PROBLEM + " " + " ".join(f"Step {k + 1}: {step} ки" for k, step in enumerate(STEPS))
    return tagged("er-prm", text, " ки", " +", " -")


def reference_math_psa() -> list[float]:
    text = PROBLEM + " " + " ".join(f"Step {k + 1}: {step} \n\n\n\n\n" for k, step in enumerate(STEPS))
    return tagged("math-psa", text, " \n\n\n\n\n", " +", " -")


def reference_llama_prm800k() -> list[float]:
    text = f"{PROBLEM} \n\n" + "".join(f"{step} \n\n\n\n" for step in STEPS)
    return tagged("llama-prm800k", text, " \n\n\n\n", "+", "-")


def reference_rlhflow_deepseek() -> list[float]:
    """One chat a step, cut behind the turn in question: the verdict's third last token says what is read."""
    tokenizer, model = tokenizer_for("rlhflow-deepseek"), causal("rlhflow-deepseek")
    good, bad = tokenizer.convert_tokens_to_ids("+"), tokenizer.convert_tokens_to_ids("-")
    chat, scores = [], []
    for k, step in enumerate(STEPS):
        chat.append({"role": "user", "content": step if k else f"{PROBLEM} {step}"})
        chat.append({"role": "assistant", "content": "+"})
        ids = tokenizer.apply_chat_template(chat, return_dict=False)
        assert ids[-2] == good
        scores += two_tokens(model, ids, [len(ids) - 3], good, bad)
    return scores


def reference_llemma() -> list[float]:
    """The mean of all logits; of the places only those behind "# Solution" count, without the first."""
    tokenizer = tokenizer_for("llemma")
    text = f"# Question\n\n{PROBLEM}\n\n# Solution\n\n" + "".join(f"{step}\n\n" for step in STEPS)
    starts = [
        len(tokenizer(text[: at + 1])["input_ids"]) - 1
        for at in range(len(text))
        if text[at : at + 2] == "\n\n"
    ]
    logits = causal("llemma")(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
    return logits.mean(-1).sigmoid()[starts[3:]].tolist()


def reference_qwen_math_prm(name: str = "qwen-math-prm") -> list[float]:
    tokenizer = tokenizer_for(name)
    chat = [
        {
            "role": "system",
            "content": r"Please reason step by step, and put your final answer within \boxed{}.",
        },
        {"role": "user", "content": PROBLEM},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    hidden = decoder_of(name, "model.")(torch.tensor([ids]))[0][0]
    hidden = hidden[find(ids, tokenizer.convert_tokens_to_ids("<extra_0>"))]
    w = weights_of(name)
    if name == "actprm":
        heads = []
        for e in range(5):
            value = hidden
            for layer in ("nn1", "nn2", "nn_out"):
                value = value @ w[f"score.model.{layer}.weight"][e] + w[f"score.model.{layer}.bias"][e]
                value = value if layer == "nn_out" else value.clamp(min=0)
            heads.append(value.squeeze(-1).sigmoid())
        return torch.stack(heads).mean(0).tolist()
    inner = (hidden @ w["score.0.weight"].T + w["score.0.bias"]).clamp(min=0)
    return (inner @ w["score.2.weight"].T + w["score.2.bias"]).softmax(-1)[:, 1].tolist()


def reference_actprm() -> list[float]:
    return reference_qwen_math_prm("actprm")


def pieces(name: str, prompt: str, separator: str, bos: bool) -> tuple[list[int], list[int]]:
    """Ids of pieces tokenised each for itself, and the last index of every separator."""
    tokenizer = tokenizer_for(name)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    whole = ([tokenizer.bos_token_id] if bos else []) + ids(prompt)
    ends = []
    for step in STEPS:
        whole = whole + ids(step) + ids(separator)
        ends.append(len(whole) - 1)
    return whole, ends


def token_classes(name: str, whole: list[int], ends: list[int]) -> torch.Tensor:
    model = AutoModelForTokenClassification.from_pretrained(checkpoint(name), dtype=torch.float32).eval()
    return model(torch.tensor([whole])).logits[0, ends]


def reference_trl() -> list[float]:
    return token_classes("trl", *pieces("trl", PROBLEM, "\n", True)).softmax(-1)[:, 1].tolist()


def reference_pure() -> list[float]:
    p = token_classes("pure", *pieces("pure", PROBLEM, "\n\n", False)).softmax(-1)
    return (p[:, 1] - p[:, 0]).tolist()


def reference_math_minos() -> list[float]:
    tokenizer = tokenizer_for("math-minos")
    text = f"Human: {PROBLEM}\n\nAssistant:" + "".join(f"Step {k + 1}: {s} и\n" for k, s in enumerate(STEPS))
    ids = tokenizer(text)["input_ids"]
    return (
        token_classes("math-minos", ids, find(ids, tokenizer.convert_tokens_to_ids("▁и")))
        .squeeze(-1)
        .tolist()
    )


def reasoneval(name: str, drop: int, put_back: bool) -> list[float]:
    """Padding tokens cut the text and are then removed; indices are counted as the authors count them."""
    tokenizer = tokenizer_for(name)
    pad = tokenizer.pad_token
    text = f"Question:\n{PROBLEM}\nAnswer:\nLet's think step by step.\n{pad}" + "".join(
        s + pad for s in STEPS
    )
    kept, places = [], []
    for index, token in enumerate(tokenizer(text)["input_ids"]):
        if token == tokenizer.pad_token_id:
            places.append(index - 1 - len(places))
        else:
            kept.append(token)
    kept = [tokenizer.bos_token_id, *kept] if put_back else kept
    hidden = decoder_of(name, "model.")(torch.tensor([kept]))[0][0, places[drop:]]
    w = weights_of(name)
    p = (hidden @ w["score_head.weight"].T + w.get("score_head.bias", torch.zeros(3))).softmax(-1)
    return (p[:, 1] + p[:, 2]).tolist()


def reference_reasoneval_7b() -> list[float]:
    return reasoneval("reasoneval-7b", 2, True)


def reference_reasoneval_34b() -> list[float]:
    return reasoneval("reasoneval-34b", 1, False)


def value_head(name: str, ids: list[int], ends: list[int]) -> torch.Tensor:
    hidden = decoder_of(name, "pretrained_model.model.")(torch.tensor([ids]))[0][0, ends]
    w = weights_of(name)
    return (hidden @ w["v_head.summary.weight"].T + w["v_head.summary.bias"]).squeeze(-1)


def reference_skywork() -> list[float]:
    return value_head("skywork", *pieces("skywork", f"{PROBLEM}\n", "\n", False)).sigmoid().tolist()


def reference_pqm() -> list[float]:
    tokenizer = tokenizer_for("pqm")
    text = f"[INST] {PROBLEM} [/INST]\n" + "\n".join(f"Step {k + 1}: {s} [PRM]" for k, s in enumerate(STEPS))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return value_head("pqm", ids, find(ids, tokenizer.convert_tokens_to_ids("[PRM]"))).tolist()


def reference_rest_mcts() -> list[float]:
    """One forward a prefix, all vocabulary logits of its last token into one linear layer."""
    tokenizer = tokenizer_for("rest-mcts")
    w = weights_of("rest-mcts")
    decoder, values = decoder_of("rest-mcts", "base_model.model."), []
    for k in range(1, len(STEPS) + 1):
        ids = tokenizer(f"{PROBLEM}\n" + "\n".join(STEPS[:k]))["input_ids"]
        logits = decoder(torch.tensor([ids]))[0][0, -1] @ w["base_model.lm_head.weight"].T
        values.append(float(logits @ w["LN.weight"][0] + w["LN.bias"]))
    return values


def reference_implicit_prm(name: str = "implicit-prm") -> list[float]:
    """Differences of coefficient * sum of log-ratios, token after token."""
    tokenizer = tokenizer_for(name)
    answer = "".join(f"Step {k + 1}: {step}\n\n" for k, step in enumerate(STEPS))
    before = f"<|im_start|>user\n{PROBLEM}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(before + answer, add_special_tokens=False)["input_ids"]
    first = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    ends = [end + 1 for end in ends_of(tokenizer, before + answer, "\n\n")]
    logps = []
    for part in ("", "reference"):
        logits = causal(name, part)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        logps.append([float(logits[t - 1, ids[t]]) for t in range(len(ids))])
    ratio = [a - b for a, b in zip(*logps, strict=True)]
    sums = [0.001 * math.fsum(ratio[first:end]) for end in ends]
    return [q - before for q, before in zip(sums, [0.0, *sums], strict=False)]


def reference_eurus_prm_stage2() -> list[float]:
    return reference_implicit_prm("eurus-prm-stage2")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_ordinary_steps_score_as_their_authors_read_them(name) -> None:
    expected = globals()["reference_" + name.replace("-", "_")]()
    found = scorer(name).score([PROBLEM], [STEPS])[0]
    assert len(expected) == len(STEPS)
    assert found == pytest.approx(expected, abs=2e-5)
    assert len({round(score, 5) for score in found}) == len(STEPS)  # else a mix-up would not show


@torch.no_grad()
def test_math_shepherd_with_a_tokenizer_that_learned_its_tag_as_a_word() -> None:
    """SentencePiece's kind: the tag and the verdicts carry their space, " ки" and not "ки"."""
    tokenizer = metaspace_tokenizer()
    folder = checkpoint("math-shepherd", tokenizer)
    ids = tokenizer(PROBLEM + " " + "\n".join(f"Step {k + 1}: {s} ки" for k, s in enumerate(STEPS)))[
        "input_ids"
    ]
    tag, good, bad = (tokenizer.convert_tokens_to_ids(t) for t in ("▁ки", "▁+", "▁-"))
    assert tokenizer.unk_token_id not in (tag, good, bad)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = two_tokens(model.eval(), ids, find(ids, tag), good, bad)
    found = load_scorer(folder, "math-shepherd").score([PROBLEM], [STEPS])[0]
    assert len(expected) == 3 and found == pytest.approx(expected, abs=2e-5)


# --- invariants of every format, on steps that would shift a careless reader -------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_wild_step_gets_its_own_score(name) -> None:
    row = scorer(name).score([PROBLEM + " ки <extra_0> +"], [WILD])[0]
    assert len(row) == len(WILD) and all(math.isfinite(score) for score in row)
    if FORMATS[name].is_probability:
        assert all(0 <= score <= 1 for score in row)
    assert scorer(name).score([PROBLEM, ""], [[], [""]])[0] == []
    assert len(scorer(name).score([""], [[""]])[0]) == 1
    assert scorer(name).score([], []) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_wild_step_is_read_at_the_separator_behind_it(name) -> None:
    """The tokens up to where a step is read decode to a text that holds that step and not the next."""
    spec, tokenizer = FORMATS[name], tokenizer_for(name)
    steps = [f"w{k}x {step} y{k}z" for k, step in enumerate(WILD)]
    (row,) = encode_all(tokenizer, spec, [PROBLEM], [[*steps, "The end."]])
    assert all(end is not None for end in row.step_ends)
    for k, end in enumerate(row.step_ends[:-1]):
        # ReasonEval-7B reads one token early, on purpose.
        text = tokenizer.decode(
            row.input_ids[: end + 1 - spec.read_offset], clean_up_tokenization_spaces=False
        )
        assert f"y{k}z" in text and f"w{k + 1}x" not in text
        if spec.read == "before" and spec.layout != "turns":
            assert text.endswith(f"y{k}z")
        elif spec.layout != "turns" and spec.read == "separator_end":
            assert text.endswith(spec.separator)
            assert end in row.separators


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_scores_as_its_rows_do_alone(name) -> None:
    problems = [PROBLEM, "Half of 8?", "", PROBLEM, "x" * 40]
    solutions = [STEPS, ["It is 4."], WILD, [], STEPS * 3]
    together = scorer(name, max_batch_tokens=10_000).score(problems, solutions)
    for problem, steps, row in zip(problems, solutions, together, strict=True):
        assert scorer(name, max_batch_tokens=1).score([problem], [steps])[0] == pytest.approx(row, abs=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_later_steps_do_not_change_earlier_scores(name) -> None:
    # An empty step between separators of white space has no tokens of its own: it is left out here.
    steps = [*STEPS, *(step if step.strip() else "word" for step in WILD)]
    whole = scorer(name).score([PROBLEM], [steps])[0]
    for k in (1, 3, 6):
        assert scorer(name).score([PROBLEM], [steps[:k]])[0] == pytest.approx(whole[:k], abs=3e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_scores_none_and_shifts_nothing(name) -> None:
    steps = STEPS * 4
    whole = scorer(name).score([PROBLEM], [steps])[0]
    (row,) = encode_all(tokenizer_for(name), FORMATS[name], [PROBLEM], [steps])
    limit = row.step_ends[6]
    cut = scorer(name, max_length=limit).score([PROBLEM], [steps])[0]
    assert cut[6:] == [None] * 6
    assert cut[:6] == pytest.approx(whole[:6], abs=3e-5)
    assert scorer(name, max_length=1).score([PROBLEM], [steps])[0] == [None] * 12


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_agrees_to_its_precision(name) -> None:
    scale = 1.0 if FORMATS[name].is_probability or name == "pure" else 40.0
    exact = scorer(name).score([PROBLEM], [STEPS])[0]
    half = scorer(name, dtype="bfloat16").score([PROBLEM], [STEPS])[0]
    assert half == pytest.approx(exact, abs=0.1 * scale)


@pytest.mark.parametrize("name", ["math-shepherd", "qwen-math-prm", "pure", "reasoneval-34b"])
def test_a_probability_of_exactly_zero_moves_nothing(name) -> None:
    """Readers that drop zeros from a mask of probabilities lose rows; ours index places."""
    scorer_of = load_scorer(checkpoint(name), name)
    with torch.no_grad():
        for tensor in [*scorer_of.head.parameters(), *scorer_of.head.buffers()]:
            tensor.mul_(1e4)
    row = scorer_of.score([PROBLEM], [WILD])[0]
    assert len(row) == len(WILD) and all(score is not None and math.isfinite(score) for score in row)
    assert any(score in (-1.0, 0.0, 1.0) for score in row)
