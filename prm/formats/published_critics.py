"""Published PRMs that write critiques, as PRMFormats; docs/formats.md says what each entry rests on."""

from prm.formats.spec import PRMFormat

_CRITIC = PRMFormat(
    name="critic",
    head="generative",
    readout="critique",
    critique="index",
    layout="chat",
    prompt=(
        "Below are a maths problem and a proposed solution, whose paragraphs carry tags and are numbered "
        "from 0.\n\n[Problem]\n\n{problem}\n\n[Solution]\n\n{steps}\n\nCheck the paragraphs one after "
        "another. At the first one that holds a mistake, stop and give its number; where all are right, give "
        "-1. End with that number in \\boxed{}."
    ),
    step="<paragraph_{i0}>\n{step}\n</paragraph_{i0}>",
    between="\n\n",
    samples=8,
    temperature=0.7,
)

CRITICS = (
    _CRITIC,
    PRMFormat(
        name="thinkprm",
        models=("launch/ThinkPRM-1.5B", "launch/ThinkPRM-7B", "launch/ThinkPRM-14B"),
        head="generative",
        readout="critique",
        critique="boxes",
        layout="chat",
        prompt=(
            "You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n"
            "{problem}\n\n[Solution]\n\n{steps}\n\nReview and critique each step in the proposed solution to "
            "determine whether each step is correct. If the solution is incomplete, only verify the provided "
            "steps."
        ),
        step="Step {i}: {step}",
        between="\n",
        splitter="step_marker",
        opening="\nLet's verify step by step:",
        temperature=0.7,
        max_new_tokens=8192,
    ),
    PRMFormat(
        name="r-prm",
        models=("kevinpro/R-PRM-7B-SFT", "kevinpro/R-PRM-7B-DPO"),
        head="generative",
        readout="critique",
        critique="yes_no",
        layout="chat",
        prompt=(
            "Check one step of a solution, the Now Step. First analyse the Previous Steps and the Now Step: "
            "what it does, where its data come from, whether it agrees with what stands before, whether its "
            'calculations hold. Then conclude with "Verification: Is the step correct (Yes/No)? X", X being '
            "Yes or No.\n\n"
            "Question: {problem}\nPrevious Steps: {previous}\nNow Step: {step}"
        ),
        between="\n",
        samples=10,
        threshold=0.55,
    ),
    PRMFormat(
        name="genprm",
        models=("GenPRM/GenPRM-1.5B", "GenPRM/GenPRM-7B", "GenPRM/GenPRM-32B"),
        head="generative",
        readout="critique",
        critique="genprm",
        layout="chat",
        system=(
            "You are a math teacher. Your task is to review and critique the paragraphs in solution step by "
            "step."
        ),
        prompt="Question: {problem}\n\n",
        temperature=0.6,
    ),
)
