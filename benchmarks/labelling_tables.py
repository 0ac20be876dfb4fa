"""The tables of benchmarks/labelling.py, as they stand in docs/labelling.md."""

from typing import Any


def show(result: dict[str, Any]) -> str:
    """The tables of docs/labelling.md."""
    out = [
        f"policy: {result['policy']['accuracy']:.3f} of its sampled answers right; "
        f"{result['solutions']} solutions of {result['problems']} problems",
        "",
        "| K | step accuracy | balanced | right kept | wrong caught | value cut at 1/2 | AUC of the value "
        "| first error found | rollouts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for k, r in result["monte_carlo"].items():
        names = ("step_accuracy", "balanced_accuracy", "right_kept", "wrong_caught", "soft_accuracy")
        cells = [f"{r[n]:.3f}" for n in (*names, "soft_auc", "first_error_accuracy")]
        out.append(f"| {k} | {' | '.join(cells)} | {r['rollouts']:,} |")
    out += [
        "",
        "| steps | planted errors | most evaluations | ceil(log2 T) + 1 | every prefix | found |",
        "|---|---|---|---|---|---|",
    ]
    for length, r in result["planted"].items():
        cells = [r["solutions"], r["most_evaluations"], r["allowed"], r["brute_force"]]
        out.append(f"| {length} | {' | '.join(map(str, cells))} | {r['accuracy']:.3f} |")
    out += [
        "",
        "| method | K | errors located | first error right | rollouts an error | tokens an error |",
        "|---|---|---|---|---|---|",
    ]
    for method, by_k in result["errors"].items():
        for k, r in by_k.items():
            out.append(
                f"| {method} | {k} | {r['errors']} | {r['first_error_accuracy']:.3f} | "
                f"{r['rollouts_per_error']:.1f} | {r['tokens_per_error']:.0f} |"
            )
    out += [
        "",
        "| OmegaPRM's K | its accuracy | its rollouts an error | brute force's | ratio |",
        "|" + "---|" * 5,
    ]
    for k, r in result["matched"].items():
        brute = f"{r['monte_carlo']:.1f} (K {r['monte_carlo_k']})" if r["ratio"] else "never as accurate"
        ratio = f"{r['ratio']:.1f}" if r["ratio"] else ""
        out.append(f"| {k} | {r['accuracy']:.3f} | {r['omega_prm']:.1f} | {brute} | {ratio} |")
    c = result["consensus"]
    out += [
        "",
        f"| {c['solutions']} solutions: first error (or none) right | rollouts, K {c['k']} | judge | where "
        "both agree | share kept |",
        "|---|---|---|---|---|",
        f"| | {c['rollouts_alone']:.3f} | {c['judge_alone']:.3f} | {c['agreed']:.3f} | {c['kept']:.3f} |",
    ]
    return "\n".join(out) + "\n"
