"""benchmarks/prm_scoring.py reports tokens beside solutions: other step counts make other lengths."""

import sys
from pathlib import Path


def test_a_measurement_counts_its_tokens(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # the import sets what is unset; put back afterwards
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import prm_scoring

    class Words:
        def encode(self, text):
            return text.split()

    rows = prm_scoring.make_rows(Words(), (4, 4))[:3]
    words = sum(len(" ".join((row["prompt"], *row["completions"])).split()) for row in rows)
    tokens = prm_scoring.count_tokens(Words(), rows)
    assert tokens == words + 3 * 4  # one separator a step
    run = {"cpu_s": 2.0, "solutions": 3, "tokens": tokens, "peak_rss_mb": 1}
    assert prm_scoring.summarise([run])["tokens_per_cpu_s"] == round(tokens / 2)
    sys.modules.pop("prm_scoring")
