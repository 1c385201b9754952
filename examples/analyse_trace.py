"""Images that only one exit classifies correctly, and other statistics of a run's logits, with numpy alone.

python examples/analyse_trace.py runs/first
"""

import sys

import numpy as np

import offramp


def main() -> None:
    """Print accuracy, agreement with the final exit, and uniquely correct images of every exit."""
    run = offramp.load_run(sys.argv[1])
    trace = run.trace("test")  # logits (E, N, C), labels (N,), ids (N,)
    predictions = trace.logits.argmax(axis=2)
    correct = predictions == trace.labels
    print("exit  accuracy  agrees with final  only this exit is right")
    for exit, right in enumerate(correct):
        agrees = np.mean(predictions[exit] == predictions[-1])
        alone = np.mean(right & (correct.sum(axis=0) == 1))
        print(f"{exit + 1:4d}  {right.mean():8.2%}  {agrees:17.2%}  {alone:23.2%}")


if __name__ == "__main__":
    main()
