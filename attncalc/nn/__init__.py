"""Networks, each of which maps a `Graph` to `AtomOutputs`."""
