"""Shared by the RL tests: rollouts whose every response a test chooses."""

from collections.abc import Sequence

from data.schema import Problem, Sample, Sampling
from reasoning_rl.experience import collect


class Scripted:
    """A generator that says what it is told to, token by token: lets a test choose every response."""

    def __init__(self, tokenizer, responses: Sequence[str], *, cut: Sequence[int] = ()) -> None:
        self.tokenizer, self.responses, self.cut = tokenizer, responses, set(cut)

    def generate(self, prompts, sampling) -> list[list[Sample]]:
        out = []
        for row, (prompt, response) in enumerate(zip(prompts, self.responses, strict=True)):
            ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
            ended = row not in self.cut
            ids = [*ids, self.tokenizer.eos_token_id] if ended else ids
            sample = Sample(
                prompt_ids=tuple(self.tokenizer(prompt)["input_ids"]),
                token_ids=tuple(ids),
                logprobs=tuple(-1.0 - 0.1 * i for i in range(len(ids))),
                text=response,
                finish_reason="stop" if ended else "length",
            )
            out.append([sample])
        return out


def gather(tokenizer, problems: Sequence[Problem], responses: Sequence[str], cut: Sequence[int] = ()):
    generator = Scripted(tokenizer, responses, cut=cut)
    return collect(
        generator, tokenizer, problems, Sampling(), render=lambda text: f"{text}\n", splitter="newline"
    )
