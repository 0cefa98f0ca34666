"""What watches a training run; most of it is tested by whole runs in test_fit.py."""

import lightning as L
import pytest

from attncalc.train.callbacks import UseStep


def test_a_callback_refuses_a_module_that_is_not_ours():
    callback = UseStep(lambda batch: None)
    with pytest.raises(TypeError, match="module must be a TrainingModule, got LightningModule"):
        callback.on_train_start(None, L.LightningModule())
