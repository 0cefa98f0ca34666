"""Normalisers of activations as in e3nn: <f(z)^2>^(-1/2) over a fixed sample of normal z."""

SILU_NORM = 1.6791767923989418
SIGMOID_NORM = 1.8467055342154763
LEAKY_NORM = 1.531320475574866
