"""The broker: which batch goes to which worker, from what frames came and what was promised."""
