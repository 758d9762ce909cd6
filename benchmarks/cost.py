"""What following the flow costs: evaluations, seconds and errors at α = 1e2, 1e6 and 1e30.

    python benchmarks/cost.py

Prints a table and saves results/cost.json.
"""

from __future__ import annotations

import time

import numpy as np
from problems import CASES, save

import latephase
from latephase.problem.vectors import angle


def main() -> None:
    rows, started = [], time.process_time()
    print(
        f"{'problem':<14}{'P':>6}{'α':>8}{'J':>6}{'gradients':>11}{'steps':>7}{'seconds':>9}"
        f"{'1 - cos':>10}{'to SVM':>10}{'fall of γ̃':>11}"
    )
    for name in ("linear", "deep 3", "deep 4", "squared 200", "squared 2000"):
        case = CASES[name]()
        for until in (1e2, 1e6, 1e30):
            begin = time.process_time()
            flow = latephase.gradient_flow(case.module, case.x, case.y, until=until)
            seconds = time.process_time() - begin
            margin = flow.normalized_smoothed_margin
            product = case.product(flow.direction[-1])
            row = {
                "problem": name,
                "parameters": flow.direction.shape[1],
                "until": until,
                **flow.evaluations,
                "steps": flow.steps,
                "seconds": seconds,
                "misalignment": 1.0 - float(flow.alignment[-1]),
                "angle_to_svm": None
                if product is None
                else angle(product, latephase.hard_margin(case.x, case.y)[0]),
                "largest_fall": float(max(0.0, *(-np.diff(margin) / margin[:-1]))),
            }
            rows.append(row)
            svm = row["angle_to_svm"]
            print(
                f"{name:<14}{row['parameters']:>6}{until:>8.0e}{row['jacobian']:>6}"
                f"{row['gradient']:>11}{row['steps']:>7}{seconds:>9.2f}"
                f"{row['misalignment']:>10.1e}{'' if svm is None else f'{svm:.1e}':>10}"
                f"{row['largest_fall']:>11.1e}",
                flush=True,
            )
    save("cost", {"rows": rows, "duration": time.process_time() - started})


if __name__ == "__main__":
    main()
