"""n@k, the metric of programming contests: draw k programs, hand in n that pass the public tests.

    expected_n_at_k(num_samples=1000, num_public=40, num_correct=8, n=10, k=100)

Source: AlphaCode, arXiv:2203.07814. pass@k is the bound without choosing: all k handed in.
"""

import math
from collections.abc import Sequence
from fractions import Fraction


def n_at_k(
    passed_public: Sequence[bool],
    correct: Sequence[bool],
    n: int,
    k: int,
    *,
    behaviours: Sequence[str] | None = None,
) -> float:
    """Return 1.0 when one of n submissions, chosen from the first k samples, is correct: AlphaCode's n@k.

    The samples that pass the public tests are candidates. They are submitted in their order, or, with
    `behaviours` (what each printed on made-up inputs), one of each largest cluster in turn. Source:
    arXiv:2203.07814, section 4.5 and 4.6.
    """
    assert len(passed_public) == len(correct) and 1 <= n <= k <= len(correct), (len(correct), n, k)
    candidates = [index for index in range(k) if passed_public[index]]
    if behaviours is not None:
        clusters: dict[str, list[int]] = {}
        for index in candidates:
            clusters.setdefault(behaviours[index], []).append(index)
        queues = sorted(clusters.values(), key=len, reverse=True)  # stable: of equals the one seen first
        depth = max(map(len, queues), default=0)
        candidates = [queue[turn] for turn in range(depth) for queue in queues if turn < len(queue)]
    return float(any(correct[index] for index in candidates[:n]))


def expected_n_at_k(num_samples: int, num_public: int, num_correct: int, n: int, k: int) -> float:
    """Return the expected n_at_k, without clusters, of k of the samples drawn and submitted in random order.

    `num_public` samples pass the public tests, `num_correct` of them are correct. Unbiased like pass_at_k,
    which it is when everything passes the public tests and n is k; exact integers. Differs from
    arXiv:2203.07814: the mean over all draws in closed form, not over some; because it has no noise.
    """
    assert 1 <= n <= k <= num_samples, (n, k, num_samples)
    assert 0 <= num_correct <= num_public <= num_samples, (num_correct, num_public, num_samples)
    fails = Fraction(0)
    for j in range(min(num_public, k) + 1):  # j of the k pass the public tests
        m = min(n, j)
        draws = math.comb(num_public, j) * math.comb(num_samples - num_public, k - j)
        fails += Fraction(draws * math.comb(num_public - num_correct, m), math.comb(num_public, m))
    return float(1 - fails / math.comb(num_samples, k))
