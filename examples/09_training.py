"""Train a model on your own data, here 80 distorted aluminium crystals with EMT labels, and use it.

Run: pip install ".[train]"; python examples/09_training.py
"""

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from attncalc import AttnCalculator, train

rng = np.random.default_rng(0)
frames = [bulk("Al", a=3.99, cubic=True).repeat((2, 1, 1)) for _ in range(80)]
for atoms in frames:
    atoms.set_cell(atoms.cell * (1 + rng.uniform(-0.03, 0.03)), scale_atoms=True)
    atoms.positions += rng.normal(scale=0.1, size=(8, 3))
    atoms.calc = EMT()
    atoms.get_forces()
write("aluminium.extxyz", frames)  # with energies [eV] and forces [eV/Å]

network = {"cutoff": 4.5, "num_features": 16, "degrees": [1, 2], "num_layers": 2, "num_basis": 12}
network |= {"num_heads": 2, "head_features": 16, "mlp_after_attention": "none"}
recipe = train.Recipe(  # `attncalc train` takes the same keys in a YAML file
    name="aluminium",
    data="aluminium.extxyz",
    split={"sizes": [60, 8, 12]},
    config=network,
    epochs=30,
    learning_rate=1e-2,
    warmup_steps=20,
    ema_decay=0.98,
)
done = train.run(recipe)  # runs/aluminium: model, card, metrics.csv, learning curve, checkpoint
print(f"test: force error {done.potential.training_info['test_errors']['force_mae']:.3f} eV/Å")
atoms = bulk("Al", a=3.99, cubic=True).repeat(3)  # larger than the training structures
atoms.rattle(0.1, seed=0)
forces, expected = (c.get_forces(atoms) for c in (AttnCalculator(done.model), EMT()))
error, size = (np.abs(f).mean() for f in (forces - expected, expected))
print(f"{len(atoms)} atoms: force error {error:.3f} of {size:.3f} eV/Å")
