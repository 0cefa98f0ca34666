#!/usr/bin/env python
"""The mean of the weights of two models of one architecture, as a start of further training.

    python benchmarks/studies/average_weights.py before.safetensors after.safetensors --share 0.65 \
        -o averaged.safetensors

If the second model was trained from the first, the mean may be a better start than either
(Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
"""

from __future__ import annotations

import argparse

from attncalc import load
from attncalc.model_file import save


def main() -> None:
    """Write the mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--share", type=float, default=0.5, help="of the second, 0 to 1")
    parser.add_argument("-o", "--output", required=True)
    asked = parser.parse_args()
    first, second = (load(name, device="cpu") for name in (asked.first, asked.second))
    before, mean = first.state_dict(), second.state_dict()
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = (1 - asked.share) * before[name] + asked.share * value
    second.load_state_dict(mean)
    save(second, asked.output)


if __name__ == "__main__":
    main()
