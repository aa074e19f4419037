"""Floor 3: the ground every other room stands on: arrays, labels, ops, the tape and the one door, `apply`."""
