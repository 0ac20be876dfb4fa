"""Published PRMs that score in one forward, as PRMFormats; docs/formats.md says what each entry rests on."""

from prm.formats.spec import PRMFormat

_MATH_SHEPHERD = PRMFormat(
    name="math-shepherd",
    models=("peiyi9979/math-shepherd-mistral-7b-prm", "OpenRLHF/Mistral-7b-PRM-Math-Shepherd"),
    prompt="{problem} ",
    step="Step {i}: {step}",
    separator=" ки",
    between="\n",
    splitter="step_marker",
    head="lm_head",
    readout="two_token",
    good=" +",
    bad=" -",
    token_ids={"separator": 12902, "good": 648, "bad": 387},
)
_RLHFLOW = PRMFormat(
    name="rlhflow-deepseek",
    models=("RLHFlow/Llama3.1-8B-PRM-Deepseek-Data",),
    layout="turns",
    prompt="{problem} ",
    separator="",
    head="lm_head",
    readout="two_token",
    token_ids={"good": 10, "bad": 12},
    aggregation="mean",
)
_QWEN = PRMFormat(
    name="qwen-math-prm",
    models=("Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-72B", "Qwen/Qwen2.5-Math-7B-PRM800K"),
    architectures=("Qwen2ForProcessRewardModel",),
    layout="chat",
    system="Please reason step by step, and put your final answer within \\boxed{}.",
    prompt="{problem}",
    separator="<extra_0>",
    head="two_layer",
    readout="class2",
    token_ids={"separator": 151651},
    max_length=4096,
    aggregation="prod",
)
_TRL = PRMFormat(
    name="trl",
    models=(),
    prompt="{problem}",
    separator="\n",
    splitter="newline",
    strip=False,
    tokenise="separate",
)
_REASONEVAL = PRMFormat(
    name="reasoneval-34b",
    models=("GAIR/ReasonEval-34B",),
    architectures=("ReasonEval_34B",),
    prompt="Question:\n{problem}\nAnswer:\nLet's think step by step.\n",
    separator="{pad}",
    separator_removed=True,
    read="before",
    head="score_head",
    readout="validity",
)
_SKYWORK = PRMFormat(
    name="skywork",
    models=(
        "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
        "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B",
    ),
    prompt="{problem}\n",
    separator="\n",
    replace_in_steps={"\n": " "},
    tokenise="separate",
    head="value_head",
    readout="sigmoid",
    aggregation="mean",
)
_PRM800K = PRMFormat(
    name="llama-prm800k",
    models=("Llama-PRM800K", "VersaPRM*"),
    prompt="{problem} \n\n",
    separator=" \n\n\n\n",
    head="lm_head",
    readout="two_token",
    token_ids={"separator": 23535, "good": 10, "bad": 12},
)
_IMPLICIT = PRMFormat(
    name="implicit-prm",
    models=("ImplicitPRM*",),
    layout="chat",
    prompt="{problem}",
    step="Step {i}: {step}",
    separator="\n\n",
    head="log_ratio",
    readout="step_ratio",
    reference="meta-llama/Llama-3.1-8B-Instruct",
    coefficient=0.001,
    threshold=0.0,
)
SCORERS = (
    PRMFormat(name="stepwell", splitter="newline", separator="\n", strip=False),
    _MATH_SHEPHERD,
    # arXiv:2412.11006. The tag follows the step on its line, the next step begins behind a space.
    _MATH_SHEPHERD.model_copy(
        update={
            "name": "er-prm",
            "models": ("llama3.1-math-prm",),
            "between": " ",
            "token_ids": {},
        }
    ),
    PRMFormat(
        name="math-psa",
        models=("openreasoner/Math-psa",),
        prompt="{problem} ",
        step="Step {i}: {step}",
        separator=" \n\n\n\n\n",
        between=" ",
        splitter="step_marker",
        replace_in_steps={"\n": " "},
        replace_in_problem={"\n": " "},
        head="lm_head",
        readout="two_token",
        good=" +",
        bad=" -",
        token_ids={"separator": 76325, "good": 488, "bad": 481},
    ),
    _PRM800K,
    _PRM800K.model_copy(
        update={
            "name": "qwen-prm800k",
            "models": ("Qwen-PRM800K",),
            "token_ids": {"separator": 22701, "good": 10, "bad": 12},
        }
    ),
    _RLHFLOW,
    _RLHFLOW.model_copy(
        update={
            "name": "rlhflow-mistral",
            "models": ("RLHFlow/Llama3.1-8B-PRM-Mistral-Data",),
            "splitter": "step_marker",
        }
    ),
    _QWEN,
    _TRL,
    _TRL.model_copy(
        update={
            "name": "trl-blank-line",
            "models": (
                "HuggingFaceH4/Qwen2.5-Math-1.5B-Instruct-PRM-0.2",
                "HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2",
            ),
            "separator": "\n\n",
            "splitter": "blank_line",
        }
    ),
    # arXiv:2504.15275. The model card names "\n" as separator, PRMBench's adapter "\n\n": the code that ran.
    PRMFormat(
        name="pure",
        models=("jinachris/Qwen2.5-Math-7B-PRM800K", "PURE-PRM*"),
        prompt="{problem}",
        separator="\n\n",
        tokenise="separate",
        bos=False,
        readout="class2_difference",
        aggregation="softmin",
        threshold=0.0,
    ),
    _REASONEVAL,
    _REASONEVAL.model_copy(
        update={
            "name": "reasoneval-34b-redundancy",
            "models": (),
            "architectures": (),
            "readout": "redundancy",
            "threshold": 0.85,
        }
    ),
    # Its padding token is its BOS, and the authors' code counts places before it puts the BOS back: what they
    # published is read one token earlier. Kept, so that scores are theirs.
    _REASONEVAL.model_copy(
        update={
            "name": "reasoneval-7b",
            "models": ("GAIR/ReasonEval-7B",),
            "architectures": ("ReasonEval_7B",),
            "read_offset": -1,
        }
    ),
    _REASONEVAL.model_copy(
        update={
            "name": "reasoneval-7b-redundancy",
            "models": (),
            "architectures": (),
            "read_offset": -1,
            "readout": "redundancy",
            "threshold": 0.85,
        }
    ),
    _SKYWORK,
    # PRMBench judges Skywork by the change from step to step.
    _SKYWORK.model_copy(
        update={
            "name": "skywork-difference",
            "models": (),
            "threshold": -0.05,
            "threshold_mode": "difference",
        }
    ),
    PRMFormat(
        name="pqm",
        models=("PQM-zeta-*",),
        prompt="[INST] {problem} [/INST]\n",
        step="Step {i}: {step}",
        separator=" [PRM]",
        between="\n",
        splitter="step_marker",
        bos=False,
        head="value_head",
        readout="raw",
        threshold=0.0,
    ),
    # The head was trained as one scalar broadcast over the vocabulary: the mean recovers it. Read at the
    # first newline of the pair.
    PRMFormat(
        name="llemma",
        models=(
            "ScalableMath/llemma-7b-prm-prm800k-level-1to3-hf",
            "ScalableMath/llemma-7b-prm-metamath-level-1to3-hf",
            "ScalableMath/llemma-7b-oprm-prm800k-level-1to3-hf",
        ),
        prompt="# Question\n\n{problem}\n\n# Solution\n\n",
        separator="\n\n",
        read="separator_start",
        replace_in_steps={"\n\n": ""},
        head="lm_head",
        readout="mean_logits",
    ),
    PRMFormat(
        name="math-minos",
        models=("MATH-Minos*",),
        prompt="Human: {problem}\n\nAssistant:",
        step="Step {i}: {step}",
        separator=" и",
        between="\n",
        splitter="step_marker",
        readout="raw",
        threshold=0.0,
    ),
    _QWEN.model_copy(
        update={
            "name": "actprm",
            "models": ("sail/ActPRM", "sail/ActPRM-X"),
            "architectures": ("Qwen2ForEnsemblePRM",),
            "head": "ensemble",
            "readout": "ensemble_mean",
            "max_length": 2048,
            "aggregation": "min",
            "token_ids": {},
        }
    ),
    PRMFormat(
        name="rest-mcts",
        prompt="{problem}\n",
        separator="\n",
        read="before",
        splitter="newline",
        head="vocab_value",
        readout="raw",
        max_length=900,
        aggregation="last",
    ),
    _IMPLICIT,
    _IMPLICIT.model_copy(
        update={
            "name": "eurus-prm-stage1",
            "models": ("PRIME-RL/EurusPRM-Stage1",),
            "reference": "Qwen/Qwen2.5-Math-7B-Instruct",
        }
    ),
    _IMPLICIT.model_copy(
        update={
            "name": "eurus-prm-stage2",
            "models": ("PRIME-RL/EurusPRM-Stage2",),
            "reference": "Qwen/Qwen2.5-Math-7B-Instruct",
            "aggregation": "sum",
        }
    ),
    _IMPLICIT.model_copy(
        update={
            "name": "implicit-prm-cumulative",
            "models": (),
            "readout": "cumulative_ratio",
            "threshold": 0.5,
            "aggregation": "last",
        }
    ),
    # arXiv:2502.01456: the online PRM of PRIME, at its training scale.
    _IMPLICIT.model_copy(
        update={"name": "prime", "models": (), "reference": None, "coefficient": 0.05, "aggregation": "sum"}
    ),
)
