"""Scoring steps with a published PRM: one forward per solution for all of its steps, whatever the format.

scorer = FormatScorer(parts, tokenizer, get_format("math-shepherd"))
scorer.score(["2 + 2?"], [["2 + 2 = 4", "The answer is 4."]])
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from prm.formats.encode import Encoded, encode_all
from prm.formats.heads import Parts
from prm.formats.readout import READ, WIDTH
from prm.formats.spec import PRMFormat
from prm.model import check_vocabulary, context_length, is_causal, pad_right
from prm.scorer import default_batch_tokens, score_in_batches, scoring

LOGIT_ROWS = 1024
"""Rows of vocabulary logits computed at once for log-ratios: bounds the memory they take."""


class FormatScorer:
    """A StepScorer over a decoder and a head. Scores are probabilities unless the format's are raw.

    max_batch_tokens: padded tokens of one forward. max_length: tokens of one solution, at most the format's
    and the model's; steps beyond it score None.
    """

    def __init__(
        self,
        parts: Parts,
        tokenizer: Any,
        spec: PRMFormat,
        *,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_vocabulary(parts.decoder, tokenizer)
        self.decoder = parts.decoder.to(device)  # type: ignore[arg-type]  # wrapped: loses self
        self.head = parts.head.to(device)
        self.tokenizer, self.format, self.device = tokenizer, spec, torch.device(device)
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(self.device)
        self.max_length = least(max_length, spec.max_length, context_length(parts.decoder))
        self.needs_mask = spec.mask_separators or not is_causal(parts.decoder)

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the score of every step, in the order given; None where it did not fit."""
        encoded = encode_all(self.tokenizer, self.format, problems, solutions, max_length=self.max_length)
        with scoring(self.decoder, self.head):
            return score_in_batches(encoded, self._read, self.max_batch_tokens)

    def _read(self, batch: Sequence[Encoded], rows: Tensor, columns: Tensor) -> Tensor:
        hidden = run_decoder(self.decoder, batch, self.device, self.format, needs_mask=self.needs_mask)
        logits = self.head(hidden[rows.to(self.device), columns.to(self.device)].float())  # (N, C)
        expected = WIDTH.get(self.format.readout, logits.shape[1])
        if logits.shape[1] != expected:
            raise UserError(
                f"format '{self.format.name}' reads {expected} outputs, the model's head has "
                f"{logits.shape[1]}; name another --format"
            )
        return READ[self.format.readout](logits)


class RatioScorer:
    """A StepScorer over two causal LMs: how much likelier the trained one finds a step than its reference.

    With q_t = coefficient * sum over response tokens up to t of (logp - logp_ref) at step ends
    (arXiv:2412.01981): step_ratio is the increase of q over the step (raw), cumulative_ratio sigmoid(q).

    Differs from the authors' scripts: a step ends with the separator behind it, the last too. They find ends
    by templating every prefix, which counts an end-of-turn token that is not there.
    """

    def __init__(
        self,
        model: Any,
        reference: Any,
        tokenizer: Any,
        spec: PRMFormat,
        *,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for each in (model, reference):
            check_vocabulary(each, tokenizer)
        self.models = [model.to(device), reference.to(device)]
        self.tokenizer, self.format, self.device = tokenizer, spec, torch.device(device)
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(self.device)
        limits = [context_length(each) for each in self.models]
        self.max_length = least(max_length, spec.max_length, *limits)

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the score of every step, in the order given; None where it did not fit."""
        encoded = encode_all(self.tokenizer, self.format, problems, solutions, max_length=self.max_length)
        with scoring(*self.models):
            sums = score_in_batches(encoded, self._read, self.max_batch_tokens)
        if self.format.readout == "cumulative_ratio":
            return [[None if q is None else float(torch.tensor(q).sigmoid()) for q in row] for row in sums]
        return [_increases(row) for row in sums]

    def _read(self, batch: Sequence[Encoded], rows: Tensor, columns: Tensor) -> Tensor:
        own, reference = (self._sums(model, batch) for model in self.models)
        return self.format.coefficient * (own - reference)[rows, columns]

    def _sums(self, model: Any, batch: Sequence[Encoded]) -> Tensor:
        """Log-probability of the response up to each token, (B, T) f64 on the CPU; 0 in the prompt."""
        needs_mask = self.format.mask_separators or not is_causal(model)
        hidden = run_decoder(model.base_model, batch, self.device, self.format, needs_mask=needs_mask)
        input_ids, mask = (tensor.to(self.device) for tensor in pad_right(batch))
        columns = torch.arange(input_ids.shape[1], device=self.device)
        starts = torch.tensor([max(solution.start, 1) for solution in batch], device=self.device)
        counted = mask & (columns >= starts[:, None])  # (B, T)
        before = hidden[:, :-1][counted[:, 1:]]  # (N, H): the place before each counted token
        targets = input_ids[counted]
        pieces = [
            model.get_output_embeddings()(states)
            .float()
            .log_softmax(-1)
            .gather(1, tokens[:, None])
            .squeeze(1)
            for states, tokens in zip(before.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        ]
        logprobs = torch.zeros(counted.shape, dtype=torch.float64)
        if pieces:
            logprobs[counted.cpu()] = torch.cat(pieces).double().cpu()
        return logprobs.cumsum(1)


def run_decoder(
    decoder: Any,
    batch: Sequence[Encoded],
    device: torch.device,
    spec: PRMFormat,
    *,
    needs_mask: bool,
) -> Tensor:
    """Return hidden states (B, T, H) of right-padded solutions.

    A causal decoder gets no attention mask: padding stands behind everything that is read, and unmasked
    attention takes the faster kernel.
    """
    input_ids, mask = pad_right(batch)
    if spec.mask_separators:
        for row, solution in enumerate(batch):
            mask[row, list(solution.separators)] = False
    options = {"attention_mask": mask.to(device)} if needs_mask else {"use_cache": False}
    return decoder(input_ids=input_ids.to(device), **options)[0]


def least(*limits: int | None) -> int | None:
    """Return the smallest of the limits that are set."""
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _increases(sums: Sequence[float | None]) -> list[float | None]:
    before = 0.0
    out: list[float | None] = []
    for value in sums:
        out.append(None if value is None else value - before)
        before = before if value is None else value
    return out
